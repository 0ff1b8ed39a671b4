"""A card's inbox in shared memory: where its peers leave word that there is something for it, and it that it sleeps.

Every connection has a slot, a word of its own that its sender changes with every frame. The slots lie together, so one
comparison tells whether there is news, however many peers there are. Before a card sleeps it says so in the inbox's
first word; who leaves word then rings its bell, an eventfd that came with the inbox.

Order of memory. A sender writes its slot and then looks whether the card sleeps; the card says that it sleeps and then
looks at the slots again. x86-64 may carry out such a load before the store, so there is a full fence in between, on
both sides: then one of the two sees the other. Whoever rings takes the word back first, so that one rings and not
everybody; one that is stopped in between delays the others' news until it goes on or dies, which the card hears of, or
until its wait ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from superpod.interconnect.errors import BadFrame
from superpod.interconnect.shm_memory import Memory

MOST_SLOTS = 1 << 16
_FIRST = 8  # the first slot's word; the first line is the sleeper's alone
NBYTES = 8 * (_FIRST + MOST_SLOTS)
_ASLEEP = 0

_fence = threading.Lock()  # taking a lock is an atomic operation, and on x86-64 each of those is a full fence


class Inbox:
    """The owner's view."""

    def __init__(self) -> None:
        """Raises OSError when there are no descriptors left."""
        self._memory, descriptor = Memory.create(NBYTES)
        try:
            self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            os.close(descriptor)
            raise
        self.descriptors = [descriptor, self.bell]
        self._words = self._memory.words
        self._used = 0
        self._slots = self._memory.view[:0]
        self._seen = b""

    def take_slot(self) -> int:
        """A slot for one more connection. Raises BadFrame when there is none left."""
        if self._used == MOST_SLOTS:
            raise BadFrame(f"{MOST_SLOTS} connections are the most that a card can have")
        slot, self._used = self._used, self._used + 1
        self._slots = self._memory.view[8 * _FIRST : 8 * (_FIRST + self._used)]
        self._seen += bytes(8)
        return slot

    def has_news(self) -> bool:
        """Whether a slot has changed since `news`. Any thread."""
        return self._slots.tobytes() != self._seen

    def news(self) -> list[int]:
        """The slots that have changed since the last call."""
        now = self._slots.tobytes()
        if now == self._seen:
            return []
        changed = int.from_bytes(now, "little") ^ int.from_bytes(self._seen, "little")
        self._seen = now
        slots = []
        while changed:
            slot = (changed & -changed).bit_length() - 1 >> 6
            slots.append(slot)
            changed = changed >> 64 * (slot + 1) << 64 * (slot + 1)
        return slots

    def fall_asleep(self) -> bool:
        """Say that this card sleeps; False if it must not, because there is news."""
        self._words[_ASLEEP] = 1
        with _fence:
            pass
        return not self.has_news()

    def wake_up(self) -> None:
        """Say that this card does not sleep any more."""
        self._words[_ASLEEP] = 0

    def ring(self) -> None:
        """Wake this card. Any thread."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.bell, 1)

    def hush(self) -> None:
        """Take back the ringing that has been heard."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    def close(self) -> None:
        """Close the descriptors; the memory goes with the last view of it."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class PeersInbox:
    """A sender's view of another card's inbox."""

    __slots__ = ("_bell", "_slot", "_words")

    def __init__(self, memory: int, bell: int, slot: int) -> None:
        """`memory` and `bell` are descriptors; the bell's is taken over. Raises BadFrame, and takes over nothing."""
        if not 0 <= slot < MOST_SLOTS:
            raise BadFrame(f"slot {slot} does not exist")
        self._words = Memory.adopt(memory, NBYTES, 2 * NBYTES).words
        self._bell = bell
        self._slot = _FIRST + slot

    def tell(self, count: int) -> None:
        """Leave word that there is more; `count` differs from the last time."""
        words = self._words
        words[self._slot] = count
        with _fence:
            pass
        if words[_ASLEEP]:
            words[_ASLEEP] = 0
            self.ring()

    def compiled(self) -> dict[str, Any]:
        """What compiled code needs to do as `tell` does: see _passage.h."""
        return {"words": self._words, "slot": self._slot, "bell": self._bell}

    def ring(self) -> None:
        """Wake the card."""
        with contextlib.suppress(OSError):  # full, as nobody ever hushes it, or not a bell at all
            os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Close the bell's descriptor."""
        os.close(self._bell)
