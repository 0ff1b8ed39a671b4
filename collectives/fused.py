"""The reader for cards of one host: runs a direct schedule on a board, all its messages in one meeting (or two).

What the schedule sends, lies in the sender's slot, where all who need it read it; what it adds up, is added up in the
schedule's order, so the results are the same bits as those of `execute`. Long arrays go piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf

import numpy as np

from superpod.collectives.execute import Array
from superpod.collectives.meeting import Meeting as Meeting
from superpod.collectives.meeting import Task as Task
from superpod.collectives.relay import is_relay, relay
from superpod.collectives.rows import longest_of, put, rows_of, take
from superpod.collectives.window import Window

_SHORT = 16 << 10  # bytes of a row that are added up in one go with others: what numpy adds to then stays in the cache
_EXCHANGED = (
    32 << 10,
    512 << 10,
)  # bytes for one card, and of one card: larger pieces leave the cache before they are read
_PAIR = 1 << 20  # bytes of a piece between two cards
_READ = {"all_to_all": (64 << 10, 1024), "all_gather": (512 << 10, 4), "scatter": (256 << 10, 1024)}
"""Bytes of a block from which on it is read where it lies, and the cards up to which that takes less time."""


def _fold(reduce: np.ufunc, rows: Array, into: Array) -> None:
    """Add up as many elements of each row as `into` has, rank 0's first.

    A column of a single element would be a contiguous axis to numpy, which it adds up in another order. And unless told
    to begin with the first row, it begins with 0, so that a sum of zeros with a minus would have none.
    """
    if into.size != 1:
        reduce.reduce(rows[:, : into.size], axis=0, out=into, initial=None)
    elif rows.shape[1] > 1:
        into[...] = reduce.reduce(rows[:, :2], axis=0, initial=None)[:1]
    else:
        into[...] = rows[0]
        for row in rows[1:]:
            reduce(into, row, out=into)


def _fold_arrays(meeting: Meeting, task: Task, *, here: bool) -> None:
    """Add up all arrays, rank 0's first, if the result is wanted `here`."""
    array = task.spaces[0]
    assert task.reduce is not None
    step = max(2, meeting.slot // array.itemsize // 2 * 2)
    for start in range(0, max(1, array.size), step):
        part = array[start : start + step]
        slots = meeting.begin().view(array.dtype)[:, : max(2, part.size)]
        slots[meeting.rank, : part.size] = part
        meeting.meet()
        if here:
            _fold(task.reduce, slots, part)


def _one_shot(meeting: Meeting, task: Task) -> None:
    """Everyone adds up all arrays: rank 0's first."""
    _fold_arrays(meeting, task, here=True)


def _reduce_star(meeting: Meeting, task: Task) -> None:
    """The root adds up all arrays, rank 0's first; long ones are added up on the way to it."""
    if is_relay(meeting.world_size, (array := task.spaces[0]).nbytes):
        relay(meeting, task, 0, array.size if meeting.rank == task.root else 0)
        return
    _fold_arrays(meeting, task, here=meeting.rank == task.root)


def _two_shot(meeting: Meeting, task: Task) -> None:
    """Rank r adds up chunk r: its own first, then that of r − 1, r − 2, …; in a second meeting all take the results.

    A chunk's rows lie in that order and in one piece, and the owner's stays where it is.
    """
    if meeting.world_size == 2:
        _two_shot_pair(meeting, task)
        return
    array, bounds, n, own = task.spaces[0], task.banks[0], meeting.world_size, meeting.rank
    assert task.reduce is not None
    longest = bounds[1] - bounds[0]
    step = max(1, meeting.slot // array.itemsize // n)
    for start in range(0, longest, step):
        width = min(step, longest - start)
        rows = meeting.begin().reshape(-1).view(array.dtype)[: n * n * width].reshape(n * n, width)
        if own + 1 < n:  # chunk c's row of rank r is its (c − r) mod n-th
            put(rows[(own + 1) * n + 1 :: n + 1][: n - own - 1], array, bounds[own + 1 :], start)
        if own:
            put(rows[n - own :: n + 1][:own], array, bounds[: own + 1], start)
        meeting.meet()
        mine = array[bounds[own] + start : max(bounds[own] + start, min(bounds[own] + start + width, bounds[own + 1]))]
        _sum_up(task.reduce, mine, rows[own * n : own * n + n], own)
        results = meeting.begin().reshape(-1).view(array.dtype)[: n * width].reshape(n, width)
        results[own, : mine.size] = mine
        meeting.meet()
        if own:
            take(results[:own], array, bounds[: own + 1], start)
        if own + 1 < n:
            take(results[own + 1 :], array, bounds[own + 1 :], start)


def _sum_up(reduce: np.ufunc, total: Array, rows: Array, own: int) -> None:
    """Add rows 1, 2, … to `total`; row 0 is room. Long rows one by one, short ones in one go.

    numpy's sum has the operands the other way round than the schedule where the lower rank comes later, which only a
    product of complex numbers can tell.
    """
    n, size = len(rows), total.size
    if size * total.itemsize <= _SHORT and size > 1 and isinstance(reduce, np.ufunc):
        rows[0, :size] = total
        reduce.reduce(rows[:, :size], axis=0, out=total, initial=None)
        return
    for k in range(1, n):
        row = rows[k, :size]
        one, other = (row, total) if (own - k) % n < own else (total, row)
        reduce(one, other, out=total)


def _two_shot_pair(meeting: Meeting, task: Task) -> None:
    """Both add up the other's chunk, where it lies: half of each array crosses over, and comes back as the sum."""
    array, (_, middle, size), own = task.spaces[0], task.banks[0], meeting.rank
    assert task.reduce is not None
    step = max(1, min(meeting.slot, _PAIR) // array.itemsize)
    edges = ((0, middle), (middle, size))
    (first, last), (start, end) = edges[own], edges[1 - own]
    for k in range(0, middle, step):
        slots = meeting.begin().view(array.dtype)
        mine, other = array[first + k : min(first + k + step, last)], array[start + k : min(start + k + step, end)]
        slots[own, : mine.size] = mine
        meeting.meet()
        theirs = slots[1 - own, : other.size]
        one, two = (other, theirs) if own == 0 else (theirs, other)
        task.reduce(one, two, out=other)
        theirs[...] = other
        meeting.meet()
        mine[...] = slots[own, : mine.size]


def _two_shot_ordered(meeting: Meeting, task: Task) -> None:
    """As two_shot, but chunks are added up from rank 0's on; in a relay, if they are long or the cards few."""
    array, bounds, own, n = task.spaces[0], task.banks[0], meeting.rank, meeting.world_size
    if n == 2:  # the lower rank's operand is the first one anyway
        _two_shot_pair(meeting, task)
        return
    if is_relay(n, array.nbytes):
        relay(meeting, task, 0, array.size)
        return
    for start, width, block in _folded_blocks(meeting, task):
        results = meeting.begin().view(array.dtype)[:, :width]
        results[own, : block.size] = block
        meeting.meet()
        take(results, array, bounds, start)


def _reduce_scatter_ordered(meeting: Meeting, task: Task) -> None:
    """Rank r adds up block r, rank 0's first; long ones are added up on the way to it."""
    if is_relay(meeting.world_size, task.spaces[0].nbytes):
        bounds, own = task.banks[0], meeting.rank
        relay(meeting, task, bounds[own], bounds[own + 1])
        return
    for _ in _folded_blocks(meeting, task):
        pass


def _folded_blocks(meeting: Meeting, task: Task) -> Iterator[tuple[int, int, Array]]:
    """Put everyone's chunks on the board and add up this rank's, rank 0's first: at once, or piece by piece.

    Yields where in the chunks a piece starts, its longest length, and this rank's sum where it belongs.
    """
    array, bounds, n, own = task.spaces[0], task.banks[0], meeting.world_size, meeting.rank
    home = array[bounds[own] : bounds[own + 1]] if task.into is None else task.into
    assert task.reduce is not None
    longest = longest_of(bounds)
    if array.nbytes <= meeting.slot:  # then a slot holds it as it is
        arrays = meeting.begin().view(array.dtype)[:, : array.size]
        arrays[own] = array
        meeting.meet()
        if home.size:
            _fold(task.reduce, arrays[:, bounds[own] :], home)
        yield 0, longest, home
        return
    step = max(1, meeting.slot // array.itemsize // n)
    for start in range(0, longest, step):
        slots = rows_of(meeting, array.dtype, n, min(step, longest - start))
        put(slots[own], array, bounds, start)
        meeting.meet()
        block = home[start : start + slots.shape[2]]
        _fold(task.reduce, slots[:, own], block)
        yield start, slots.shape[2], block


def _add_up(reduce: np.ufunc, total: Array, rows: Array, own: int, order: range) -> None:
    """Add the others' rows to `total`, this rank's; of two operands the lower rank's is the first."""
    n = rows.shape[0]
    for q in order:
        one, other = (rows[q % n], total) if q % n < own else (total, rows[q % n])
        reduce(one, other, out=total)


def _broadcast(meeting: Meeting, task: Task) -> None:
    array = task.spaces[0].view(np.uint8)
    for start in range(0, array.size, meeting.slot):
        part = array[start : start + meeting.slot]
        slots = meeting.begin()
        if meeting.rank == task.root:
            slots[task.root, : part.size] = part
        meeting.meet()
        if meeting.rank != task.root:
            part[...] = slots[task.root, : part.size]


def _reduce(meeting: Meeting, task: Task) -> None:
    """The root adds root + 1 first, root − 1 last."""
    array, n, root = task.spaces[0], meeting.world_size, task.root
    assert task.reduce is not None
    step = max(1, meeting.slot // array.itemsize)
    for start in range(0, array.size, step):
        part = array[start : start + step]
        slots = meeting.begin().view(array.dtype)[:, : part.size]
        slots[meeting.rank] = part
        meeting.meet()
        if meeting.rank == root:
            _add_up(task.reduce, part, slots, root, range(root + 1, root + n))


def _reduce_scatter(meeting: Meeting, task: Task) -> None:
    """Rank r adds up block r: its own first, then that of r − 1, r − 2, …"""
    array, bounds, n, own = task.spaces[0], task.banks[0], meeting.world_size, meeting.rank
    home = array[bounds[own] : bounds[own + 1]] if task.into is None else task.into
    assert task.reduce is not None
    step = max(1, meeting.slot // array.itemsize // n)
    for start in range(0, longest_of(bounds), step):
        slots = rows_of(meeting, array.dtype, n, min(step, longest_of(bounds) - start))
        put(slots[own], array, bounds, start)
        meeting.meet()
        block = home[start : start + slots.shape[2]]
        if task.into is not None:
            block[...] = array[bounds[own] :][start : start + block.size]
        _add_up(task.reduce, block, slots[:, own, : block.size], own, range(own - 1, own - n, -1))


def _all_gather(meeting: Meeting, task: Task) -> None:
    array, bounds, own = task.spaces[0], task.banks[0], meeting.rank
    if (window := _window("all_gather", meeting, task, [bounds[own]] * meeting.world_size)) is not None:
        for rank in _others(meeting):
            window.read(rank, array[bounds[rank] : bounds[rank + 1]])
        window.close()
        return
    for start in range(0, longest_of(bounds), meeting.slot):
        slots = meeting.begin()
        mine = array[bounds[own] + start : min(bounds[own] + start + meeting.slot, bounds[own + 1])]
        slots[own, : mine.size] = mine
        meeting.meet()
        take(slots[:, : min(meeting.slot, longest_of(bounds) - start)], array, bounds, start)


def _all_to_all(meeting: Meeting, task: Task) -> None:
    (array, out), (blocks, places), n, own = task.spaces, task.banks, meeting.world_size, meeting.rank
    if (window := _window("all_to_all", meeting, task, blocks[:n])) is not None:
        out[places[own] : places[own + 1]] = array[blocks[own] : blocks[own + 1]]
        for rank in _others(meeting):
            window.read(rank, out[places[rank] : places[rank + 1]])
        window.close()
        return
    longest = longest_of(blocks)  # of equal blocks; others the ranks would not agree on
    step = _exchanged(meeting.slot, n)
    for start in range(0, longest, step):
        slots = rows_of(meeting, np.dtype(np.uint8), n, min(step, longest - start))
        put(slots[own], array, blocks, start)
        meeting.meet()
        take(slots[:, own], out, places, start)


def _gather(meeting: Meeting, task: Task) -> None:
    bounds, own = task.banks[0], meeting.rank
    first, last = bounds[own : own + 2]
    block = task.spaces[0][first:last] if task.own is None else task.own
    for start in range(0, longest_of(bounds), meeting.slot):
        slots, mine = meeting.begin(), block[start : start + meeting.slot]
        slots[own, : mine.size] = mine
        meeting.meet()
        if own == task.root:
            take(slots[:, : min(meeting.slot, longest_of(bounds) - start)], task.spaces[0], bounds, start)


def _scatter(meeting: Meeting, task: Task) -> None:
    """All blocks lie in the root's slot, which has its own already."""
    bounds, own, root = task.banks[0], meeting.rank, task.root
    starts = bounds[:-1] if own == root else [0] * meeting.world_size
    if (window := _window("scatter", meeting, task, starts)) is not None:
        if task.own is not None:
            window.read(root, task.own)
        window.close()
        return
    step = max(1, meeting.slot // meeting.world_size)
    for start in range(0, longest_of(bounds), step):
        rows = rows_of(meeting, np.dtype(np.uint8), meeting.world_size, min(step, longest_of(bounds) - start))[root]
        if own == root:
            put(rows, task.spaces[0], bounds, start)
        meeting.meet()
        if task.own is not None:
            part = task.own[start : start + rows.shape[1]]
            part[...] = rows[own, : part.size]


def _window(collective: str, meeting: Meeting, task: Task, starts: Sequence[int]) -> Window | None:
    """If the blocks are so long that it pays, and it is possible. `starts`: where that for each rank begins."""
    longest = longest_of(task.banks[0])
    array = task.spaces[0] if task.own is None else task.own
    return meeting.window(array, starts) if reads(collective, meeting.world_size, longest) else None


def reads(collective: str, n: int, block: int) -> bool:
    """Whether blocks of so many bytes are read where they lie, if n cards can do that."""
    least, most = _READ.get(collective, (inf, 0))
    return block >= least and 1 < n <= most


def _others(meeting: Meeting) -> Iterator[int]:
    """All but this rank, beginning with the next, so that not all read from one."""
    return ((meeting.rank + k) % meeting.world_size for k in range(1, meeting.world_size))


def _barrier(meeting: Meeting, task: Task) -> None:
    meeting.begin()
    meeting.meet()


def takes_one_meeting(collective: str, algorithm: str, n: int, slot: int, block: int) -> bool:
    """Whether a collective with blocks of one length is a single meeting, and what it is depends on its slots alone.

    Args:
        n: its cards; slot: the room of one [B].
        block: a rank's, where blocks are exchanged, or else the array [B].
    """
    match collective, algorithm:
        case "barrier", _:
            return True
        case "all_reduce", "one_shot":
            return block <= slot
        case "reduce", "star":
            return 0 < block <= slot and not is_relay(n, block)
        case (("broadcast" | "gather"), "direct"):
            return 0 < block <= slot
        case "reduce_scatter", "direct_ordered":
            return 0 < n * block <= slot and not is_relay(n, n * block)
        case (("all_gather" | "all_to_all" | "scatter"), "direct"):
            room = {"all_gather": slot, "all_to_all": _exchanged(slot, n), "scatter": slot // n}[collective]
            return 0 < block <= room and not reads(collective, n, block)
    return False


def _exchanged(slot: int, n: int) -> int:
    """Bytes for one card of a piece of an all_to_all."""
    return max(1, min(slot // n, max(_EXCHANGED[0], _EXCHANGED[1] // n)))


def fused(collective: str, algorithm: str, *, equal_blocks: bool) -> Fused | None:
    """How an algorithm runs on a board; None if it must go through messages."""
    if collective == "all_to_all" and not equal_blocks:  # no rank knows how many pieces the others' blocks have
        return None
    return FUSED.get((collective, algorithm))


Fused = Callable[[Meeting, Task], None]
FUSED: Mapping[tuple[str, str], Fused] = {
    ("all_reduce", "one_shot"): _one_shot,
    ("all_reduce", "two_shot"): _two_shot,
    ("all_reduce", "two_shot_ordered"): _two_shot_ordered,
    ("broadcast", "direct"): _broadcast,
    ("reduce", "direct"): _reduce,
    ("reduce", "star"): _reduce_star,
    ("reduce_scatter", "direct"): _reduce_scatter,
    ("reduce_scatter", "direct_ordered"): _reduce_scatter_ordered,
    ("all_gather", "direct"): _all_gather,
    ("all_to_all", "direct"): _all_to_all,
    ("gather", "direct"): _gather,
    ("scatter", "direct"): _scatter,
    ("barrier", "dissemination"): _barrier,
}
