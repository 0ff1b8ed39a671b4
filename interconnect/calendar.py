"""Until when each link of a machine is taken, in memory that all cards of a job on this host share."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import time
from pathlib import Path

import numpy as np

from superpod.interconnect.wires import FloatArray, IntArray

_PATIENCE = 0.01  # seconds to wait for whoever writes: longer means that it is stopped, which must not stop the others


class Calendar:
    """Any thread. Times by time.monotonic(), which all processes of a host share."""

    def __init__(self, nlinks: int, file: Path | None = None) -> None:
        """`file`: where the cards' processes share it; None: they are threads of this one. Raises OSError."""
        self._lock = threading.Lock()
        self._fd: int | None = None
        if file is None:
            self._until = np.zeros(nlinks)
            return
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, 8 * nlinks)  # a no-op for all but the first
        self._memory = mmap.mmap(self._fd, 8 * nlinks)
        self._until = np.frombuffer(self._memory, np.float64)

    def reserve(self, links: IntArray, seconds: FloatArray, now: float) -> float:
        """Give each of `links` so many seconds of work, behind what it has; returns when the last one has done it."""
        with self._lock:
            locked = self._fd is not None and self._enter(self._fd)
            try:
                until = np.maximum(self._until[links], now) + seconds
                self._until[links] = until
            finally:
                if locked and self._fd is not None:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
        return float(until.max(initial=now))

    def _enter(self, fd: int) -> bool:
        """Whether it is now this process's turn alone; without it, two may give a link its next second at once."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > end:
                    return False
                os.sched_yield()

    def close(self) -> None:
        """Idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
