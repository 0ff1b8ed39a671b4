"""What a card tells its launcher of its calls, so that they can be priced, replayed and asked "what if" afterwards.

Calls that cost the same are of one kind, and the log is the row of their kinds' numbers, in the order in which the
program issued the calls. Loops compress well: ten thousand steps of a training take some kilobytes.
"""

from __future__ import annotations

import threading
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from superpod.collectives.schedule import IntArray
from superpod.interconnect.control import send_news

MOST_CALLS = 1 << 20  # whose order a card remembers; of later ones it only counts how many there were
MOST_KINDS = 1 << 16
STEP = 0  # in place of a kind's number: the program has ended a step
_NUMBER = 20  # bits of an entry that hold the kind's number; the rest is its place in the order
_PLACE, _MASK = np.uint64(_NUMBER), np.uint64((1 << _NUMBER) - 1)
_PART = 96 << 10  # bytes of a piece of news; a datagram may have 128 KiB


class Kind(NamedTuple):
    """Calls that cost the same.

    Attributes:
        operation: the collective; send or recv.
        nbytes: S, as selection counts it; 0 for a barrier. Of an uneven all-to-all what this rank sends or takes,
            whichever is more.
        root: group rank of the root, else 0; of a message, the other end's rank in the mesh.
        group: the group's number in the log.
        hosts: group rank → number of its host, where the schedule follows from that.
    """

    operation: str
    algorithm: str
    nbytes: int
    root: int
    group: int
    hosts: tuple[int, ...] = ()


@dataclass(slots=True)
class Log:
    """The calls of one card.

    Attributes:
        groups: name and ranks (in the mesh) of each group, in the order in which they were made.
        kinds: kind k has the number k + 1.
        counts: how many calls of each number there were; also those that `order` does not have.
        order: numbers of the first MOST_CALLS calls in the order of issue, with STEP between steps.
        unknown: calls that are of no kind, because there were MOST_KINDS already.
    """

    groups: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    order: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    unknown: int = 0

    def calls(self) -> Iterator[tuple[Kind, int]]:
        """(kind, how many) of all calls."""
        return ((self.kinds[number - 1], times) for number, times in sorted(self.counts.items()))

    @property
    def complete(self) -> bool:
        """Whether `order` has every call."""
        return not self.unknown and self.counts.total() == int(np.count_nonzero(self.order))

    def packed(self) -> bytes:
        """As bytes for `unpacked`."""
        fields = {
            "groups": self.groups,
            "kinds": self.kinds,
            "counts": sorted(self.counts.items()),
            "order": self.order.astype("<u4").tobytes(),
            "unknown": self.unknown,
        }
        packed: bytes = msgpack.packb(fields, unicode_errors="backslashreplace")
        return zlib.compress(packed)

    @staticmethod
    def unpacked(data: bytes) -> Log:
        """Raises ValueError or zlib.error for what is no log."""
        fields: dict[str, Any] = msgpack.unpackb(zlib.decompress(data))
        return Log(
            [(str(name), tuple(ranks)) for name, ranks in fields["groups"]],
            [Kind(*kind)._replace(hosts=tuple(kind[-1])) for kind in fields["kinds"]],
            Counter(dict(fields["counts"])),
            np.frombuffer(fields["order"], "<u4").astype(np.int64),
            int(fields["unknown"]),
        )

    def then(self, later: Log) -> Log:
        """This log and a later one of the same card, whose groups and kinds go on where this one's ended."""
        order = np.concatenate([self.order, later.order])
        unknown = self.unknown + later.unknown
        return Log(later.groups, later.kinds, self.counts + later.counts, order, unknown)


def send_log(directory: Path | None, rank: int, log: Log) -> None:
    """Tell the launcher, in as many pieces of news as it takes."""
    data = log.packed()
    parts = range(0, len(data), _PART)
    for index, start in enumerate(parts):
        send_news(directory, rank, "clock", part=index, parts=len(parts), data=data[start : start + _PART])


class Ledger:
    """Where a card writes its calls down. Any thread: an entry is one append."""

    def __init__(self) -> None:
        self._entries = array("Q")
        self._more: Counter[int] = Counter()  # calls beyond MOST_CALLS
        self._past: Counter[int] = Counter()  # those that were taken
        self._lock = threading.Lock()

    def write(self, place: int, number: int) -> None:
        """A call of this kind, or STEP, at this place in the order of issue."""
        if len(self._entries) < MOST_CALLS:
            self._entries.append(place << _NUMBER | number)
        else:
            with self._lock:
                self._more[number] += 1

    def counts(self) -> Counter[int]:
        """How many calls of each kind so far."""
        return self._past + self._counts(self._entries.tobytes())

    def take(self) -> tuple[IntArray, Counter[int]]:
        """The numbers in the order of issue and the counts, since they were taken last."""
        entries, self._entries = self._entries.tobytes(), array("Q")
        counts = self._counts(entries)
        with self._lock:
            self._past, self._more = self._past + counts, Counter()
        found = np.frombuffer(entries, np.uint64)
        order = found[np.argsort(found >> _PLACE, kind="stable")] & _MASK
        return order.astype(np.int64), counts

    def _counts(self, entries: bytes) -> Counter[int]:
        numbers, times = np.unique(np.frombuffer(entries, np.uint64) & _MASK, return_counts=True)
        counts = Counter(dict(zip(numbers.tolist(), times.tolist(), strict=True)))
        with self._lock:
            counts += self._more
        del counts[STEP]
        return counts
