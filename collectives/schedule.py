"""A collective algorithm as data: who sends which chunks to whom in which step, and what the receiver does with them.

Words. A rank's *slots* are its memory, chunk by chunk. Slots come in *banks* of `nchunks`: bank 0 is the buffer itself
(for all_to_all: bank 0 the input, bank 1 the output), later banks are scratch laid out like the buffer. Slot s is chunk
s mod nchunks of bank s // nchunks. A *move* carries `count` neighbouring slots from `first` on rank `src` to slot `to`
and on at rank `dst`; the receiver adds them to what is there (reduce) or overwrites it. src == dst is a local move.
Both ranges of a move stay in one bank.

Within a step every move reads the state before the step. Several reducing moves may end in one slot: they are applied
in the order in which they are listed, so the order of a reduction, and with it every bit of the result, is part of the
schedule. Two moves into one slot of which one overwrites are a hazard, which `verify` refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from superpod.interconnect.errors import InvalidValue

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ROOTED = ("broadcast", "reduce", "gather", "scatter")
"""The collectives that have a root."""
REDUCING = ("all_reduce", "reduce", "reduce_scatter")
"""The collectives that add contributions up, so that the order of these may show in the bits."""


@dataclass(frozen=True, slots=True)
class Step:
    """All moves of one step, one array entry a move: shapes (m,)."""

    src: IntArray
    dst: IntArray
    first: IntArray
    count: IntArray
    to: IntArray
    reduce: BoolArray

    @staticmethod
    def of(
        src: npt.ArrayLike,
        dst: npt.ArrayLike,
        first: npt.ArrayLike,
        count: npt.ArrayLike = 1,
        to: npt.ArrayLike | None = None,
        reduce: npt.ArrayLike = False,
    ) -> Step:
        """A step from arrays or scalars, which are broadcast against one another; `to` defaults to `first`.

        Raises InvalidValue for what is no whole number.
        """
        columns = (src, dst, first, count, first if to is None else to)
        shape = np.broadcast_shapes((1,), *map(np.shape, columns), np.shape(reduce))
        ints, flags = np.empty((5, *shape), np.int64), np.empty(shape, np.bool_)
        for name, row, column in zip(Step.__slots__, ints, columns, strict=False):
            if type(column) is not int and np.asarray(column).dtype.kind not in "iu" and np.size(column):
                raise InvalidValue(f"{name}={column!r} of a step must be whole numbers; round them")
            row[...] = column
        flags[...] = reduce
        src_, dst_, first_, count_, to_ = ints.reshape(5, -1)
        return Step(src_, dst_, first_, count_, to_, flags.ravel())

    @staticmethod
    def around(
        src: npt.ArrayLike,
        dst: npt.ArrayLike,
        first: npt.ArrayLike,
        count: npt.ArrayLike,
        *,
        nchunks: int,
        reduce: npt.ArrayLike = False,
    ) -> Step:
        """Like `of`, for ranges of bank 0 that go on at chunk 0 after the last one: such a move becomes two."""
        whole = Step.of(src, dst, first, count, reduce=reduce)
        start = whole.first % nchunks
        fits = np.minimum(whole.count, nchunks - start)
        rest = whole.count > fits
        over = Step.of(whole.src[rest], whole.dst[rest], 0, (whole.count - fits)[rest], reduce=whole.reduce[rest])
        return Step.join(Step(whole.src, whole.dst, start, fits, start, whole.reduce), over)

    @staticmethod
    def join(*steps: Step) -> Step:
        """One step with the moves of several, in their order."""
        return Step(*(np.concatenate([getattr(s, name) for s in steps]) for name in Step.__slots__))

    def __len__(self) -> int:
        return len(self.src)


class Exchange(NamedTuple):
    """Groups in which every rank sends `chunks` to every other: `size` ranks that are `stride` apart form one.

    Ranks r and q belong together if r % stride = q % stride and r // (size · stride) = q // (size · stride).
    """

    chunks: int
    size: int
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Traffic:
    """What some steps carry, for readers whom only amounts concern; all in chunks, summed over the moves of a pair.

    Attributes:
        times: so many steps in a row load every link alike.
        flows: one entry a pair of ranks, with the chunks that move between the two as `count`, or None.
        exchanges: everybody to everybody in groups.
        shift: (chunks, first, last): with it, every rank sends them to the rank `first` further on in the first of
            the steps, and so on to `last` in the last; times = last − first + 1.
        local: chunks that every rank moves within its own memory.
        reduce: what exchanges, shift and local move is added.
    """

    times: int = 1
    flows: Step | None = None
    exchanges: tuple[Exchange, ...] = ()
    shift: tuple[int, int, int] | None = None
    local: int = 0
    reduce: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """One move as one of its two ranks sees it: `peer` is the other one."""

    peer: int
    first: int
    count: int
    to: int
    reduce: bool


@dataclass(frozen=True, slots=True)
class RankStep:
    """What one rank does in one step: local moves and sends read the state before it."""

    index: int
    local: tuple[Move, ...]
    sends: tuple[Move, ...]
    receives: tuple[Move, ...]


Program = tuple[RankStep, ...]
"""One rank's part of a schedule: the steps in which it does something, in order."""


@dataclass(frozen=True)
class Schedule:
    """A whole algorithm at one world size, built step by step on demand.

    Attributes:
        collective: the collective's name, which fixes pre- and postcondition (see spec.py).
        algorithm: the algorithm's name.
        world_size: n ≥ 1.
        nchunks: into how many chunks the buffer is cut, ≥ 1. Collectives with one block a rank (all_gather,
            reduce_scatter, gather, scatter, all_to_all) need a multiple of n: block q is chunks q·k … (q+1)·k − 1.
        nsteps: number of steps.
        build: step index → Step; pure.
        nbanks: banks of nchunks slots a rank uses, the buffer's own included.
        root: the root of a rooted collective, else 0.
        traffic: an optional shortcut to what the steps carry, for worlds whose moves are too many to build; must equal
            what the steps say (collectives/traffic.py compares).
        equal_blocks: True when moves join chunks of different number, which is right only if all blocks have one size.
        program: an optional shortcut to one rank's part; must equal what the steps say (`verify` checks it).
    """

    collective: str
    algorithm: str
    world_size: int
    nchunks: int
    nsteps: int
    build: Callable[[int], Step]
    nbanks: int = 1
    root: int = 0
    program: Callable[[int], Program] | None = None
    equal_blocks: bool = False
    traffic: Callable[[], Iterable[Traffic]] | None = None

    def __post_init__(self) -> None:
        for name, least in (("world_size", 1), ("nchunks", 1), ("nbanks", 1), ("nsteps", 0), ("root", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer):
                raise InvalidValue(f"{name}={value!r} must be a whole number")
            if value < least and name != "root":
                raise InvalidValue(f"{name}={value} must be at least {least}")
        if not 0 <= self.root < self.world_size:
            raise InvalidValue(f"root={self.root} must be a rank: 0 to {self.world_size - 1}")
        if self.root and self.collective not in ROOTED:
            raise InvalidValue(f"root={self.root} must be left out: {self.collective} has no root")

    @property
    def nslots(self) -> int:
        return self.nchunks * self.nbanks

    def step(self, index: int) -> Step:
        if not 0 <= index < self.nsteps:
            raise InvalidValue(f"step {index} does not exist: the schedule has {self.nsteps}")
        return self.build(index)

    def steps(self) -> Iterator[Step]:
        return (self.build(i) for i in range(self.nsteps))

    def for_rank(self, rank: int) -> Program:
        """What `rank` does, step by step; steps in which it does nothing are left out."""
        if not 0 <= rank < self.world_size:
            raise InvalidValue(f"rank={rank} must be 0 to {self.world_size - 1}")
        if self.program is not None:
            return self.program(rank)
        parts = (_part_of(rank, i, step) for i, step in enumerate(self.steps()))
        return tuple(part for part in parts if part.local or part.sends or part.receives)

    @property
    def nmoves(self) -> int:
        """Moves between different ranks, summed over the steps."""
        return sum(int(np.count_nonzero(s.src != s.dst)) for s in self.steps())

    def links(self) -> set[tuple[int, int]]:
        """The directed pairs (src, dst) that carry anything."""
        return {(int(a), int(b)) for s in self.steps() for a, b in zip(s.src, s.dst, strict=True) if a != b}

    def chunks_sent(self) -> IntArray:
        """Chunks that each rank sends to others, shape (world_size,); times the chunk's bytes it is the traffic."""
        sent = np.zeros(self.world_size, np.int64)
        for s in self.steps():
            away = s.src != s.dst
            np.add.at(sent, s.src[away], s.count[away])
        return sent

    def where(self, step: int, rank: int, slot: int) -> str:
        """A place in the schedule in words, for messages about it; step −1 is before step 0."""
        bank, chunk = divmod(slot, self.nchunks)
        when = f"step {step}" if step >= 0 else "before step 0"
        place = f"{when}, rank {rank}, chunk {chunk}" + (f" of bank {bank}" if bank else "")
        return f"{self.algorithm} {self.collective} on {self.world_size} ranks, {place}"

    def __str__(self) -> str:
        head = f"{self.algorithm} {self.collective}, {self.world_size} ranks, {self.nsteps} steps"
        lines = (f"  {i}: " + "  ".join(_move_text(s, m) for m in range(len(s))) for i, s in enumerate(self.steps()))
        return "\n".join([head, *lines])

    def to_json(self) -> str:
        """The whole schedule as JSON; `from_json` reads it back."""
        steps = [{name: getattr(s, name).tolist() for name in Step.__slots__} for s in self.steps()]
        fields = ("collective", "algorithm", "world_size", "nchunks", "nbanks", "root", "equal_blocks")
        return json.dumps({**{f: getattr(self, f) for f in fields}, "steps": steps})

    @staticmethod
    def from_json(text: str) -> Schedule:
        """A schedule from `to_json`'s text. Raises InvalidValue when it is not one."""
        try:
            data = json.loads(text)
            steps = [Step.of(**s) for s in data.pop("steps")]
            return Schedule(**data, nsteps=len(steps), build=steps.__getitem__)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidValue(f"not a schedule in JSON: {error}; write one with Schedule.to_json()") from error


def _part_of(rank: int, index: int, step: Step) -> RankStep:
    local, sends, receives = [], [], []
    rows = np.flatnonzero((step.src == rank) | (step.dst == rank))
    columns = (getattr(step, name)[rows].tolist() for name in Step.__slots__)
    for src, dst, first, count, to, reduce in zip(*columns, strict=True):
        if src == dst:
            local.append(Move(rank, first, count, to, reduce))
        elif src == rank:
            sends.append(Move(dst, first, count, to, reduce))
        else:
            receives.append(Move(src, first, count, to, reduce))
    return RankStep(index, tuple(local), tuple(sends), tuple(receives))


def _move_text(step: Step, m: int) -> str:
    first, count, to = int(step.first[m]), int(step.count[m]), int(step.to[m])
    chunks = f"chunk {first}" if count == 1 else f"chunks {first}-{first + count - 1}"
    place = "" if to == first else f" to {to}"
    return f"{step.src[m]}→{step.dst[m]} {chunks}{place}" + (" +" if step.reduce[m] else "")
