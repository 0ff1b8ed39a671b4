"""What a card has done: calls, bytes and seconds per operation and algorithm, told to the launcher at the end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from superpod.interconnect.control import send_news


class Statistics:
    """Counters of one card. `directory` is the job's, or None without a launcher."""

    def __init__(self, rank: int, directory: Path | None) -> None:
        self._rank = rank
        self._directory = directory
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], list[float]] = {}
        self._told_first = False

    def count(self, operation: str, algorithm: str, nbytes: int, seconds: float) -> None:
        """One call has ended. `nbytes` is its size S as nccl-tests define it."""
        with self._lock:
            row = self._rows.setdefault((operation, algorithm), [0, 0, 0.0])
            row[0] += 1
            row[1] += nbytes
            row[2] += seconds
            first, self._told_first = not self._told_first, True
        if first:
            send_news(self._directory, self._rank, "first_collective")

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
