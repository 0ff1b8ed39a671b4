"""What a host's cards are doing, asked by their agent: for SIGUSR1, a watchdog, and the record of a failed job."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from superpod.collectives import stacks
from superpod.collectives.places import Frame
from superpod.collectives.recorder import Record, read_record
from superpod.collectives.standing import Standing, standing_from
from superpod.interconnect.inquiry import ANSWER_WITHIN, Inquiry, desks, silence
from superpod.launcher.outcome import Card, Outcome

Standings = Mapping[int, Standing]


class BlackBoxes:
    """The cards' flight recorders: descriptors of memory that outlives the cards."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}  # rank → memory

    def __bool__(self) -> bool:
        return bool(self._fds)

    def hold(self, rank: int, fd: int) -> None:
        """Take over `fd`; a card that has become another program brings a new one."""
        if (before := self._fds.pop(rank, None)) is not None:
            os.close(before)
        self._fds[rank] = fd

    def read(self, rank: int) -> tuple[list[Record], dict[str, list[int]]]:
        """All that a card's recorder remembers, oldest first, and its groups."""
        return read_record(self._fds[rank]) if rank in self._fds else ([], {})

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


class Survey:
    """Asks all cards of `ranks`, one question at a time; nothing in it waits."""

    def __init__(
        self,
        directory: Path,
        outcome: Outcome,
        ranks: Sequence[int],
        boxes: BlackBoxes,
        selector: selectors.BaseSelector,
    ) -> None:
        """Registers what it waits for in `selector`, whose keys have functions as their data."""
        self._directory, self._outcome, self._boxes, self._selector = directory, outcome, boxes, selector
        self._cards = [outcome.cards[rank] for rank in ranks]
        self._inquiry: Inquiry | None = None
        self._answers: dict[int, Standing] = {}
        self._deadline = 0.0
        self._found: dict[int, tuple[str, int]] = {}
        self._questions: dict[int, stacks.Question] = {}  # to those who have not answered: for their stack, by a signal
        self._when_done: list[Callable[[Standings], None]] = []

    def begin(self, when_done: Callable[[Standings], None]) -> None:
        """Ask; `when_done` gets every card's standing within a second or so. One that is under way is shared."""
        self._when_done.append(when_done)
        if self._inquiry is not None:
            return
        self._inquiry, self._answers = Inquiry(), {}
        self._deadline, self._questions = time.monotonic() + ANSWER_WITHIN, {}
        self._found = desks(self._directory)
        for card in self._cards:
            if card.pid and card.code is None:
                self._inquiry.ask(card.rank, self._found.get(card.rank, (None,))[0])
        self._selector.register(self._inquiry, selectors.EVENT_READ, self.mind)
        self.mind()

    def next_time(self) -> float | None:
        """When `mind` wants to be called at the latest, by time.monotonic()."""
        if self._inquiry is None:
            return None
        patience = self._inquiry.patience
        return self._deadline if patience is None else min(self._deadline, time.monotonic() + patience)

    def mind(self) -> None:
        """Take the answers that have come; finish when all have, or when it takes too long."""
        if self._inquiry is None:
            return
        for rank, answer in self._inquiry.read():
            self._answers[rank] = standing_from(rank, answer)
        gone = {rank for rank in self._inquiry.waits_for if self._outcome.cards[rank].code is not None}
        if (self._questions or self._inquiry.waits_for - gone) and time.monotonic() < self._deadline:
            return
        if not self._questions and self._signal():
            return
        absent = self._inquiry.absent
        self._stop()
        standings = {card.rank: self._standing(card, absent) for card in self._cards}
        called, self._when_done = self._when_done, []
        for when_done in called:
            when_done(standings)

    def _signal(self) -> bool:
        """Ask those for their stack who cannot answer; returns whether there are any who will give it."""
        for card in self._cards:
            if card.pid and card.code is None and card.rank not in self._answers:
                question = stacks.ask(self._directory, card.rank, card.pid)
                if question is not None:
                    self._questions[card.rank] = question
        self._deadline = time.monotonic() + stacks.ANSWER_WITHIN
        return bool(self._questions)

    def _standing(self, card: Card, absent: set[int]) -> Standing:
        if card.rank in self._answers:
            return self._answers[card.rank]
        calls, groups = self._boxes.read(card.rank)
        stack: tuple[Frame, ...] = ()
        if not card.pid:
            how = "has not been started"
        elif card.code is not None:
            how = ended_how(card)
        else:
            stack = self._questions[card.rank].answer() if card.rank in self._questions else ()
            how = silence(card.pid, has_desk=card.rank in self._found and card.rank not in absent)
        return Standing(card.rank, tuple(calls), groups, stack=stack, silent=how)

    def record(self, standings: Standings) -> dict[int, Standing]:
        """Every card's whole flight record, with what `standings` says of its stack and whom it awaited."""
        found = {}
        for card in self._cards:
            calls, groups = self._boxes.read(card.rank)
            asked = standings.get(card.rank, Standing(card.rank))
            silent = asked.silent or ("" if asked.stack else ended_how(card))
            found[card.rank] = replace(asked, calls=tuple(calls), groups=groups, silent=silent)
        return found

    def _stop(self) -> None:
        if self._inquiry is not None:
            self._selector.unregister(self._inquiry)
            self._inquiry.close()
            self._inquiry = None

    def close(self) -> None:
        self._stop()


def ended_how(card: Card) -> str:
    """Continues "rank 3 ..." for a card that has ended."""
    if card.error is not None:
        return f"raised {card.error.headline}"
    return card.doing if card.code != 0 else "has ended normally"
