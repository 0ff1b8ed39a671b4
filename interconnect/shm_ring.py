"""A ring of frames in shared memory, for one sender and one receiver. No sockets here.

A frame is a prefix of two 32-bit lengths, the header, and from the next multiple of 64 on the payload, in one piece.
One that does not fit before the ring's end starts at its beginning, and a mark says so. Positions are bytes since the
ring was made: they only grow. Whenever the sender finds the ring empty it goes on at the next multiple of the ring's
size, its base, so that a receiver who keeps up leaves most of the ring untouched and the rest of it in the caches. A
ring that is full is left for good: the last mark in it says that the next frame lies in another one. Both ends are here
in Python, and in C in _ring.c for where there is a compiler: they understand each other.

Order of memory. The sender writes a frame, the base, and then the tail; the receiver reads the tail, then the base and
the frame, and reads the frame before it writes the head: x86-64 keeps such pairs in order, and compilers do not
exchange them, as each is a call of CPython's. Nobody waits for a word in the ring.
"""

from __future__ import annotations

import struct

from superpod.interconnect.errors import BadFrame
from superpod.interconnect.link import Buffer

LINE = 64  # bytes that caches move at once
HEAD = 2 * LINE  # bytes before the frames: a line that the sender writes, and one for the receiver
_TAIL, _BASE, _HEAD = 0, 1, 8  # as 64-bit words
_PREFIX = struct.Struct("<II")
_TO_THE_START, _NEXT_RING = 0xFFFFFFFF, 0xFFFFFFFE
_SMALL = 2048  # bytes; up to here one copy of everything is faster than two of the parts
_NEAR = 8 << 10  # bytes from the beginning, within which going back there would not pay
_PADDING = bytes(LINE)


def room_of(header_nbytes: int, nbytes: int) -> int:
    """The bytes that a frame takes in a ring, and behind it."""
    return ((8 + header_nbytes + 63) & -64) + ((nbytes + 63) & -64) + LINE


class _End:
    """Attributes: memory: the ring's; capacity: its bytes that are for frames."""

    def __init__(self, view: memoryview) -> None:
        """`view`: the ring's memory, of a multiple of LINE bytes; all zeros at first."""
        self.memory = view
        self.capacity = len(view) - HEAD
        self._frames = view[HEAD:]
        self._words = view[:HEAD].cast("Q")


class Outgoing(_End):
    """The sender's end."""

    def __init__(self, view: memoryview) -> None:
        super().__init__(view)
        self._tail = 0
        self._head = 0  # as it was when this end looked last, or the base, if that is more

    def write(self, header: bytes, payload: Buffer) -> bool:
        """Put a frame into the ring; False if there is no room. Raises BadFrame for a head that cannot be."""
        nbytes = len(payload)
        start = (8 + len(header) + 63) & -64
        size = start + ((nbytes + 63) & -64)
        tail, capacity, frames = self._tail, self.capacity, self._frames
        place = tail % capacity
        if place > _NEAR or place + size + LINE > capacity or tail + size + LINE - self._head > capacity:
            self._look()
            used, rest = tail - self._head, capacity - place
            lost = rest if used and size + LINE > rest else 0
            if used + lost + size + LINE > capacity:  # a line is kept free for the last mark
                return False
            if lost:
                frames[place : place + 8] = _PREFIX.pack(_TO_THE_START, 0)
                tail, place = tail + rest, 0
            elif used == 0 and place:
                tail = self._head = self._words[_BASE] = tail + rest
                place = 0
        prefix = _PREFIX.pack(len(header), nbytes)
        if nbytes <= _SMALL:
            frame = b"".join((prefix, header, _PADDING[: start - 8 - len(header)], payload))
            frames[place : place + len(frame)] = frame
        else:
            frames[place : place + 8 + len(header)] = prefix + header
            frames[place + start : place + start + nbytes] = payload
        self._tail = self._words[_TAIL] = tail + size
        return True

    def leave(self) -> None:
        """Say that the next frame lies in another ring. Nothing can be written into this one any more."""
        place = self._tail % self.capacity
        self._frames[place : place + 8] = _PREFIX.pack(_NEXT_RING, 0)
        self._tail = self._words[_TAIL] = self._tail + LINE

    def _look(self) -> None:
        head = self._words[_HEAD]
        if head > self._tail:
            raise BadFrame(f"torn ring: it was read up to {head} of {self._tail} B")
        self._head = max(head, self._head)


class Incoming(_End):
    """The receiver's end.

    Attributes:
        left: the sender goes on in another ring, and everything in this one has been read.
    """

    def __init__(self, view: memoryview) -> None:
        super().__init__(view)
        self.left = False
        self._next = 0  # where the next frame begins
        self._head = 0
        self._tail = 0  # as it was when this end looked last

    def read(self) -> tuple[bytes, memoryview] | None:
        """The next frame, whose payload stays in the ring until `release`; None if there is none now.

        Raises BadFrame when what is there cannot be a frame; nothing more can be read then.
        """
        while True:
            if self._next == self._tail and not self._look():
                return None
            start = self._next
            place = start % self.capacity
            header_nbytes, nbytes = _PREFIX.unpack_from(self._frames, place)
            if header_nbytes < _NEXT_RING:
                break
            self._follow(header_nbytes, place)
        payload = (8 + header_nbytes + 63) & -64
        size = payload + ((nbytes + 63) & -64)
        if start + size > self._tail or place + size > self.capacity:
            raise BadFrame(f"torn ring: frame of {header_nbytes} + {nbytes} B at {start} of {self._tail} B")
        self._next = start + size
        frames = self._frames
        header = frames[place + 8 : place + 8 + header_nbytes].tobytes()  # a copy, so that it stays what was checked
        return header, frames[place + payload : place + payload + nbytes]

    def release(self) -> None:
        """Give back the room of what was read."""
        self._words[_HEAD] = self._head = self._next

    def stop(self) -> None:
        """Read nothing more, whatever the sender writes."""
        self._words = memoryview(bytearray(HEAD)).cast("Q")
        self._words[_TAIL] = self._tail = self._next

    def _follow(self, mark: int, place: int) -> None:
        self._next += self.capacity - place if mark == _TO_THE_START else LINE
        self.left = mark == _NEXT_RING
        if self._next > self._tail or (self.left and self._next != self._tail):
            raise BadFrame(f"torn ring: goes on at {self._next} of {self._tail} B")
        if self.left:
            self.stop()

    def _look(self) -> bool:
        """Whether something new has been written."""
        tail = self._words[_TAIL]
        if tail == self._tail:
            return False
        base = self._words[_BASE]
        if base > self._next and base % self.capacity == 0 and self._next == self._head:
            self._next = self._head = base
        if not self._next < tail <= self._head + self.capacity or tail % LINE:
            raise BadFrame(f"torn ring: written up to {tail} B after {self._next} of {self.capacity} B")
        self._tail = tail
        return True
