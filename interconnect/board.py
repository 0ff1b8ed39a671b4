"""A board: shared memory on which the cards of one host meet. Everybody writes into a slot of its own, says so, and
reads the others' when all have done it. Nothing goes through a socket, and a meeting costs one synchronisation.

Meetings are numbered from 1. There are two sets of slots, used in turn: who has come to a meeting over one set has
finished reading the other, which may then be overwritten. A card says that it has come by writing its stamp, 64 bits
that name the meeting and what it was called for: when all stamps are equal, all have come, and for the same reason.

Order of memory: a slot is written before its stamp (x86-64 keeps stores in order; elsewhere there are no boards). Who
is about to sleep says so, and looks once more; who comes last looks for sleepers. Between the store and the load of
both there is a full fence, so that one of the two sees the other.

In a relay, cards come to a meeting without waiting for the others: each says how far it has got, and waits until one
other has got as far as it needs. Who gets on wakes the next rank, the last rank everybody, or one that it knows waits.

The memory has no name in any file system, so nothing is left of it when the last card is gone, however it went.

_board.c does the hot part of this in compiled code, where it could be built; cards with and without it may meet.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from superpod.interconnect import futex
from superpod.interconnect.cores import cores
from superpod.interconnect.errors import BadFrame
from superpod.interconnect.exchange import Exchange, Relay
from superpod.interconnect.shm_memory import Memory

try:
    from superpod.interconnect._board import Seat
except ImportError:  # there was no C compiler where superpod was installed
    Seat = None  # type: ignore[assignment, misc]

Bytes = npt.NDArray[np.uint8]
Waits = tuple[float, float, Callable[[int, int], None]]

TEXT = 256  # bytes of a card's call in words
_PAGE = 4096
_LINE = 64
_FILE = re.compile(r"/proc/\d+/fd/\d+")
_POST, _BELL = 2 * _LINE // 8, _LINE // 8  # in words: from one card's post to the next, and to the bell in it
_TOKEN, _TOKEN_BYTES = 16, 16  # where in the first line the board's own name lies, and how long it is
_CLOSED_GROUP, _LEFT_JOB = 1, 2
_MEETINGS, _SET, _STAMP, _TOLD, _STATE = range(5)
"""A card's own words: its meetings so far; the slots and stamp of the latest; pieces of all relays so far."""
_SPINS = 500  # looks at the stamps before giving way, some 10 µs, if every card has a core of its own


def possible() -> bool:
    """Whether cards of this machine can meet on a board."""
    return platform.machine() == "x86_64" and futex.available() and hasattr(os, "memfd_create")


class Board:
    """One card's view of a board. One thread at a time."""

    def __init__(
        self, memory: Memory, descriptor: int, rank: int, world_size: int, slot: int, *, native: bool = True
    ) -> None:
        """Lay a board out in `memory`; `slot` is the room of one card in bytes. Takes its descriptor over.

        `native`: with compiled code, where there is some.
        """
        self.rank, self.world_size, self.slot = rank, world_size, slot
        self._state = np.zeros(_STATE, np.uint64).data  # as compiled code has it, too
        self._fd = descriptor
        whole = np.frombuffer(memory.view, np.uint8)
        head = _head(world_size)
        words = _round(8 * world_size, _LINE)
        self._address = whole.ctypes.data
        self._bell = whole[:4].view(np.uint32)
        self._token = whole[_TOKEN : _TOKEN + _TOKEN_BYTES]
        self._asleep = whole[_LINE : _LINE + world_size]
        base = _LINE + _round(world_size, _LINE)
        self._departed = whole[base : base + world_size]
        base += _round(world_size, _LINE)
        self.seat: Seat | None = None
        if native and Seat is not None:
            spins = _SPINS if world_size <= cores() else 0
            posts = base + 2 * words + TEXT * world_size
            places = {"asleep": _LINE, "stamps_0": base, "stamps_1": base + words, "posts": posts}
            rooms = {"slots_0": head, "slots_1": head + slot * world_size}
            self.seat = Seat(memory.view, self._state, rank, world_size, slot, **places, **rooms, spins=spins)
        stamps = [whole[base + i * words : base + i * words + 8 * world_size] for i in range(2)]
        self._own_stamps = [part.view(np.uint64)[rank : rank + 1] for part in stamps]
        self._stamps = [part.data for part in stamps]
        self._words = [part.view(np.uint64).data for part in stamps]
        base += 2 * words
        self._texts = whole[base : base + TEXT * world_size].reshape(world_size, TEXT)
        base += TEXT * world_size
        self._posts = whole[base : base + 2 * _LINE * world_size].view(np.uint64).data  # how far, bell, for what
        self._bells = self._address + base + _LINE
        self._slots: list[Bytes] = [
            whole[head + i * slot * world_size : head + (i + 1) * slot * world_size].reshape(world_size, slot)
            for i in range(2)
        ]
        self._text = ""
        self._nobody = bytes(world_size)
        self._fence = threading.Lock()

    @staticmethod
    def create(rank: int, world_size: int, slot: int, *, native: bool = True) -> Board:
        """A new board; the others open it by its address. Raises OSError when there is no memory for it."""
        memory, descriptor = Memory.create(nbytes(world_size, slot))
        board = Board(memory, descriptor, rank, world_size, slot, native=native)
        board._token[:] = np.frombuffer(secrets.token_bytes(_TOKEN_BYTES), np.uint8)
        return board

    @property
    def address(self) -> str:
        """What another process of this user on this host needs to open the board."""
        return f"/proc/{os.getpid()}/fd/{self._fd}#{self._token.tobytes().hex()}"

    @staticmethod
    def open(address: str, rank: int, world_size: int, slot: int, *, native: bool = True) -> Board:
        """The board that another card has created. Raises OSError, also for what is none, or another one by now."""
        file, _, token = address.partition("#")
        if _FILE.fullmatch(file) is None:
            raise OSError(errno.EINVAL, "this is no board's address")
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise OSError(errno.EPERM, "it is another user's")
            size = nbytes(world_size, slot)
            board = Board(Memory.adopt(descriptor, size, size), descriptor, rank, world_size, slot, native=native)
            if board._token.tobytes().hex() != token:
                raise OSError(errno.ESTALE, "another board is there now")
        except BadFrame as error:
            os.close(descriptor)
            raise OSError(errno.EINVAL, str(error)) from error
        except OSError:
            os.close(descriptor)
            raise
        return board

    def close_descriptor(self) -> None:
        """When all have opened the board: the memory stays mapped."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def begin(self) -> Bytes:
        """The other set of slots, shape (world_size, slot): write into your own row, then come to a meeting."""
        self._state[_SET] ^= 1
        return self._slots[self._state[_SET]]

    def come(self, tag: int, text: str) -> bytes:
        """Say that this card has written its slot. Returns what all stamps together must be.

        Args:
            tag: 32 bits, equal on all cards if and only if their calls are.
            text: the call in words, for those who find that it is another one than theirs.
        """
        self._say(text)
        self._state[_MEETINGS] = meetings = self.meetings + 1
        self._state[_STAMP] = stamp = (meetings & 0xFFFFFFFF) << 32 | tag
        half, wanted = meetings & 1, self.wanted
        if self.seat is not None:
            self.seat.come(half, stamp)
            return wanted
        self._own_stamps[half][0] = stamp
        with self._fence:  # an atomic operation: a full fence
            pass
        if self._asleep.tobytes() != self._nobody and self._stamps[half] == wanted:
            self._bell[0] += np.uint32(1)
            futex.wake(self._address)
        return wanted

    def _say(self, text: str) -> None:
        if text is not self._text:
            encoded = text.encode(errors="replace")[:TEXT]
            row = self._texts[self.rank]
            row[: len(encoded)] = np.frombuffer(encoded, np.uint8)
            row[len(encoded) :] = 0
            self._text = text

    @property
    def meetings(self) -> int:
        """How many this card has come to."""
        return self._state[_MEETINGS]

    @property
    def wanted(self) -> bytes:
        """What all stamps of this card's latest meeting together must be."""
        return self._state[_STAMP].to_bytes(8, "little") * self.world_size

    def exchange(
        self, tag: int, text: str, what: Exchange, arrays: tuple[Any, ...], patience: float, seconds: float
    ) -> bool:
        """A whole meeting in compiled code: give, come, watch, take. Call it only if there is a `seat`.

        Args:
            tag, text: as for `come`.
            arrays: contiguous, or their addresses.
            patience, seconds: as for `watch`.
        Returns:
            Whether it is done; if not, not all have come, and when they have, comes `take`.
        """
        assert self.seat is not None
        self._say(text)
        return self.seat.meet(tag, what, arrays, patience, seconds)

    def take(self, what: Exchange, arrays: tuple[Any, ...]) -> None:
        """All have come to the meeting of an `exchange`."""
        assert self.seat is not None
        self.seat.take(what, arrays)

    def relay(self, tag: int, text: str, what: Relay, arrays: tuple[Any, ...], waits: Waits) -> None:
        """A whole relay in compiled code. Call it only if there is a `seat`.

        Args:
            tag, text: as for `come`.
            arrays: as for `exchange`.
            waits: patience, seconds, and what then waits for a rank to have told so many pieces.
        """
        assert self.seat is not None
        self._say(text)
        self.seat.relay(tag, what, arrays, *waits)

    def begin_relay(self, pieces: int) -> tuple[Bytes, int]:
        """The other set of slots as one piece, for all cards together, and the pieces of all relays before this one."""
        before = self._state[_TOLD]
        self._state[_TOLD] = before + pieces
        return self.begin().reshape(-1), before

    def withdraw(self) -> None:
        """This card has given up: whoever comes after it waits in vain, and is not told that all have come."""
        self._own_stamps[self.meetings & 1][0] = 0

    def met(self, wanted: bytes) -> bool:
        """Whether all have come."""
        return self._stamps[self.meetings & 1] == wanted

    def watch(self, wanted: bytes, patience: float, seconds: float) -> bool:
        """Whether all have come within `seconds`: giving the processor to others for `patience`, then asleep."""
        if self.seat is not None:
            return self.seat.watch(self.meetings & 1, self._state[_STAMP], patience, seconds)
        stamps, give_way = self._stamps[self.meetings & 1], os.sched_yield
        start = now = time.monotonic()
        while True:
            for _ in range(16):
                if stamps == wanted:
                    return True
                give_way()
            now = time.monotonic()
            if now >= start + patience:
                return now < start + seconds and self.sleep(wanted, start + seconds - now)

    def sleep(self, wanted: bytes, seconds: float) -> bool:
        """Whether all have come, after sleeping until somebody rings or for `seconds`."""
        bell = int(self._bell[0])
        self._asleep[self.rank] = 1
        with self._fence:
            pass
        try:
            if not self.met(wanted):
                futex.wait(self._address, bell, seconds)
        finally:
            self._asleep[self.rank] = 0
        return self.met(wanted)

    def tell(self, count: int, wakes: int | None = None) -> None:
        """Say how far this card is; numbers only grow. It wakes one card, or else the next one, the last card all."""
        posts, rank, last = self._posts, self.rank, self.world_size - 1
        posts[rank * _POST] = count
        with self._fence:
            pass
        for waiting in (wakes,) if wakes is not None else range(last) if rank == last else (rank + 1,):
            if posts[waiting * _POST + _BELL] and posts[waiting * _POST + _BELL + 1] <= count:
                posts[waiting * _POST + _BELL] = 0
                futex.wake(self._bells + waiting * 2 * _LINE)

    def reached(self, rank: int, count: int) -> bool:
        """Whether a card has come to this card's meeting, for the same reason, and got as far as `count`."""
        half = self.meetings & 1
        return self._posts[rank * _POST] >= count and self._words[half][rank] == self._words[half][self.rank]

    def watch_for(self, rank: int, count: int, seconds: float) -> bool:
        """As `watch`, for one card's progress."""
        if self.reached(rank, count):
            return True
        give_way, end = os.sched_yield, time.monotonic() + seconds
        while True:
            for _ in range(16):
                give_way()
                if self.reached(rank, count):
                    return True
            if time.monotonic() >= end:
                return False

    def sleep_for(self, rank: int, count: int, seconds: float) -> bool:
        """As `sleep`, for one card's progress."""
        bell = self.rank * _POST + _BELL
        self._posts[bell + 1] = count
        self._posts[bell] = 1
        with self._fence:
            pass
        try:
            if not self.reached(rank, count):
                futex.wait(self._bells + self.rank * 2 * _LINE, 1, seconds)
        finally:
            self._posts[bell] = 0
        return self.reached(rank, count)

    def depart(self, *, job: bool) -> None:
        """This card comes no more: it has closed the group, or left the job. Whoever waits for it will look."""
        self._departed[self.rank] = _LEFT_JOB if job else _CLOSED_GROUP

    def departed(self) -> dict[int, bool]:
        """The cards that come no more → whether they have left the job."""
        marks = self._departed.tobytes()  # others may be leaving just now
        return {} if marks == self._nobody else {r: mark == _LEFT_JOB for r, mark in enumerate(marks) if mark}

    def absent(self) -> list[int]:
        """The cards that have not come to this meeting."""
        stamps = np.frombuffer(self._stamps[self.meetings & 1], np.uint64)
        return [int(r) for r in np.flatnonzero(stamps >> np.uint64(32) != self.meetings & 0xFFFFFFFF)]

    def at_odds(self) -> tuple[int, str] | None:
        """A card that has come for another reason than this one, and its call in words."""
        stamps = np.frombuffer(self._stamps[self.meetings & 1], np.uint64)
        here = stamps >> np.uint64(32) == self.meetings & 0xFFFFFFFF
        others = np.flatnonzero(here & (stamps != stamps[self.rank]))
        if not others.size:
            return None
        other = int(others[0])
        return other, self._texts[other].tobytes().rstrip(b"\0").decode(errors="replace")


def nbytes(world_size: int, slot: int) -> int:
    """The size of a board. Only what is written takes memory."""
    return _round(_head(world_size) + 2 * slot * world_size, _PAGE)


def _head(world_size: int) -> int:
    words = _round(8 * world_size, _LINE)
    return _round(_LINE + 2 * _round(world_size, _LINE) + 2 * words + (TEXT + 2 * _LINE) * world_size, _PAGE)


def _round(number: int, unit: int) -> int:
    return -(-number // unit) * unit
