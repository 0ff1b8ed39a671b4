"""Part of the reader on a board: long arrays are added up on their way from rank 0 to the last one, piece by piece.

Nobody copies its array to the board: each adds it to the sum that lies there, and takes the result. So memory is read
and written as rarely as can be, and a card that shares its core has a long piece of work whenever it is its turn.
"""

from __future__ import annotations

from superpod.collectives.meeting import Meeting, Task

_PIECE = 256 << 10  # bytes of a piece


def relay(meeting: Meeting, task: Task, first: int, last: int) -> None:
    """Add up all arrays, rank 0's first, in a room for as many pieces as are under way; take elements first … last − 1.

    A rank takes a piece `lag` pieces after it has added to it, so that in the meantime the others can. Rank 0 writes
    piece i over i − kept. Before that it has seen the last rank, and so everyone, through with i − lag − 1; who is, has
    taken i − 2·lag − 2, and kept >= 2·lag + 2.
    """
    array, own, end = task.spaces[0], meeting.rank, meeting.world_size - 1
    reduce, size = task.reduce, array.size
    assert reduce is not None
    piece, kept = _pieces(meeting, array.itemsize)
    count, lag = -(-size // piece), 0 if own == end else kept // 2 - 1
    room = meeting.relay(count)[: piece * kept * array.itemsize].view(array.dtype)
    for i in range(count + lag):
        if i < count:
            part = array[i * piece : (i + 1) * piece]
            total = room[i % kept * piece :][: part.size]
            if own == 0:
                total[...] = part
            else:
                meeting.wait_for(own - 1, i + 1)
                reduce(total, part, out=total)
            meeting.tell(i + 1)
        if (k := i - lag) < 0:
            continue
        low, high = max(first, k * piece), min(last, (k + 1) * piece)
        if low < high or own == 0 or k + 1 == count:
            meeting.wait_for(end, k + 1)
        if low < high:
            place = k % kept * piece - k * piece
            array[low:high] = room[place + low : place + high]


def _pieces(meeting: Meeting, itemsize: int) -> tuple[int, int]:
    """Elements of a relay's piece, and how many pieces there is room for: so many that all cards can work at once."""
    room, kept = meeting.slot * meeting.world_size, 2 * max(8, meeting.world_size) + 2
    piece = max(1, min(_PIECE, room // kept // 64 * 64) // itemsize)
    return piece, min(kept, room // (piece * itemsize))


def chain(meeting: Meeting, task: Task) -> None:
    """Rank 0 writes a piece, every other adds its own to it, and all take it when the last one has."""
    array = task.spaces[0]
    relay(meeting, task, 0, array.size)
