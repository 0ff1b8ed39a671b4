"""What became of each card, and from it: which failure was the first, and the job's exit code. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from superpod.launcher.clock_news import ClockNews
from superpod.launcher.processes import end_in_words, signal_name

LAUNCHER = -1  # in place of a rank: the failure is the launcher's own, no card's
_HEADLINE = 300  # characters of an error in a sentence
_NOTHING = {"calls": 0, "bytes": 0, "seconds": 0.0}  # what a card sums up of an operation


@dataclass(slots=True)
class CardError:
    """An uncaught error, as the card told it before it ended."""

    time: float
    type: str
    message: str
    traceback: str
    consequence: bool

    @property
    def headline(self) -> str:
        """The first line, or as much of it as goes into a sentence."""
        line = f"{self.type}: {self.message}".partition("\n")[0].removesuffix(": ")
        return line if len(line) <= _HEADLINE else line[: _HEADLINE - 1] + "…"


@dataclass(slots=True)
class Card:
    """One card so far. `code`: how it ended, negative for a signal; None while it runs. Times since the epoch [s]."""

    rank: int
    pid: int = 0
    up: bool = False
    error: CardError | None = None
    code: int | None = None
    ended: float = 0.0
    sent: set[int] = field(default_factory=set)  # signals that the launcher sent it
    host: str = ""  # its name
    lost: bool = False  # with its host

    @property
    def failed_at(self) -> float | None:
        """When it failed of itself; None when it did not, or was ended by the launcher."""
        if self.error is not None:
            return self.error.time
        if not self.code or -self.code in self.sent:
            return None
        return self.ended

    @property
    def only_heard(self) -> bool:
        """Whether it failed because another card did."""
        return self.error is not None and self.error.consequence

    @property
    def exit_code(self) -> int:
        """What a shell would see; 1, Python's own, of a card that raised and had to be ended."""
        if self.code is None or -self.code in self.sent or self.code == 0:
            return 1
        return 128 - self.code if self.code < 0 else self.code

    @property
    def cause(self) -> str:
        """Continues a sentence that starts with the rank."""
        when = "" if self.up else " before it was up"
        if self.error is not None:
            return f"raised {self.error.headline}{when}"
        return end_in_words(self.code or 0) + when

    @property
    def doing(self) -> str:
        """What a card that did not fail first was doing when the job ended."""
        if self.error is not None:
            return self.error.headline
        if not self.pid:
            return "not started"
        if self.code is None:
            return "lost with the host" if self.lost else "lost with the launcher's zygote"
        if self.code == 0:
            return "had ended normally"
        if -self.code in self.sent:
            return f"still running, ended by {signal_name(-self.code)}"
        return end_in_words(self.code)


def in_common(doing: str) -> str:
    """What a card was doing, without what tells it from others that waited for the same.

    "rank 4: Timed out after 8.0 s waiting for rank 0 in ..." names the neighbour for which it happened to wait.
    """
    return re.sub(r"rank \d+: (Timed out after \S+ s) waiting for ranks? [\d, -]+ in ", r"\1 in ", doing)


class Outcome:
    """Everything known of the job's cards."""

    def __init__(self, world_size: int) -> None:
        self.cards = [Card(rank) for rank in range(world_size)]
        self.up = 0  # cards whose program has begun
        self.interrupted: int | None = None  # the signal that ended the launcher
        self._interrupted_at = float("inf")
        self._own_failure: tuple[str, int] | None = None
        self._first_collectives: dict[int, float] = {}  # rank → when it had finished its first one
        self.clocks = ClockNews()
        self._operations: dict[tuple[str, str], dict[int, dict[str, float]]] = {}  # → rank → its sums

    def started(self, rank: int, pid: int) -> None:
        self.cards[rank].pid = pid

    def ended(self, rank: int, code: int, time: float) -> None:
        card = self.cards[rank]
        card.code, card.ended = code, time

    def signalled(self, signum: int) -> None:
        """The launcher sent `signum` to every card that still ran."""
        for card in self.cards:
            if card.code is None:  # also of those whose start has not been heard of
                card.sent.add(signum)

    def interrupt(self, signum: int, time: float) -> None:
        if self.interrupted is None and self.first_failure() is None and self._own_failure is None:
            self.interrupted, self._interrupted_at = signum, time

    def launcher_failed(self, cause: str, exit_code: int) -> None:
        """The job cannot go on for a reason that no card gave."""
        self._own_failure = self._own_failure or (cause, exit_code)

    def hear(self, item: dict[str, Any]) -> Card | None:
        """News from a card, which is returned; None for what makes no sense."""
        rank = item.get("rank")
        if not isinstance(rank, int) or not 0 <= rank < len(self.cards):
            return None
        card = self.cards[rank]
        match item:
            case {"event": "up"}:
                self.up += not card.up
                card.up = True
            case {"event": "first_collective", "time": float(time)}:
                self._first_collectives.setdefault(rank, time)  # each of its communicators tells its own
            case {"event": "clock" | "shape"}:
                self.clocks.hear(rank, item)
            case {"event": "summary", "operations": list(operations)}:
                for operation in operations:
                    self._add(rank, operation)
            case {"event": "error", "time": float(time), "type": str(kind), "message": str(message)}:
                text, consequence = str(item.get("traceback", "")), bool(item.get("consequence"))
                card.error = CardError(time, kind, message, text, consequence)
        return card

    def _add(self, rank: int, operation: Any) -> None:
        """A card's communicators, one after the other, tell of themselves."""
        match operation:
            case {"operation": str(name), "algorithm": str(algorithm)}:
                key = (name, algorithm)
            case _:
                return
        sums = self._operations.setdefault(key, {}).setdefault(rank, dict(_NOTHING))
        for amount in _NOTHING:
            value = operation.get(amount)
            if isinstance(value, int | float):
                sums[amount] += value

    @property
    def operations(self) -> list[dict[str, Any]]:
        """Per operation and algorithm, sorted: operation, algorithm, calls, bytes, seconds.

        Each number is that of the card that had most of it: all cards of a group make the same calls, and the slowest
        one's seconds are what the job waited for.
        """
        most = {
            key: {amount: max(sums[amount] for sums in of_ranks.values()) for amount in _NOTHING}
            for key, of_ranks in self._operations.items()
        }
        return [{"operation": name, "algorithm": alg, **most[name, alg]} for name, alg in sorted(most)]

    def first_collective(self) -> float | None:
        """When the last card had finished its first collective; None when no card has."""
        return max(self._first_collectives.values(), default=None)

    def first_failure(self) -> Card | None:
        """The card that failed first by time; one that only heard of another's failure comes after all others."""
        failed = [
            (card.only_heard, time, card)
            for card in self.cards
            if (time := card.failed_at) is not None and time < self._interrupted_at
        ]
        return min(failed, key=lambda entry: entry[:2])[2] if failed else None

    @property
    def own_failure(self) -> str | None:
        """Why the job could not go on, when no card is to blame."""
        return self._own_failure[0] if self._own_failure else None

    @property
    def exit_code(self) -> int:
        if self._own_failure is not None:
            return self._own_failure[1]
        if self.interrupted is not None:
            return 128 + self.interrupted
        first = self.first_failure()
        return first.exit_code if first is not None else 0
