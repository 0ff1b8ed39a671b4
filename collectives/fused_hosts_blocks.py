"""Part of the reader for groups on several hosts: blocks of all_gather and reduce_scatter that meet within a host.

Between hosts a block goes from card to card; each card of a host holds those of some cards of every other host, and its
own. What a host's cards hold they hand out to one another, or have added up by one another, on their board.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from superpod.collectives.algorithms.host_sizes import Hosts
from superpod.collectives.execute import Array, Bounds
from superpod.collectives.fused import Meeting, Task


def holdings(sizes: Sequence[int], host: int) -> list[list[int]]:
    """Which ranks' blocks each card of a host holds, ascending."""
    by = Hosts(sum(sizes), sizes)
    first, held = int(by.first[host]), list[list[int]]([] for _ in range(by.sizes[host]))
    for home, k in enumerate(by.sizes):
        for block, holder in enumerate(by.owner(host, np.arange(k), k).tolist()):
            held[holder - first].append(int(by.first[home]) + block)
    return held


def hand_out(meeting: Meeting, task: Task, held: list[list[int]]) -> None:
    """Each card gives the others the blocks that it holds."""
    array, own = task.spaces[0], meeting.rank
    for places, rows in _rows(meeting, array, task.banks[0], max(map(len, held))):
        for row, block in zip(rows[own], held[own], strict=False):
            piece = array[places[block]]
            row[: piece.size] = piece
        meeting.meet()
        for card, blocks in enumerate(held):
            for row, block in zip(rows[card], blocks if card != own else (), strict=False):
                piece = array[places[block]]
                piece[...] = row[: piece.size]


def add_up(meeting: Meeting, task: Task, held: list[list[int]]) -> None:
    """Each card adds up the blocks that it holds: its own array's first, then the next card's, and so on around."""
    array, own, k, reduce = task.spaces[0], meeting.rank, meeting.world_size, task.reduce
    assert reduce is not None
    others = [block for card, blocks in enumerate(held) if card != own for block in blocks]
    for places, rows in _rows(meeting, array, task.banks[0], len(task.banks[0]) - 1):
        for block in others:
            piece = array[places[block]]
            rows[own, block, : piece.size] = piece
        meeting.meet()
        for block in held[own]:
            total = array[places[block]]
            for card in ((own + distance) % k for distance in range(1, k)):
                row = rows[card, block, : total.size]
                one, other = (row, total) if card < own else (total, row)
                reduce(one, other, out=total)


def _rows(meeting: Meeting, array: Array, bounds: Bounds, count: int) -> Iterator[tuple[list[slice], Array]]:
    """Piece by piece of all blocks: where it lies in the array, by block; the slots as (world_size, count, width)."""
    width = max(1, meeting.slot // array.itemsize // count)
    for start in range(0, max(last - first for first, last in pairwise(bounds)), width):
        places = [slice(min(first + start, last), min(first + start + width, last)) for first, last in pairwise(bounds)]
        slots = meeting.begin().view(array.dtype)[:, : count * width]
        yield places, slots.reshape(meeting.world_size, count, width)
