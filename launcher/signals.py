"""Signals to the launcher as something that its loop can wait for."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # they end the job
_COLLECTED = (*ENDING, signal.SIGUSR1)


class SignalInbox:
    """Collects SIGINT, SIGTERM, SIGHUP and SIGUSR1: poll `fileno()`, then `read()`.

    What is ignored (SIGHUP under nohup) stays ignored.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._arrived: list[int] = []

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> list[int]:
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        arrived, self._arrived = self._arrived, []
        return arrived

    @contextlib.contextmanager
    def installed(self) -> Iterator[SignalInbox]:
        """Within this block signals come here; afterwards everything is as before."""
        before = {signum: signal.getsignal(signum) for signum in _COLLECTED}
        wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(signum, lambda number, frame: self._arrived.append(number))
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(wakeup)
            self._reader.close()
            self._writer.close()
