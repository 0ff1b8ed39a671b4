"""The line between the head of a job and an agent on another host: messages in order, either way, never blocking.

Over a pair of pipes, which are ssh's stdin and stdout: a frame is its length as four bytes and the message. What the
other host's login scripts print before the first frame is passed over.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Any, Protocol

from superpod.interconnect.errors import BadFrame
from superpod.launcher.messages import MAX_MESSAGE, pack, unpack

GREETING = b"\0superpod agent 1\n"  # the first that an agent writes
_MOST_BEFORE = 1 << 16  # bytes that may come before it
_AT_ONCE = 1 << 16  # bytes of one read or write
_HIGH, _LOW = 4 << 20, 1 << 20  # bytes in the queue: the cards' output waits, and goes on
_LENGTH = 4


class Line(Protocol):
    """Poll `fileno()`, then call `receive`. It is a Sink, too: see there.

    Attributes:
        closed: the other side has gone; what is sent goes nowhere.
        doubted: the connection has broken: until when the other side may come back, by time.monotonic(); else None.
    """

    closed: bool
    doubted: float | None

    def fileno(self) -> int: ...

    @property
    def has_news(self) -> bool:
        """Whether `receive` has something, though `fileno` may not tell."""
        ...

    def receive(self) -> list[dict[str, Any]]:
        """All messages that have arrived. Raises BadFrame for what is none."""
        ...

    def send(self, message: dict[str, Any]) -> None: ...

    @property
    def crowded(self) -> bool: ...

    @property
    def roomy(self) -> bool: ...

    def waits_for(self) -> int | None: ...

    def write_ready(self) -> None: ...

    def close(self) -> None: ...


class PipeLine:
    """A line over two file descriptors, which it owns."""

    def __init__(self, reader: int, writer: int, *, greets: bool = False, greeted: bool = False) -> None:
        """`greets`: this side writes the greeting; `greeted`: it waits for one."""
        self._reader, self._writer = reader, writer
        self.doubted: float | None = None  # a pipe that has broken is closed
        for fd in (reader, writer):
            os.set_blocking(fd, False)
        self._queue: deque[memoryview] = deque()
        self._size = 0
        self._arrived = bytearray()
        self._expects_greeting = greeted
        self.closed = False
        if greets:
            self._push(GREETING)

    def fileno(self) -> int:
        return self._reader

    @property
    def has_news(self) -> bool:
        return False

    def receive(self) -> list[dict[str, Any]]:
        if self.closed:
            return []
        try:
            data = os.read(self._reader, _AT_ONCE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self.closed = self.closed or not data
        self._arrived += data
        if self._expects_greeting and not self._find_greeting():
            return []
        return self._messages()

    def _find_greeting(self) -> bool:
        before, found, after = self._arrived.partition(GREETING)
        if found:
            self._arrived, self._expects_greeting = after, False
        elif len(before) > _MOST_BEFORE:
            raise BadFrame(f"the first {_MOST_BEFORE} B that came are no agent's: {bytes(before[:80])!r}")
        return bool(found)

    def _messages(self) -> list[dict[str, Any]]:
        messages = []
        while len(self._arrived) >= _LENGTH:
            length = int.from_bytes(self._arrived[:_LENGTH])
            if length > MAX_MESSAGE:
                raise BadFrame(f"a message of {length} B is longer than the {MAX_MESSAGE} B that one may have")
            if len(self._arrived) < _LENGTH + length:
                break
            message = unpack(bytes(self._arrived[_LENGTH : _LENGTH + length]))
            del self._arrived[: _LENGTH + length]
            if message is None:
                raise BadFrame(f"a message of {length} B cannot be read")
            messages.append(message)
        return messages

    def send(self, message: dict[str, Any]) -> None:
        data = pack(message)
        if not self.closed and len(data) <= MAX_MESSAGE:
            self._push(len(data).to_bytes(_LENGTH) + data)

    def _push(self, data: bytes) -> None:
        self._queue.append(memoryview(data))
        self._size += len(data)
        self.write_ready()

    @property
    def crowded(self) -> bool:
        return self._size > _HIGH

    @property
    def roomy(self) -> bool:
        return self._size < _LOW

    def waits_for(self) -> int | None:
        return self._writer if self._queue else None

    def write_ready(self) -> None:
        try:
            while self._queue:
                data = self._queue.popleft()
                rest = data
                try:
                    rest = data[os.write(self._writer, data[:_AT_ONCE]) :]
                finally:
                    if rest:
                        self._queue.appendleft(rest)
                    self._size -= len(data) - len(rest)
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more
            self._queue.clear()
            self._size = 0

    def close(self) -> None:
        """Idempotent: the numbers may by then be somebody else's."""
        if self._reader < 0:
            return
        self.closed = True
        self._queue.clear()
        self._size = 0
        for fd in {self._reader, self._writer}:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._reader = self._writer = -1
