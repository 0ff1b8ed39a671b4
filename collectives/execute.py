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
from superpod.interconnect.streams import Pending

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
        bounds.extend(bounds[-1] + b for b in even_bounds(count, a_block)[1:])
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
    """A step of one rank with places instead of slots. `exposed`: what is sent is overwritten in the same step."""

    index: int
    local: tuple[tuple[Region, Region, bool], ...]
    sends: tuple[tuple[int, Region, bool], ...]
    receives: tuple[tuple[int, Region, bool], ...]
    in_order: bool  # several receives end in one place, so they are taken one after the other


@dataclass(frozen=True, slots=True)
class Plan:
    """One rank's part of a schedule, bound to array lengths."""

    steps: tuple[PlannedStep, ...]
    scratch: int  # elements of the space behind the given ones
    places: dict[int, Region]  # slot → where it is, for the slots in scratch
    nchunks: int


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
    return Plan(tuple(s for s in steps if s.local or s.sends or s.receives), scratch, places, nchunks)


def _plan_step(part: RankStep, region: Callable[[int, int], Region]) -> PlannedStep:
    """Empty moves, of which a short array has many, are left out: both ends know of them."""
    local = tuple((region(m.first, m.count), region(m.to, m.count), m.reduce) for m in part.local)
    receives = tuple((m.peer, r, m.reduce) for m in part.receives if (r := region(m.to, m.count)).size)
    into = [r for _, r, _ in receives]
    written = into + [target for _, target, _ in local]
    sends = tuple(
        (m.peer, r, any(r.overlaps(w) for w in written)) for m in part.sends if (r := region(m.first, m.count)).size
    )
    in_order = any(a.overlaps(b) for i, a in enumerate(into) for b in into[:i])
    return PlannedStep(part.index, tuple(move for move in local if move[0].size), sends, receives, in_order)


def run(
    plan: Plan,
    spaces: Sequence[Array],
    mesh: Mesh,
    group: Group,
    ranks: Sequence[int],
    *,
    reduce: np.ufunc | None,
    sequence: int,
    text: str,
    seconds: float,
) -> None:
    """Run a plan. All ranks of the group do so at once, with the same schedule.

    Args:
        spaces: the given 1-D contiguous arrays and, if the plan has scratch, an array for it, of one dtype.
        ranks: group rank → rank in the mesh.
        reduce: how reducing moves combine.
        sequence, text: the collective's number in its group and its call in words, the same on every rank.
        seconds: how long it may take.
    Raises: see Mesh.wait. After an error the arrays' contents are undefined, but no longer touched.
    """
    end = time.monotonic() + seconds
    for step in plan.steps:
        pending: list[Pending] = []
        for peer, r, exposed in step.sends:
            payload = r.of(spaces).view(np.uint8).data
            send = mesh.send(group, ranks[peer], COLLECTIVE_TAG, payload, sequence=sequence, step=step.index, text=text)
            if not send.done:
                if exposed:
                    send.payload = memoryview(bytes(payload))
                pending.append(send)
        for source, target, reducing in step.local:
            _combine(target.of(spaces), source.of(spaces), reduce if reducing else None)
        for peer, r, reducing in step.receives:
            pending.append(
                mesh.receive(
                    group,
                    ranks[peer],
                    COLLECTIVE_TAG,
                    r.of(spaces),
                    reduce=reduce if reducing else None,
                    sequence=sequence,
                    step=step.index,
                    text=text,
                )
            )
            if step.in_order:
                mesh.wait(pending, group, seconds=end - time.monotonic(), what=text)
                pending.clear()
        if pending:
            mesh.wait(pending, group, seconds=end - time.monotonic(), what=text)


def _combine(target: Array, source: Array, reduce: np.ufunc | None) -> None:
    if reduce is None:
        target[...] = source
    else:
        reduce(target, source, out=target)
