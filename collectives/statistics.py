"""What a card has done: calls, bytes and seconds per operation and algorithm, told to the launcher at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from superpod.collectives.schedule import Schedule
from superpod.interconnect.control import send_news
from superpod.interconnect.forked import call_in_child
from superpod.interconnect.streams import Pending

Ledger = dict[tuple[str, str], list[float]]


class CountedCall(Protocol):
    """A collective that was called, as the engine has it."""

    @property
    def collective(self) -> str:
        """Its name."""

    @property
    def nbytes(self) -> int:
        """S, the same on all ranks [B]."""

    @property
    def own_nbytes(self) -> int:
        """What stands for it on this rank where ranks need not agree on it."""

    @property
    def root(self) -> int:
        """Group rank of the root, else 0."""


class CallClock(Protocol):
    """Counts the calls of a group for the modelled clock (clock.py), which is loaded only where there is one.

    Attributes:
        hosts: group rank → number of its host, in jobs of several hosts.
    """

    hosts: tuple[int, ...]

    def place(self) -> int:
        """Of a call that is now issued: its place in the order."""

    def schedule(self, collective: str, algorithm: str, world_size: int, root: int) -> Schedule:
        """What `algorithm` runs by on the machine that the clock goes by."""

    def words(self, collective: str, algorithm: str) -> str:
        """What the ranks must agree on for that beside the algorithm, to be added to the call's words."""

    def count(self, call: CountedCall, algorithm: str, place: int) -> None:
        """A collective has ended."""

    def message(self, pending: Pending, nbytes: int, then: Callable[[int], None]) -> Callable[[int], None]:
        """A send or recv is posted: call what is returned with its states, which are passed on to `then`."""


class Statistics:
    """Counters of one card. `directory` is the job's, or None without a launcher."""

    def __init__(self, rank: int, directory: Path | None) -> None:
        self._rank = rank
        self._directory = directory
        self._lock = threading.RLock()  # a signal handler may close a group wherever it finds the thread
        self._rows: dict[tuple[str, str], list[float]] = {}
        self._ledgers: list[Ledger] = []
        self._told_first = False
        call_in_child(self._renew_lock)

    def _renew_lock(self) -> None:
        """In a forked child: the thread that holds it, if one does, is the parent's."""
        self._lock = threading.RLock()

    def count(self, operation: str, algorithm: str, nbytes: int, seconds: float) -> None:
        """A collective has ended. `nbytes` is its size S as nccl-tests define it."""
        with self._lock:
            self._add(operation, algorithm, nbytes, seconds)
            first, self._told_first = not self._told_first, True
        if first:
            send_news(self._directory, self._rank, "first_collective")

    def open_ledger(self) -> Ledger:
        """Rows, [calls, bytes, seconds] by (operation, algorithm), for a group that counts by itself without a lock."""
        ledger: Ledger = {}
        with self._lock:
            self._ledgers.append(ledger)
        return ledger

    def close_ledger(self, ledger: Ledger) -> None:
        """The group has ended: nothing is added to its rows any more."""
        with self._lock:
            self._ledgers = [other for other in self._ledgers if other is not ledger]
            for (operation, algorithm), row in ledger.items():
                kept = self._rows.setdefault((operation, algorithm), [0, 0, 0.0])
                kept[0], kept[1], kept[2] = kept[0] + row[0], kept[1] + row[1], kept[2] + row[2]
            ledger.clear()

    def to_other_hosts(self, nbytes: int) -> None:
        """All the payload that this card has sent to cards of other hosts [B]; said once, at the end."""
        with self._lock:
            self._add("to other hosts", "all", nbytes, 0.0)

    def message_ended(self, operation: str, nbytes: int, seconds: float) -> None:
        """A send or recv is done, `seconds` after it was called; one that fails does not count."""
        with self._lock:
            self._add(operation, "direct", nbytes, seconds)

    def _add(self, operation: str, algorithm: str, nbytes: int, seconds: float) -> None:
        row = self._rows.setdefault((operation, algorithm), [0, 0, 0.0])
        row[0] += 1
        row[1] += nbytes
        row[2] += seconds

    def rows(self) -> list[dict[str, Any]]:
        """One row an operation and algorithm: operation, algorithm, calls, bytes, seconds."""
        with self._lock:
            total = {key: list(row) for key, row in self._rows.items()}
            for key, row in (item for ledger in self._ledgers for item in list(ledger.items())):
                total[key] = [a + b for a, b in zip(total.get(key, [0, 0, 0.0]), row, strict=True)]
        return [
            {"operation": operation, "algorithm": algorithm, "calls": calls, "bytes": nbytes, "seconds": seconds}
            for (operation, algorithm), (calls, nbytes, seconds) in total.items()
            if calls
        ]

    def tell(self) -> None:
        """Give the launcher the rows."""
        if rows := self.rows():
            send_news(self._directory, self._rank, "summary", operations=rows)
