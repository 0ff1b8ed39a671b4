"""A group's board with its cards around it: when it can be had, and how one waits for the others at it.

Who waits, first gives the processor to the others for a moment, then sleeps. While it sleeps it looks up now and then:
for messages, for failures, for the launcher's abort flag, and for cards that have come for another reason.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import inf
from typing import Any, NamedTuple, NoReturn

import numpy as np

from superpod.collectives.execute import COLLECTIVE_TAG, Array
from superpod.collectives.window import Window, can_read_all, share
from superpod.interconnect.board import Board
from superpod.interconnect.errors import CollectiveMismatch, PeerLost
from superpod.interconnect.exchange import KINDS, Exchange, Relay
from superpod.interconnect.group import Group, at, mismatch
from superpod.interconnect.mesh import PROBE_AFTER, Mesh
from superpod.interconnect.streams import Receive

_NAPS = (0.002, 0.25)  # seconds: the first sleep after a message, and the longest
_LOOKS = 1.0  # seconds between two looks at every card that is absent
_ASKED = 4  # cards before it in the ring that a card asks where they are
_MEMORY = 256 << 20  # bytes that a board may take; what no array has needed takes none
_SLOT = 2 << 20  # bytes of one card at the most; half of it costs 64 cards half as much time again at 16 MiB
_OFF = 4096 + 64  # bytes less than a power of two: else all slots begin in the same lines of a cache, which holds few


_ODD = 0x9E3779B1  # times the call's number: calls of equal words and other numbers have other tags


def slot_bytes(world_size: int) -> int:
    """The room of one card on a board: a multiple of 64 bytes."""
    return max(4096, min(_SLOT, _MEMORY // (2 * world_size) // 4096 * 4096) - _OFF)


class _Waits(NamedTuple):
    """How one waits [s]: giving way before sleep, the same and asleep before the first look around, the first sleep."""

    patience: tuple[float, float]
    nap: float


_HERE = _Waits((0.001, 0.003), _NAPS[0])
_AMONG_HOSTS = _Waits((0.0001, 0.0001), 0.02)  # messages come first: whoever waits for them leaves them the processor


class Table:
    """One card's seat. Satisfies Meeting (see fused.py). One thread at a time, but `absent` from any.

    Attributes:
        among_hosts: whether these cards are one host's, and others come between their meetings.
        board: where they meet.
        windows: whether all can read all; None: that was not tried yet.
    """

    def __init__(
        self,
        mesh: Mesh,
        group: Group,
        ranks: Sequence[int],
        text: str,
        sequence: int,
        seconds: float,
        *,
        among_hosts: bool = False,
    ) -> None:
        """Take a seat: the group's rank 0 brings the board, the others open it.

        Args:
            ranks: the members' in the mesh.
            among_hosts: see the attribute.
            text, sequence, seconds: as for `call`, of the first one.
        Raises:
            DeadlineExceeded when rank 0 has not brought it within `seconds`, PeerLost when it cannot be opened, and
            what Mesh.look raises.
        """
        self._mesh, self._group, self._ranks = mesh, group, ranks
        self._text, self._sequence, self.among_hosts = text, sequence, among_hosts
        self.rank, self.world_size = ranks.index(mesh.rank), len(ranks)
        self.slot = slot_bytes(self.world_size)
        name = f"board/{group.ident}/{group.life}"  # a group may be made again under its old name
        if self.rank == 0:
            self.board = Board.create(0, self.world_size, self.slot)
            mesh.publish(name, self.board.address)
        else:
            (host,) = self._asked([0])
            address = mesh.find_named(name, group, host, seconds)
            mesh.look(group, [host], probe=False)  # it may be over by now
            try:
                self.board = Board.open(address, self.rank, self.world_size, self.slot)
            except OSError as error:
                self._miss(host, error)
            self.board.close_descriptor()
        group.parting = lambda job: self.board.depart(job=job)
        self.begin = self.board.begin
        self._tag, self._end, self._limit = 0, 0.0, 0.0
        self._patience, self._nap = _AMONG_HOSTS if among_hosts else _HERE
        self._waiting: list[int] | None = None  # while it sleeps: whom it needs, if all have come
        self._past = 0  # pieces of all relays before this one
        self.windows: bool | None = None

    def _miss(self, host: Receive, error: OSError) -> NoReturn:
        """The board cannot be opened. Raises why: what the others say, if they say something."""
        text = (
            f"rank {host.peer} cannot be met in shared memory by rank {self._mesh.rank} ({error.strerror}): it has "
            "left, or the two are not in one container; then set SUPERPOD_LINK=zmq for all"
        )
        self._lose(host, text)

    def _lose(self, peer: Receive, text: str) -> NoReturn:
        self._mesh.look(self._group, [peer], probe=True)  # if it is gone, this finds out
        self._group.suspect(PeerLost(text), weak=True)
        self._mesh.settle(self._group)

    def call(self, text: str, sequence: int, seconds: float) -> None:
        """What the next meetings are for, and how long all of them may take."""
        self._text, self._sequence, self._limit = text, sequence, seconds
        self._tag = _crc(text) + sequence * _ODD & 0xFFFFFFFF
        self._end = time.monotonic() + seconds

    @property
    def native(self) -> bool:
        """Whether there is compiled code, so that `exchange` can be called."""
        return self.board.seat is not None

    def compiled(self, text: str) -> dict[str, Any]:
        """What compiled code needs to meet for calls of these words: see _express.c."""
        waits = dict(zip(("patience", "seconds"), self._patience, strict=True))
        return {"seat": self.board.seat, "board": self.board, "crc": _crc(text)} | waits

    def exchange(
        self, text: str, sequence: int, seconds: float, started: float, what: Exchange, arrays: tuple[Any, ...]
    ) -> None:
        """`call`, one that began at `started`, and a meeting, see Board.exchange. Raises what Mesh.wait raises."""
        self.call(text, sequence, seconds)
        self._end = started + seconds
        if not self.board.exchange(self._tag, text, what, arrays, *self._patience):
            self._wait(partial(self.board.sleep, self.board.wanted), [])
            self.board.take(what, arrays)

    def late(self, text: str, sequence: int, seconds: float, started: float) -> None:
        """Not all have come to an exchange within the first `seconds` of `compiled`. Returns or raises as `meet`.

        `started`: when the call began, by time.monotonic(); all its waits together take `seconds` at the most.
        """
        self.call(text, sequence, seconds)
        self._end = started + seconds
        self._wait(partial(self.board.sleep, self.board.wanted), [])

    def late_for(self, text: str, sequence: int, seconds: float, started: float, rank: int, count: int) -> None:
        """As `late`, for a rank that has not told `count` pieces of all relays."""
        self.call(text, sequence, seconds)
        self._end = started + seconds
        self._reach(rank, count)

    def meet(self) -> None:
        """Raises what Mesh.wait raises."""
        wanted = self.board.come(self._tag, self._text)
        if not self.board.watch(wanted, *self._patience):
            self._wait(partial(self.board.sleep, wanted), [])

    def window(self, array: Array, starts: Sequence[int]) -> Window | None:
        """See Meeting. Raises what Mesh.wait raises."""
        if self.windows is None:
            self.windows = can_read_all(self)
        return share(self, array, starts, self.unreadable) if self.windows else None

    def unreadable(self, rank: int, error: OSError) -> NoReturn:
        """A rank's array cannot be read where it lies: its card is gone, most likely. Raises why."""
        self.board.withdraw()
        (peer,) = self._asked([rank])
        self._lose(peer, f"rank {peer.peer}'s array cannot be read by rank {self._mesh.rank} ({error.strerror})")

    def relay(self, pieces: int) -> Array:
        """See Meeting. The counts of all relays go on from one another, so none is ever taken back."""
        room, self._past = self.board.begin_relay(pieces)
        self.board.come(self._tag, self._text)
        return room

    def carry(self, reduce: Any, array: Array, into: Array, first: int, piece: int, window: int) -> bool:
        """See Meeting. Raises what Mesh.wait raises."""
        kind = KINDS.get(array.dtype.name) if reduce is np.add and array.dtype.isnative else None
        if not self.native or kind is None:
            return False
        size = array.itemsize
        bounds = first * size, (first + into.size) * size
        what = Relay(kind, 0, 1, size, array.nbytes, *bounds, piece * size, window)
        self.board.relay(self._tag, self._text, what, (array, into), (*self._patience, self._reach))
        return True

    def tell(self, count: int, wakes: int | None = None) -> None:
        """See Meeting."""
        self.board.tell(self._past + count, wakes)

    def wait_for(self, rank: int, count: int) -> None:
        """Raises what Mesh.wait raises."""
        self._reach(rank, self._past + count)

    def _reach(self, rank: int, count: int) -> None:
        if not self.board.watch_for(rank, count, self._patience[0]):
            self._wait(partial(self.board.sleep_for, rank, count), [rank])

    def leave(self) -> None:
        """The group is over."""
        self.board.close_descriptor()

    def absent(self) -> list[int]:
        """The ranks, in the mesh, that this card is waiting for."""
        return [self._ranks[r] for r in self._late()] if self._waiting is not None else []

    def _wait(self, sleep: Callable[[float], bool], needed: list[int]) -> None:
        """Until `sleep` says so; `needed` are to blame when all have come."""
        self._waiting = needed
        try:
            self._sleep(sleep)
        except BaseException:
            self.board.withdraw()
            raise
        finally:
            self._waiting = None

    def _sleep(self, sleep: Callable[[float], bool]) -> None:
        start = now = time.monotonic()
        probe_at, look_at, nap = start + PROBE_AFTER, start + _LOOKS, self._nap
        while not sleep(min(nap, max(self._end - now, 0.001))):
            now = time.monotonic()
            for rank, job in self.board.departed().items():
                self._mesh.note_departure(self._group, self._ranks[rank], job=job)
            odd = self.board.at_odds() if self._group.due == inf else None
            if odd is not None:
                self._group.suspect(self._mismatch(*odd))  # the other one, asked now, knows where its call was made
                self._mesh.look(self._group, self._asked([odd[0]]), probe=True)
            if now >= probe_at:
                probe_at = now + max(1.0, now - start)
                self._mesh.look(self._group, self._asked(self._neighbours(self._late())), probe=True)
            moved, doubt = self._mesh.glance(self._group)
            if doubt or now >= look_at:
                look_at = now + _LOOKS
                self._mesh.look(self._group, self._awaited(), probe=False)
            if now >= self._end:
                if self._group.due < inf:
                    self._mesh.settle(self._group)
                raise self._mesh.too_late(self._awaited(), self._limit, self._text)
            nap = _NAPS[0] if moved else min(2 * nap, _NAPS[1])  # who is sent something takes it, or its sender waits

    def _neighbours(self, absent: Sequence[int]) -> list[int]:
        """Those of the absent whom this card asks: others ask the others, or each would be connected to everybody."""
        return [r for r in absent if 0 < (self.rank - r) % self.world_size <= _ASKED]

    def _awaited(self) -> list[Receive]:
        """What the absent are asked for, in the mesh's terms."""
        return self._asked(self._late())

    def _late(self) -> list[int]:
        return self.board.absent() or self._waiting or []

    def _asked(self, ranks: Sequence[int]) -> list[Receive]:
        ident, number, text = self._group.ident, self._sequence, self._text
        return [Receive((self._ranks[r], ident, COLLECTIVE_TAG), _NOTHING, None, number, 0, text) for r in ranks]

    def _mismatch(self, other: int, theirs: str) -> CollectiveMismatch:
        number, place = f" (#{self._sequence})", self._group.place(COLLECTIVE_TAG, self._sequence, self._text)
        mine = self._text + number + at(place)
        return mismatch(self._group, (self._ranks[other], theirs + number), (self._mesh.rank, mine))


@lru_cache(maxsize=1024)
def _crc(text: str) -> int:
    return zlib.crc32(text.encode(errors="replace"))


_NOTHING: Array = np.empty(1, np.uint8)
