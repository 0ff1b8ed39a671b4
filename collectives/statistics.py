"""What a card has done: calls, bytes and seconds per operation and algorithm, told to the launcher at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from superpod.collectives.recorder import DONE
from superpod.interconnect.control import send_news
from superpod.interconnect.forked import call_in_child


class Statistics:
    """Counters of one card. `directory` is the job's, or None without a launcher."""

    def __init__(self, rank: int, directory: Path | None) -> None:
        self._rank = rank
        self._directory = directory
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], list[float]] = {}
        self._told_first = False
        call_in_child(self._renew_lock)

    def _renew_lock(self) -> None:
        """In a forked child: the thread that holds it, if one does, is the parent's."""
        self._lock = threading.Lock()

    def count(self, operation: str, algorithm: str, nbytes: int, seconds: float) -> None:
        """A collective has ended. `nbytes` is its size S as nccl-tests define it."""
        with self._lock:
            self._add(operation, algorithm, nbytes, seconds)
            first, self._told_first = not self._told_first, True
        if first:
            send_news(self._directory, self._rank, "first_collective")

    def message(self, operation: str, nbytes: int, started: float) -> Callable[[int], None]:
        """A send or recv was started at `started` (time.perf_counter()): call what is returned with its states.

        It counts when it is done for the first time; one that fails does not count.
        """
        pending = [True]

        def note(state: int) -> None:
            if state == DONE and pending:
                with self._lock:
                    if pending and pending.pop():
                        self._add(operation, "direct", nbytes, time.perf_counter() - started)

        return note

    def _add(self, operation: str, algorithm: str, nbytes: int, seconds: float) -> None:
        row = self._rows.setdefault((operation, algorithm), [0, 0, 0.0])
        row[0] += 1
        row[1] += nbytes
        row[2] += seconds

    def rows(self) -> list[dict[str, Any]]:
        """One row an operation and algorithm: operation, algorithm, calls, bytes, seconds."""
        with self._lock:
            return [
                {"operation": operation, "algorithm": algorithm, "calls": calls, "bytes": nbytes, "seconds": seconds}
                for (operation, algorithm), (calls, nbytes, seconds) in self._rows.items()
            ]

    def tell(self) -> None:
        """Give the launcher the rows."""
        if rows := self.rows():
            send_news(self._directory, self._rank, "summary", operations=rows)
