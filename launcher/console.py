"""The launcher's own stdout and stderr: one order for both, never a write that blocks the launcher.

A console that reads slowly (a pager, a paused terminal) only fills a queue; `crowded` then tells to read less from the
cards, which wait in their writes, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from collections import deque

STDOUT, STDERR = 1, 2
_ATOM = 4096  # bytes: when poll says a pipe is writable, this much goes in without blocking (PIPE_BUF)
_HIGH, _LOW = 1 << 20, 1 << 18  # bytes in the queue: stop reading from the cards, and go on
_GONE = (errno.EPIPE, errno.EIO)  # the reader of a pipe, the terminal


class Console:
    """Attributes:
    closed: the reader has gone (`| head -1`), so nobody wants the job's output any more.
    lost: why one of the streams cannot be written, such as "stdout: No space left on device"; "" while it can.
    """

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._queue: deque[tuple[int, memoryview]] = deque()
        self._size = 0
        self._status = b""
        self.closed = False
        self.lost = ""
        self._dead: set[int] = set()

    def colours(self, stream: int) -> bool:
        """Whether lines on this stream are to have colours: on a terminal, if they are wanted."""
        return self._colour and os.isatty(stream)

    def write(self, stream: int, data: bytes) -> None:
        """Queue whole lines for one of the streams and write what can be written now."""
        if self._status:
            self._push(STDERR, b"\r\x1b[K")
            self._status = b""
        self._push(stream, data)
        self.write_ready()

    def status(self, text: str) -> None:
        """A line on a terminal that the next one replaces; "" takes it away. Elsewhere nothing."""
        if not os.isatty(STDERR) or self._queue or text.encode() == self._status:
            return
        self._status = text.encode()
        self._push(STDERR, b"\r\x1b[K" + self._status)
        self.write_ready()

    def say(self, text: str) -> None:
        """A message of the launcher itself, on stderr."""
        self.write(STDERR, _bytes(f"superpod-run: {text}\n"))

    def headline(self, text: str) -> None:
        """A block of text on stderr whose first line stands out on a terminal."""
        head, newline, rest = text.partition("\n")
        if head and self.colours(STDERR):
            head = f"\x1b[1;31m{head}\x1b[0m"
        self.write(STDERR, _bytes(f"{head}{newline}{rest}"))

    def _push(self, stream: int, data: bytes) -> None:
        if data and stream not in self._dead and not self.closed:
            self._queue.append((stream, memoryview(data)))
            self._size += len(data)

    def waits_for(self) -> int | None:
        """The stream that must become writable for the queue to move on, or None when the queue is empty."""
        return self._queue[0][0] if self._queue else None

    @property
    def crowded(self) -> bool:
        return self._size > _HIGH

    @property
    def roomy(self) -> bool:
        return self._size < _LOW

    def write_ready(self) -> None:
        """Write as much of the queue as goes without waiting."""
        poll = select.poll()
        for stream in {stream for stream, _ in self._queue}:
            poll.register(stream, select.POLLOUT)
        while self._queue:
            stream, data = self._queue[0]
            if stream not in dict(poll.poll(0)):
                return
            self._write_some(stream, data)

    def _write_some(self, stream: int, data: memoryview) -> None:
        try:
            written = os.write(stream, data[:_ATOM])
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(stream, error)
            return
        self._size -= written
        self._queue.popleft()
        if written < len(data):
            self._queue.appendleft((stream, data[written:]))

    def _lose(self, stream: int, error: OSError) -> None:
        self._dead.add(stream)
        self.closed |= error.errno in _GONE
        kept = [item for item in self._queue if item[0] not in self._dead and not self.closed]
        self._queue = deque(kept)
        self._size = sum(len(data) for _, data in kept)
        self.lost = f"{'stdout' if stream == STDOUT else 'stderr'}: {error.strerror}"
        if stream == STDOUT and not self.closed:
            self.say(f"cannot write to {self.lost}; the job goes on, what it prints there is lost")

    def flush(self, wake: int) -> None:
        """Wait until everything is written, or until the descriptor `wake` is readable: somebody is impatient."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        while (stream := self.waits_for()) is not None:
            poll.register(stream, select.POLLOUT)
            if any(fd == wake for fd, _ in poll.poll()):
                return
            self.write_ready()
            with contextlib.suppress(KeyError):
                poll.unregister(stream)


def write_no_more() -> None:
    """What sys.stdout still holds goes nowhere, or the interpreter's last flush would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bytes(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # a file's name may be no text
