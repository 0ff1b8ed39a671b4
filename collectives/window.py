"""Windows: each card of a board lets the others read an array of its own where it lies, where the system permits it.

One copy instead of two, by way of the board. Whether all can read all is found out once, at a board's first window; if
one cannot, none does, so that all go the same way.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import NoReturn, Protocol

import numpy as np

from superpod.collectives.execute import Array
from superpod.interconnect import peer_memory

_TOKEN = 16  # bytes
_ROW = 16 + _TOKEN  # bytes that a card tells: process, address, token


class Meeting(Protocol):
    """What of a meeting is needed here, see meeting.py."""

    rank: int
    world_size: int

    def begin(self) -> Array: ...

    def meet(self) -> None: ...


class Window:
    """The arrays of all cards. Nobody changes its own before all have closed it."""

    def __init__(self, meeting: Meeting, told: Array, miss: Callable[[int, OSError], NoReturn]) -> None:
        """`told`: a row a card: process and address; `miss` raises why a card's array cannot be read any more."""
        self._meeting, self._told, self._miss = meeting, told.tolist(), miss

    def read(self, rank: int, offset: int, into: Array) -> None:
        """Fill a contiguous array from byte `offset` of a card's on. Raises what `miss` does."""
        pid, address = self._told[rank]
        try:
            peer_memory.read(pid, address + offset, into)
        except OSError as error:
            self._miss(rank, error)

    def close(self) -> None:
        """This card has read all it wants. Returns when the others have, too."""
        self._meeting.begin()
        self._meeting.meet()


def can_read_all(meeting: Meeting) -> bool:
    """Whether every card can read every other's memory: the same answer on all. Takes two meetings."""
    peer_memory.consent()
    token = np.frombuffer(secrets.token_bytes(_TOKEN), np.uint8)
    slots, own = meeting.begin(), meeting.rank
    slots[own, :16].view(np.uint64)[:] = os.getpid(), token.ctypes.data
    slots[own, 16:_ROW] = token
    meeting.meet()
    rows = slots[:, :_ROW].copy()
    can = all(_readable(row) for rank, row in enumerate(rows) if rank != own)
    answers = meeting.begin()
    answers[own, 0] = can
    meeting.meet()
    return bool(answers[:, 0].all())


def _readable(row: Array) -> bool:
    pid, address = row[:16].view(np.uint64).tolist()
    return peer_memory.readable(pid, address, row[16:].tobytes())


def share(meeting: Meeting, array: Array, miss: Callable[[int, OSError], NoReturn]) -> Window:
    """Tell the others where a contiguous array lies, and be told theirs. Takes a meeting, and its close another."""
    told = meeting.begin()[:, :16]
    told[meeting.rank].view(np.uint64)[:] = os.getpid(), array.ctypes.data
    meeting.meet()
    return Window(meeting, told.copy().view(np.uint64), miss)
