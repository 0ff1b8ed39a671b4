"""The reader that runs: one rank's part of a schedule on a mesh and real arrays.

`bind` turns slots into places in memory once per schedule and array length; `run` then only sends, receives and copies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from superpod.collectives.schedule import RankStep, Schedule
from superpod.interconnect.group import Group
from superpod.interconnect.mesh import Mesh
from superpod.interconnect.streams import Pending, Receive, Send
from superpod.interconnect.wire import Header, Kind, encode

Array = npt.NDArray[Any]
Bounds = tuple[int, ...]
"""Where the chunks of a bank start and the last one ends, in elements: nchunks + 1 numbers."""

COLLECTIVE_TAG = -1  # the stream of a group's collectives; point-to-point tags are 0 and above


def even_bounds(count: int, nchunks: int) -> Bounds:
    """`count` elements in nchunks chunks that differ by one element at the most, the longer ones first."""
    base, longer = divmod(count, nchunks)
    return tuple(accumulate([base + 1] * longer + [base] * (nchunks - longer), initial=0))


def block_bounds(blocks: Sequence[int], nchunks: int) -> Bounds:
    """Blocks of the given element counts, one a rank, each cut evenly so that there are nchunks in all."""
    a_block = nchunks // len(blocks)
    bounds = [0]
    for count in blocks:
        start = bounds[-1]
        bounds.extend(start + b for b in even_bounds(count, a_block)[1:])
    return tuple(bounds)


@dataclass(frozen=True, slots=True)
class Region:
    """Elements start … stop − 1 of one of the spaces that a plan runs on."""

    space: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def of(self, spaces: Sequence[Array]) -> Array:
        return spaces[self.space][self.start : self.stop]

    def overlaps(self, other: Region) -> bool:
        return self.space == other.space and self.start < other.stop and other.start < self.stop


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step of one rank with places instead of slots; local moves are made before anything is received.

    Attributes:
        index: the step's number in the schedule.
        local: (source, target, reduce, exposed): exposed if an earlier local move overwrites the source.
        sends: (peer, source, exposed): exposed if the step overwrites the source.
        receives: (peer, target, reduce).
        in_order: several receives end in one place, so they are taken one after the other.
    """

    index: int
    local: tuple[tuple[Region, Region, bool, bool], ...]
    sends: tuple[tuple[int, Region, bool], ...]
    receives: tuple[tuple[int, Region, bool], ...]
    in_order: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One rank's part of a schedule, bound to array lengths."""

    steps: tuple[PlannedStep, ...]
    scratch: int  # elements of the space behind the given ones
    places: dict[int, Region]  # slot → where it is, for the slots in scratch
    nchunks: int
    rank: int


def bind(schedule: Schedule, rank: int, banks: Sequence[Bounds], given: int) -> Plan:
    """Bind `rank`'s part of `schedule`.

    Args:
        banks: chunk bounds of bank 0 and, for all_to_all, of bank 1; later banks are laid out like bank 0.
        given: how many banks lie in arrays of the caller's, spaces 0 … given − 1; the slots that the rank touches in
            the others share one scratch space, number `given`.
    """
    program = schedule.for_rank(rank)
    nchunks = schedule.nchunks

    def bounds(slot: int) -> tuple[int, int]:
        bank, chunk = divmod(slot, nchunks)
        edges = banks[bank] if bank < len(banks) else banks[0]
        return edges[chunk], edges[chunk + 1]

    touched: set[int] = set()
    for part in program:
        for move in (*part.local, *part.receives):
            touched.update(range(move.to, move.to + move.count))
        for move in (*part.local, *part.sends):
            touched.update(range(move.first, move.first + move.count))
    places: dict[int, Region] = {}
    scratch = 0
    for slot in sorted(touched):
        if slot // nchunks >= given:
            start, stop = bounds(slot)
            places[slot] = Region(given, scratch, scratch + stop - start)
            scratch += stop - start

    def region(slot: int, count: int) -> Region:
        last = slot + count - 1
        if slot in places:
            return Region(given, places[slot].start, places[last].stop)
        return Region(slot // nchunks, bounds(slot)[0], bounds(last)[1])

    steps = (_plan_step(part, region) for part in program)
    return Plan(tuple(s for s in steps if s.local or s.sends or s.receives), scratch, places, nchunks, rank)


def _plan_step(part: RankStep, region: Callable[[int, int], Region]) -> PlannedStep:
    """Empty moves, of which a short array has many, are left out: both ends know of them."""
    moves = ((region(m.first, m.count), region(m.to, m.count), m.reduce) for m in part.local)
    local = [move for move in moves if move[0].size]
    receives = tuple((m.peer, r, m.reduce) for m in part.receives if (r := region(m.to, m.count)).size)
    targets = [target for _, target, _ in local]
    into = [r for _, r, _ in receives]
    return PlannedStep(
        part.index,
        tuple((a, b, reduce, _overlaps(a, targets[:i])) for i, (a, b, reduce) in enumerate(local)),
        tuple((m.peer, r, _overlaps(r, into + targets)) for m in part.sends if (r := region(m.first, m.count)).size),
        receives,
        in_order=any(_overlaps(r, into[:i]) for i, r in enumerate(into)),
    )


def _overlaps(region: Region, others: Sequence[Region]) -> bool:
    return any(region.overlaps(other) for other in others)


def room_for(plan: Plan, spaces: Sequence[Array], *, apart: bool) -> Sequence[Array]:
    """What `run` needs: the given arrays, the first one copied if it is to be left `apart`, and the plan's scratch."""
    if apart:
        spaces = (spaces[0].copy(), *spaces[1:])
    if plan.scratch:
        spaces = (*spaces, np.empty(plan.scratch, spaces[0].dtype if spaces else np.uint8))
    return spaces


@dataclass(frozen=True, slots=True)
class Circumstances:
    """In which a plan is run.

    Attributes:
        mesh, group: what its messages go through.
        ranks: group rank → rank in the mesh.
        text: the collective's call in words, the same on every rank.
    """

    mesh: Mesh
    group: Group
    ranks: Sequence[int]
    text: str


def run(
    plan: Plan,
    spaces: Sequence[Array],
    where: Circumstances,
    *,
    sequence: int,
    seconds: float,
    reduce: np.ufunc | None,
) -> None:
    """Run a plan. All ranks of the group do so at once, with the same schedule.

    Args:
        spaces: the given 1-D contiguous arrays and, if the plan has scratch, an array for it, of one dtype.
        sequence: the collective's number in its group, the same on every rank.
        seconds: how long it may take.
        reduce: how reducing moves combine.
    Raises: see Mesh.wait. After an error the arrays' contents are undefined, but no longer touched.
    """
    end = time.monotonic() + seconds
    received = False
    for step in plan.steps:
        pending: list[Pending] = list(_start_sends(step, spaces, where, sequence, end)) if step.sends else []
        if step.local:
            _move_locally(step, spaces, reduce)
        receives = _receives(step, spaces, where, sequence, reduce, plan.rank) if step.receives else []
        if step.in_order:  # without the sends, whose credit may hang on peers that take theirs in order, too
            for receive in receives:
                _wait([receive], [receive], where, end, seconds)
        else:
            pending += receives
        if pending:
            _wait(pending, () if step.in_order else receives, where, end, seconds)
        received = received or bool(receives)
    if plan.steps and not received:  # who only sends need not wait, and would never hear that the others disagree
        where.mesh.look(where.group, (), probe=False)


def _wait(
    pending: Sequence[Pending], expect: Sequence[Receive], where: Circumstances, end: float, limit: float
) -> None:
    rest = end - time.monotonic()
    where.mesh.wait(pending, where.group, seconds=rest, what=where.text, limit=limit, expect=expect)


def _receives(
    step: PlannedStep, spaces: Sequence[Array], where: Circumstances, sequence: int, reduce: np.ufunc | None, own: int
) -> list[Receive]:
    ranks, ident = where.ranks, where.group.ident
    return [
        Receive(
            (ranks[peer], ident, COLLECTIVE_TAG),
            spaces[r.space][r.start : r.stop],
            reduce if reducing else None,
            sequence,
            step.index,
            where.text,
            before=peer < own,
        )
        for peer, r, reducing in step.receives
    ]


def _start_sends(
    step: PlannedStep, spaces: Sequence[Array], where: Circumstances, sequence: int, end: float
) -> list[Send]:
    """Start a step's sends; returns those that are still under way."""
    mesh, group, ranks, header, packed = where.mesh, where.group, where.ranks, None, b""
    sends: list[Send] = []
    exposed: list[bool] = []
    for peer, r, overwritten in step.sends:
        payload = spaces[r.space][r.start : r.stop].view(np.uint8).data
        key = ranks[peer], group.ident, COLLECTIVE_TAG
        if header is None or header.nbytes != payload.nbytes:
            header = Header(Kind.DATA, group.ident, COLLECTIVE_TAG, sequence, step.index, payload.nbytes, 0, where.text)
            packed = encode(header)
        if sends or not mesh.post(group, key, packed, payload):  # in order: what is behind one that waits, waits too
            sends.append(Send(key, header, payload))
            exposed.append(overwritten)
    if not sends:
        return sends
    mesh.start(group, sends, end - time.monotonic())
    for send, overwritten in zip(sends, exposed, strict=True):
        if overwritten and not send.done:
            send.payload = memoryview(bytes(send.payload))
    return [send for send in sends if not send.done]


def _move_locally(step: PlannedStep, spaces: Sequence[Array], reduce: np.ufunc | None) -> None:
    sources = [source.of(spaces).copy() if exposed else source.of(spaces) for source, _, _, exposed in step.local]
    for values, (_, target, reducing, _) in zip(sources, step.local, strict=True):
        place = target.of(spaces)
        if reducing and reduce is not None:
            with np.errstate(all="ignore"):  # an overflow is a result, the same on every rank
                reduce(place, values, out=place)
        else:
            place[...] = values
