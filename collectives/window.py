"""Windows: each card of a board lets the others read an array of its own where it lies, where the system permits it.

One copy instead of two, by way of the board. Whether all can read all is found out once, at a board's first window; if
one cannot, none does, so that all go the same way.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

import numpy as np

from superpod.collectives.execute import Array
from superpod.interconnect import peer_memory

_TOKEN = 16  # bytes
_TOLD = 16  # bytes that a card tells another: process, address


class Meeting(Protocol):
    """What of a meeting is needed here, see meeting.py."""

    rank: int
    world_size: int

    def begin(self) -> Array: ...

    def meet(self) -> None: ...


class Window:
    """The arrays of all cards. Nobody changes its own before all have closed it."""

    def __init__(self, meeting: Meeting, told: Array, miss: Callable[[int, OSError], NoReturn]) -> None:
        """Arguments:

        told: a row a card: its process, and where lies what this one reads.
        miss: raises why a card's array cannot be read any more.
        """
        self._meeting, self._told, self._miss = meeting, told.tolist(), miss

    def read(self, rank: int, into: Array) -> None:
        """Fill a contiguous array with what a card has shown to this one. Raises what `miss` does."""
        pid, address = self._told[rank]
        try:
            peer_memory.read(pid, address, into)
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
    slots[own, :_TOLD].view(np.uint64)[:] = os.getpid(), token.ctypes.data
    slots[own, _TOLD : _TOLD + _TOKEN] = token
    meeting.meet()
    rows = slots[:, : _TOLD + _TOKEN].copy()
    can = all(_readable(row) for rank, row in enumerate(rows) if rank != own)
    answers = meeting.begin()
    answers[own, 0] = can
    meeting.meet()
    return bool(answers[:, 0].all())


def _readable(row: Array) -> bool:
    pid, address = row[:_TOLD].view(np.uint64).tolist()
    return peer_memory.readable(pid, address, row[_TOLD:].tobytes())


def share(meeting: Meeting, array: Array, starts: Sequence[int], miss: Callable[[int, OSError], NoReturn]) -> Window:
    """Show every card a part of a contiguous array, from byte `starts[rank]` on, and be shown theirs.

    Takes a meeting, and its close another.
    """
    n, own, slots = meeting.world_size, meeting.rank, meeting.begin()
    table = slots[own, : n * _TOLD].view(np.uint64).reshape(n, 2)
    table[:, 0], table[:, 1] = os.getpid(), array.ctypes.data + np.array(starts, np.uint64)
    meeting.meet()
    return Window(meeting, slots[:, own * _TOLD : (own + 1) * _TOLD].copy().view(np.uint64), miss)
