"""Part of the reader on a board: long arrays are added up on their way from card to card, piece by piece.

Either from rank 0 to the last one, or each card's share of them from itself all the way around.

Nobody copies its array to the board: each adds it to the sum that lies there, and takes the result. So memory is read
and written as rarely as can be, and a card that shares its core has a long piece of work whenever it is its turn.
"""

from __future__ import annotations

from itertools import pairwise

from superpod.collectives.execute import Bounds
from superpod.collectives.meeting import Meeting, Task

_LEAST = ((4, 64 << 10), (64, 256 << 10), (128, 512 << 10))
"""Up to so many cards, a relay takes less time than meetings from so many bytes on; for more cards from 1 MiB on."""
_PIECE = 256 << 10  # bytes of a piece: half or twice as many cost 8 cards up to a third more time at 1 MiB
_WINDOWS = 4  # of pieces, that there is room for
_LAPS = 2  # pieces of every share that there is room for: one on its way, one whose sum has not been taken yet


def is_relay(n: int, nbytes: int) -> bool:
    """Whether n cards go by a relay, where an algorithm may, when they reduce arrays of so many bytes."""
    return nbytes >= next((least for most, least in _LEAST if n <= most), 1 << 20)


def relay(meeting: Meeting, task: Task, first: int, last: int) -> None:
    """Add up all arrays, rank 0's first, in a room for as many pieces as are under way; take elements first … last − 1.

    These are put into `task.into`, or else where they are in the array. A rank takes a window of pieces when it has
    added to the next one, so that in the meantime the others can. There is room for four: rank 0, who writes window w
    over w − 4, has seen the last rank, and so everyone, through with w − 2, and who is, has taken w − 4 before.
    """
    array, own, end = task.spaces[0], meeting.rank, meeting.world_size - 1
    into = array[first:last] if task.into is None else task.into
    reduce, size = task.reduce, array.size
    assert reduce is not None
    piece, window = pieces(meeting, array.itemsize)
    count, width = max(1, -(-size // piece)), piece * window  # an empty one, too: nobody leaves before all have come
    windows = -(-count // window)
    if meeting.carry(reduce, array, into, first, piece, window):
        return
    room = meeting.relay(count)[: _WINDOWS * width * array.itemsize].view(array.dtype)
    for w in range(windows + 1):
        for i in range(w * window, min((w + 1) * window, count)):
            part = array[i * piece : (i + 1) * piece]
            total = room[i % (_WINDOWS * window) * piece :][: part.size]
            if own == 0:
                total[...] = part
            else:
                meeting.wait_for(own - 1, i + 1)
                reduce(total, part, out=total)
            meeting.tell(i + 1)
        low, high = max(first, (w - 1) * width), min(last, w * width)
        if w and (low < high or own == 0 or w == windows):
            meeting.wait_for(end, min(w * window, count))
        if w and low < high:
            start = (w - 1) % _WINDOWS * width - (w - 1) * width
            into[low - first : high - first] = room[start + low : start + high]


def pieces(meeting: Meeting, itemsize: int) -> tuple[int, int]:
    """Elements of a piece of a relay, and pieces of a window: so many are under way that all cards can work at once."""
    room = meeting.slot * meeting.world_size // _WINDOWS
    window = max(4, meeting.world_size // _WINDOWS)
    piece = max(1, min(_PIECE, room // window // 64 * 64) // itemsize)
    return piece, min(window, room // (piece * itemsize))


def relay_shares(meeting: Meeting, task: Task, shares: Bounds) -> None:
    """Card r gets the sum of share r of all arrays, where it is in its own: its own first, then that of r − 1, r − 2, …

    In each lap a piece of every share goes around: card c begins its own, then adds to that of c + 1, which has come
    from there, and so on; last it takes the sum of the lap before, to which c + 1 was the last to add. Card c writes
    its share of a lap over that of two laps ago, which it has taken. Who is through has seen all begin the last lap.
    """
    array, own, n, reduce = task.spaces[0], meeting.rank, meeting.world_size, task.reduce
    assert reduce is not None
    longest = max(last - first for first, last in pairwise(shares))
    width = max(1, min(_PIECE // array.itemsize, meeting.slot // array.itemsize // _LAPS))
    laps, before, after = max(1, -(-longest // width)), (own - 1) % n, (own + 1) % n
    room = meeting.relay(laps * n)[: _LAPS * n * width * array.itemsize].view(array.dtype).reshape(_LAPS, n, width)
    for lap in range(laps + 1):
        for turn in range(n if lap < laps else 0):
            share = (own + turn) % n
            start = shares[share] + lap * width
            part = array[start : max(start, min(start + width, shares[share + 1]))]
            total = room[lap % _LAPS, share, : part.size]
            if turn == 0:
                total[...] = part
            else:
                meeting.wait_for(after, lap * n + turn)
                one, other = (part, total) if own < share else (total, part)
                reduce(one, other, out=total)
            meeting.tell(lap * n + turn + 1, before)
        if lap:
            meeting.wait_for(after, lap * n)
            start = shares[own] + (lap - 1) * width
            mine = array[start : max(start, min(start + width, shares[own + 1]))]
            mine[...] = room[(lap - 1) % _LAPS, own, : mine.size]
