"""The reader for groups on several hosts: what stays within a host goes over its board, the rest in messages.

The first and last steps of a schedule that knows hosts are those within them. They are a meeting of the host's cards
instead; the steps between run as they are (`Task.across`). Contributions are added up in the schedule's order, so the
results are the same bits as those of `execute`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from superpod.collectives.algorithms.host_sizes import Hosts, runs
from superpod.collectives.execute import Array, Bounds
from superpod.collectives.fused import FUSED, Fused, Meeting, Task
from superpod.collectives.fused_hosts_blocks import add_up, hand_out, holdings
from superpod.collectives.hosts import Layout
from superpod.collectives.relay import relay_shares
from superpod.collectives.schedule import Schedule

_MEETING = 32 << 10  # bytes of an array for each card up to which meetings take less time than a relay

_fold_at, _spread = FUSED["reduce", "star"], FUSED["broadcast", "direct"]


class Way(NamedTuple):
    """How a schedule runs over boards: `fused` meets within the hosts and calls for `across`, what is between."""

    fused: Fused
    across: Schedule


def on_hosts(schedule: Schedule, layout: Layout, rank: int) -> Way | None:
    """The way for a rank of a group with this layout; None if it must all go through messages."""
    find = _WAYS.get((schedule.collective, schedule.algorithm))
    if find is None or layout.count == 1 or max(layout.sizes) == 1:
        return None
    if not layout.can(schedule.collective, schedule.algorithm):  # it is not the one for these hosts
        return None
    return find(schedule, layout, rank)


def _leaders(schedule: Schedule, layout: Layout, rank: int) -> Way:
    """To the first card of each host, across, and back."""

    def fused(meeting: Meeting, task: Task) -> None:
        at_leader = replace(task, root=0)
        _fold_at(meeting, at_leader)
        _across(task)
        _spread(meeting, at_leader)

    return Way(fused, _cut(schedule, 1, schedule.nsteps - 1))


def _broadcast(schedule: Schedule, layout: Layout, rank: int) -> Way:
    """Across, then from the leader, who is the root on its host."""
    members = layout.with_rank(rank)
    leader = members.index(schedule.root) if schedule.root in members else 0

    def fused(meeting: Meeting, task: Task) -> None:
        _across(task)
        _spread(meeting, replace(task, root=leader))

    return Way(fused, _cut(schedule, 0, schedule.nsteps - 1))


def _reduce(schedule: Schedule, layout: Layout, rank: int) -> Way:
    """To the leader, who is the root on its host, then across."""
    members = layout.with_rank(rank)
    leader = members.index(schedule.root) if schedule.root in members else 0
    fold = FUSED["reduce", "direct"] if leader else _fold_at

    def fused(meeting: Meeting, task: Task) -> None:
        fold(meeting, replace(task, root=leader))
        _across(task)

    return Way(fused, _cut(schedule, 1, schedule.nsteps))


def _all_gather(schedule: Schedule, layout: Layout, rank: int) -> Way:
    """Across, then each card hands what it has got to its host."""
    held = holdings(layout.sizes, layout.hosts[rank])

    def fused(meeting: Meeting, task: Task) -> None:
        _across(task)
        if meeting.world_size > 1:
            hand_out(meeting, task, held)

    return Way(fused, _cut(schedule, 0, 1))


def _reduce_scatter(schedule: Schedule, layout: Layout, rank: int) -> Way:
    """The same backwards."""
    held = holdings(layout.sizes, layout.hosts[rank])

    def fused(meeting: Meeting, task: Task) -> None:
        if meeting.world_size > 1:
            add_up(meeting, task, held)
        _across(task)

    return Way(fused, _cut(schedule, 1, 2))


def _rails(schedule: Schedule, layout: Layout, rank: int) -> Way:
    """Each card of a host adds up its share, meets those who have the same one, and hands it to its host."""
    own, most = layout.sizes[layout.hosts[rank]], max(layout.sizes)
    edges = [-(-card * most // own) * layout.count for card in range(own + 1)]  # chunks at which shares begin

    def fused(meeting: Meeting, task: Task) -> None:
        (array,), (bounds,) = task.spaces, task.banks
        shares: Bounds = tuple(bounds[edge] for edge in edges)
        if own > 1:
            _add_shares(meeting, task, shares)
        _across(task)
        if own > 1:
            _collect_shares(meeting, array, shares)

    return Way(fused, _cut(schedule, 1, schedule.nsteps - 1))


def _all_to_all(schedule: Schedule, layout: Layout, rank: int) -> Way:
    """Each card takes from its host's what is for itself, and what it sends to other hosts for all of them."""
    host, members = layout.hosts[rank], layout.with_rank(rank)
    run = runs(Hosts(len(layout.hosts), layout.sizes), host)
    mine, k = run.to[run.speaker == rank], len(members)
    here = slice(members[0], members[0] + k)

    def fused(meeting: Meeting, task: Task) -> None:
        (array, out), length = (space.reshape(len(layout.hosts), -1) for space in task.spaces[:2]), task.banks[0][1]
        packed = task.spaces[2].reshape(len(mine), k, length) if k > 1 and len(mine) and length else None
        step = max(1, meeting.slot // len(array))
        for start in range(0, length, step):
            piece = slice(start, min(start + step, length))
            slots = meeting.begin()[:, : len(array) * (piece.stop - start)].reshape(k, len(array), -1)
            slots[meeting.rank] = array[:, piece]
            meeting.meet()
            out[here, piece] = slots[:, rank]
            if packed is not None:
                packed[:, :, piece] = slots[:, mine].swapaxes(0, 1)
        _across(task)

    return Way(fused, _cut(schedule, 1, 2))


def _add_shares(meeting: Meeting, task: Task, shares: Bounds) -> None:
    """Card r adds up share r: its own first, which stays where it is, then that of r − 1, r − 2, …

    The others' shares lie in a card's slot in their order from the next card on.
    """
    (array,), n, own = task.spaces, meeting.world_size, meeting.rank
    if array.nbytes > _MEETING * n:
        relay_shares(meeting, task, shares)
        return
    assert task.reduce is not None
    for width, pieces in _pieces(array, shares, meeting.slot // (n - 1)):
        rows = meeting.begin().view(array.dtype)[:, : (n - 1) * width].reshape(n, n - 1, width)
        for k in range(n - 1):
            piece = pieces[(own + 1 + k) % n]
            rows[own, k, : piece.size] = piece
        meeting.meet()
        total = pieces[own]
        for k in range(n - 1):  # to card own − 1 − k this one is the k-th after it
            card = (own - 1 - k) % n
            row = rows[card, k, : total.size]
            one, other = (row, total) if card < own else (total, row)
            task.reduce(one, other, out=total)


def _collect_shares(meeting: Meeting, array: Array, shares: Bounds) -> None:
    """Each card hands its share to the others."""
    own = meeting.rank
    for _, pieces in _pieces(array, shares, meeting.slot):
        slots = meeting.begin().view(array.dtype)
        slots[own, : pieces[own].size] = pieces[own]
        meeting.meet()
        for card, piece in enumerate(pieces):
            if card != own:
                piece[...] = slots[card, : piece.size]


def _pieces(array: Array, shares: Bounds, nbytes: int) -> Iterator[tuple[int, list[Array]]]:
    """Cut all shares into pieces of at most so many bytes: how long one may be, and one of each share, at a time."""
    width, spans = max(1, nbytes // array.itemsize), list(pairwise(shares))
    for start in range(0, max(last - first for first, last in spans), width):
        yield width, [array[min(first + start, last) : min(first + start + width, last)] for first, last in spans]


def _across(task: Task) -> None:
    assert task.across is not None
    task.across()


def _cut(schedule: Schedule, first: int, last: int) -> Schedule:
    """Steps first to last − 1 of a schedule."""
    return replace(schedule, nsteps=last - first, build=lambda s: schedule.build(first + s), program=None, traffic=None)


_WAYS: dict[tuple[str, str], Callable[[Schedule, Layout, int], Way]] = {
    ("all_gather", "rails"): _all_gather,
    ("all_reduce", "leaders"): _leaders,
    ("all_reduce", "rails"): _rails,
    ("all_to_all", "rails"): _all_to_all,
    ("barrier", "leaders"): _leaders,
    ("broadcast", "leaders"): _broadcast,
    ("reduce", "leaders"): _reduce,
    ("reduce_scatter", "rails"): _reduce_scatter,
}
