"""One per host: starts the zygote and through it the cards, watches them, and ends the job.

One loop and no threads: whatever may happen is a file descriptor in one selector. Nothing in it blocks, so that a slow
console or a stuck card cannot keep the launcher from hearing of a failure.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpod.collectives.standing import describe
from superpod.interconnect.control import AbortSwitch, Failure, NewsDesk
from superpod.launcher.console import Console
from superpod.launcher.ending import Ending
from superpod.launcher.flight import flight_record
from superpod.launcher.job import JobSpec
from superpod.launcher.logs import Logs
from superpod.launcher.outcome import LAUNCHER, Card, Outcome
from superpod.launcher.processes import adopt_orphans, children, end_in_words, kill_children
from superpod.launcher.pump import Pump
from superpod.launcher.signals import SignalInbox
from superpod.launcher.survey import BlackBoxes, Standings, Survey
from superpod.launcher.zygote_process import ZygoteProcess, store_endpoint

if TYPE_CHECKING:
    from superpod.interconnect.rendezvous import StoreServer

_UNDER_WAY = 32  # cards being started at a time: fewer would wait for one another, more fill the channel
_LAST_WAIT = 8.0  # seconds for the zygote to say that all has ended
_SAME_WAIT = 1 / 3  # of a wait's length: reports are no closer together, for all cards that wait ask for them
_HEARSAY = 0.3  # seconds: a card that only heard of a failure is believed when its cause does not show up by then


class Agent:
    """Use: `run()`, then `outcome`; `close()` whatever happened."""

    def __init__(self, spec: JobSpec, directory: Path, console: Console, logs: Logs, inbox: SignalInbox) -> None:
        self.outcome = Outcome(spec.world_size)
        self._spec, self._console, self._logs, self._inbox = spec, console, logs, inbox
        self._host = socket.gethostname()
        self._not_ours = children(os.getpid())  # of the process that became the launcher
        adopt_orphans()
        self._unstarted: Iterator[int] = iter(range(spec.world_size))
        self._asked = self._started = self._ended = 0  # cards so far
        self._ready = self._closing = self._over = False
        self._deadline: float | None = None  # for the zygote to end
        self._ending = Ending()
        self._hearsay: tuple[float, Card] | None = None  # when to believe it, and whom
        self._selector = selectors.DefaultSelector()
        self._pump = Pump(self._selector, console)
        self._boxes = BlackBoxes()
        self._survey = Survey(directory, self.outcome, self._boxes, self._selector)
        self._reported = float("-inf")  # when the last report on waiting cards was asked for
        self._at_failure: Standings = {}
        self._zygote = self._start_zygote(directory)
        try:
            self._abort, self._desk, self._store = AbortSwitch(directory), NewsDesk(directory), _open_store(directory)
        except BaseException:
            self._zygote.kill()
            raise
        for source, handler in (
            (self._zygote, self._on_zygote),
            (self._desk, self._on_news),
            (self._store, self._store.serve),
            (inbox, self._on_signals),
        ):
            self._selector.register(source, selectors.EVENT_READ, handler)

    def _start_zygote(self, directory: Path) -> ZygoteProcess:
        output = self._logs.open_zygote()
        zygote = ZygoteProcess(self._spec, directory, output.card_end)
        output.close_card_end()
        self._pump.watch(output)
        return zygote

    def run(self) -> None:
        """Until nothing of the job runs any more."""
        self._show_progress()
        while not self._over:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._pump.balance()
            self._mind_ending()
            self._mind_deadlines()

    def close(self) -> None:
        """Leave nothing, however `run` ended."""
        if not self._over:
            self._zygote.kill()
        self._zygote.wait()
        kill_children(_LAST_WAIT, spare=self._not_ours)
        for item in self._desk.read():
            self._hear(item)
        for part in (self._survey, self._selector, self._zygote, self._abort, self._desk, self._store, self._boxes):
            part.close()

    def flight_record(self, reason: str) -> dict[str, Any] | None:
        """What the cards have recorded, also those that are gone; None when no card has. Call it before `close`."""
        for item in self._desk.read():
            self._hear(item)
        if not self._boxes:
            return None
        return flight_record(self.outcome, self._survey.record(self._at_failure), self._host, reason)

    # What may happen

    def _on_zygote(self) -> None:
        match self._zygote.receive():
            case None:
                self._lose_zygote()
            case {"event": "ready"}:
                self._ready = True
                self._start_cards()
            case {"event": "warning", "text": text}:
                self._console.say(text)
            case {"event": "started", "rank": rank, "pid": pid} if rank >= 0:
                self._started += 1
                self.outcome.started(rank, pid)
                self._start_cards()
            case {"event": "failed", "rank": rank, "text": text}:
                self._started += rank >= 0
                self._ended += rank >= 0
                self._fail(text, 1)
            case {"event": "exited", "rank": rank, "code": code, "time": ended}:
                self._on_exit(rank, code, ended)
            case {"event": "ended"}:
                self._over = True
        self._end_when_done()

    def _on_exit(self, rank: int, code: int, ended: float) -> None:
        if rank >= 0:
            self._ended += 1
            self.outcome.ended(rank, code, ended)
            self._check(self.outcome.cards[rank])
            if code == 0:
                self._abort.note_gone(rank, end_in_words(code))
        elif not self._closing:
            self._fail(f"the process with torch's store {end_in_words(code)}", 1)

    def _on_news(self) -> None:
        for item in self._desk.read():
            if (card := self._hear(item)) is not None:
                self._check(card)
        self._show_progress()

    def _hear(self, item: dict[str, Any]) -> Card | None:
        """News from a card, which is returned."""
        descriptor = item.pop("descriptor", None)
        card = self.outcome.hear(item)
        if descriptor is not None and card is not None and item["event"] == "record":
            self._boxes.hold(card.rank, descriptor)
        elif descriptor is not None:
            os.close(descriptor)
        match item:
            case {"event": "late", "call": str(call), "seconds": float(seconds)} if card is not None:
                self._on_late(card.rank, call, seconds)
        return card

    def _on_late(self, rank: int, call: str, seconds: float) -> None:
        """A card's watchdog: it has waited for so long."""
        now = time.monotonic()
        if not self._ending.begun and now - self._reported >= seconds * _SAME_WAIT:
            self._reported = now
            self._report(f"rank {rank} has waited for {seconds:.0f} s in {call}; what the cards are doing:")

    def _report(self, headline: str) -> None:
        """Ask all cards what they are doing, and say it."""

        def say(standings: Standings) -> None:
            self._console.say("\n".join([headline, *(f"  {line}" for line in describe(standings))]))

        self._survey.begin(say)

    def _on_signals(self) -> None:
        for signum in self._inbox.read():
            if signum == signal.SIGUSR1:
                self._report("what the cards are doing (SIGUSR1):")
            elif self._ending.begun:
                self._ending.at_once(time.monotonic())  # asked twice
            else:
                self._interrupt(signum)

    # Starting

    def _start_cards(self) -> None:
        while self._asked - self._started < _UNDER_WAY and (rank := next(self._unstarted, None)) is not None:
            streams = self._logs.open(rank)
            self._zygote.start_card(rank, [stream.card_end for stream in streams])
            self._asked += 1
            for stream in streams:
                stream.close_card_end()
                self._pump.watch(stream)

    def _show_progress(self) -> None:
        missing = self.outcome.up < self._spec.world_size and not self._ending.begun
        self._console.status(f"{self.outcome.up}/{self._spec.world_size} cards up" if missing else "")

    # Ending: why

    def _check(self, card: Card) -> None:
        """Is this the first failure? Of one that only says that another card failed, that one may still show up."""
        if card.failed_at is None or self._ending.begun:
            return
        if not card.only_heard:
            self._blame(card)
        elif self._hearsay is None:
            self._hearsay = time.monotonic() + _HEARSAY, card

    def _blame(self, card: Card) -> None:
        self._ask_at_failure()
        self._abort.pull(Failure(card.rank, self._host, card.pid, card.cause))
        self._begin_ending(self._ending.after_failure)

    def _fail(self, cause: str, exit_code: int) -> None:
        """The job cannot go on, and no card is to blame."""
        if not self._ending.begun:
            self._ask_at_failure()
            self.outcome.launcher_failed(cause, exit_code)
            self._abort.pull(Failure(LAUNCHER, self._host, os.getpid(), cause))
            self._begin_ending(self._ending.after_failure)

    def _ask_at_failure(self) -> None:
        """For the flight record: where the cards were. Their answers come while they hear of the failure."""
        if self._boxes:
            self._survey.begin(lambda standings: setattr(self, "_at_failure", standings))

    def _interrupt(self, signum: int) -> None:
        self.outcome.interrupt(signum, time.time())
        if signum == signal.SIGINT:
            self._console.say("interrupted; ending the cards (Ctrl-C again kills them)")
        to_cards = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        self._begin_ending(partial(self._ending.by_signal, to_cards))

    def _lose_zygote(self) -> None:
        code = self._zygote.wait()
        if not self._closing and not self._ending.begun:
            how = f"its zygote (pid {self._zygote.pid}) {end_in_words(code)}"
            self.outcome.launcher_failed(how, 128 - code if code < 0 else 1)
        self._over = True

    # Ending: how

    def _begin_ending(self, plan: Callable[[float, float], None]) -> None:
        plan(time.monotonic(), self._spec.grace)
        self._unstarted = iter(())
        self._end_when_done()
        if not self._ready:
            self._zygote.terminate()

    def _mind_ending(self) -> None:
        if self._console.closed and not self._ending.begun:
            self._interrupt(signal.SIGPIPE)
        signum = self._ending.due(time.monotonic())
        if signum is None:
            return
        self.outcome.signalled(signum)
        if signum == signal.SIGKILL:
            self._close_zygote()
        else:
            self._zygote.signal_cards(signum)

    def _mind_deadlines(self) -> None:
        now = time.monotonic()
        if (due := self._survey.next_time()) is not None and now >= due:
            self._survey.mind()
        if self._hearsay is not None and now >= self._hearsay[0] and not self._ending.begun:
            self._blame(self._hearsay[1])
        if self._deadline is not None and now > self._deadline:
            self._console.say(f"the zygote (pid {self._zygote.pid}) did not end in time and is killed")
            self._zygote.kill()
            self._over = True

    def _patience(self) -> float | None:
        """Seconds until something is due; None when only the cards can bring news."""
        hearsay = self._hearsay[0] if self._hearsay is not None and not self._ending.begun else None
        moments = (self._ending.next_time(), self._deadline, self._survey.next_time(), hearsay)
        times = [moment for moment in moments if moment is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _end_when_done(self) -> None:
        expected = self._asked if self._ending.begun else self._spec.world_size
        if self._ready and self._ended == self._started == expected:
            self._close_zygote()

    def _close_zygote(self) -> None:
        """No card is wanted any more: end it with all that descends from it."""
        if not self._closing:
            self._closing = True
            self._deadline = time.monotonic() + _LAST_WAIT
            self._zygote.end()
            if not self._ready:
                self._zygote.kill()


def _open_store(directory: Path) -> StoreServer:
    from superpod.interconnect.rendezvous import StoreServer  # ZeroMQ loads while the zygote does

    return StoreServer(store_endpoint(directory))
