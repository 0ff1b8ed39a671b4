"""A run in virtual time: every card makes its calls in its program's order and waits for those that it needs.

A collective begins when its last rank has come and ends for all of them its modelled time later. A message takes its
sender that time, and is at its receiver then. Computing takes no time. A receive that was posted before its card did
something else does not hold that up; neither do asynchronous calls that two cards have issued in different orders.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from superpod.collectives.clock_log import STEP, Kind, Log
from superpod.collectives.clock_price import RECV, SEND

MOST_CALLS = 2_000_000  # of all cards together; a second or two of work
_MARK = "step"

Seconds = Callable[[Kind, int], float]
"""(kind, rank) → what that rank's call takes [s]."""


class _Entry(NamedTuple):
    """One call of one card. `what`: a group's collective with its number, or a stream of messages."""

    operation: str
    what: Any
    ranks: tuple[int, ...]
    seconds: float


@dataclass(slots=True)
class Replay:
    """Virtual times [s] by rank: when it has ended, and when each of its steps had."""

    ends: dict[int, float] = field(default_factory=dict)
    steps: dict[int, list[float]] = field(default_factory=dict)


def replay(logs: Mapping[int, Log], seconds: Seconds) -> Replay | None:
    """None when the logs are too long, or do not have every call. What only some of its ranks have made is left out."""
    if not all(log.complete for log in logs.values()) or sum(len(log.order) for log in logs.values()) > MOST_CALLS:
        return None
    cards = _Cards({rank: _entries(rank, log, seconds) for rank, log in sorted(logs.items())})
    while cards.go_on() or cards.untangle():
        pass
    return Replay(cards.now, cards.steps)


def _entries(rank: int, log: Log, seconds: Seconds) -> deque[_Entry]:
    made: Counter[Any] = Counter()
    names = [(name, ranks, _nth(made, (name, ranks))) for name, ranks in log.groups]
    entries, calls = deque[_Entry](), Counter[Any]()
    step = _Entry(_MARK, None, (rank,), 0.0)
    each = [_Entry(k.operation, _what(k, rank, names), log.groups[k.group][1], seconds(k, rank)) for k in log.kinds]
    for number in log.order.tolist():
        if number == STEP:
            entries.append(step)
            continue
        entry = each[number - 1]
        if entry.operation not in (SEND, RECV):
            entry = entry._replace(what=(entry.what, _nth(calls, entry.what)))
        entries.append(entry)
    return entries


def _what(kind: Kind, rank: int, names: list[Any]) -> Any:
    """What tells the group, or the stream of messages, that a call belongs to."""
    if kind.operation == SEND:
        return names[kind.group], rank, kind.root
    return (names[kind.group], kind.root, rank) if kind.operation == RECV else names[kind.group]


def _nth(counter: Counter[Any], key: Any) -> int:
    counter[key] += 1
    return counter[key]


class _Cards:
    def __init__(self, queues: dict[int, deque[_Entry]]) -> None:
        self.now = dict.fromkeys(queues, 0.0)
        self.steps: dict[int, list[float]] = {rank: [] for rank in queues}
        self._queues = queues
        self._come: dict[Any, list[tuple[int, float]]] = defaultdict(list)  # collective → who has come, its seconds
        self._there: dict[Any, deque[float]] = defaultdict(deque)  # stream → when messages arrive
        self._waits: set[int] = set()  # ranks that have come to a collective
        self._ready = list(reversed(queues))

    def go_on(self) -> bool:
        """Let cards do what they can; whether any has done anything."""
        moved = False
        while self._ready:
            rank = self._ready.pop()
            while rank not in self._waits and self._queues[rank] and self._do(rank, self._queues[rank][0]):
                moved = True
        return moved

    def _do(self, rank: int, entry: _Entry) -> bool:
        """Whether the card is done with its next call."""
        if entry.operation == SEND:
            self.now[rank] += entry.seconds
            self._there[entry.what].append(self.now[rank])
            self._ready.append(entry.what[2])
        elif entry.operation == RECV:
            if not self._there[entry.what]:
                return False
            self.now[rank] = max(self.now[rank], self._there[entry.what].popleft())
        elif entry.operation == _MARK:
            self.steps[rank].append(self.now[rank])
        else:
            return self._meet(rank, entry)
        self._queues[rank].popleft()
        return True

    def _meet(self, rank: int, entry: _Entry) -> bool:
        come = self._come[entry.what]
        come.append((rank, entry.seconds))
        self._waits.add(rank)
        if len(come) < len(entry.ranks):
            return False
        end = max(self.now[r] for r, _ in come) + max(seconds for _, seconds in come)
        del self._come[entry.what]
        for r, _ in come:
            self.now[r] = end
            self._waits.discard(r)
            self._queues[r].popleft()
            if r != rank:
                self._ready.append(r)
        return True

    def untangle(self) -> bool:
        """Nobody can go on: let cards do something else first, if there is anything; whether there is."""
        behind: dict[int, tuple[int, str]] = {}  # rank that waits for a message → what it could do instead
        for rank, queue in self._queues.items():
            if queue and queue[0].operation == RECV:
                other = next((i for i, entry in enumerate(queue) if entry.operation != RECV), None)
                if other is not None:
                    behind[rank] = other, queue[other].operation
        sending = {rank: found for rank, found in behind.items() if found[1] == SEND}
        for rank, (place, _) in (sending or behind).items():  # all at once, or one would wait for the other
            self._first(rank, place)
        return bool(behind) or any(queue and self._bring_together(rank) for rank, queue in self._queues.items())

    def _bring_together(self, rank: int) -> bool:
        """Let all ranks of one of this card's collectives make it now; whether there is one that all have."""
        for entry in list(self._queues[rank])[1:]:
            if entry.operation in (SEND, RECV, _MARK) or not set(entry.ranks) <= self._queues.keys():
                continue
            places = {r: self._place(r, entry.what) for r in entry.ranks}
            if None not in places.values():
                for r, place in places.items():
                    self._first(r, place or 0)
                return True
        return False

    def _place(self, rank: int, what: Any) -> int | None:
        """Where a collective stands in a card's queue, if no other one of its group is before it."""
        for place, entry in enumerate(self._queues[rank]):
            if entry.what == what:
                return place
            if entry.operation not in (SEND, RECV, _MARK) and entry.what[0] == what[0]:
                return None
        return None

    def _first(self, rank: int, place: int) -> None:
        """Put the call at `place` before the others."""
        queue = self._queues[rank]
        if rank in self._waits:
            self._waits.discard(rank)
            come = self._come[queue[0].what]
            come[:] = [(r, seconds) for r, seconds in come if r != rank]
        entry = queue[place]
        del queue[place]
        queue.appendleft(entry)
        self._ready.append(rank)
