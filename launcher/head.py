"""The head of a job: hears of everything that happens on its hosts, and decides what follows.

One loop and no threads: whatever may happen is a file descriptor in one selector. Nothing in it blocks, so that a slow
console, a stuck card or a host that has gone cannot keep it from hearing of a failure.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from math import inf
from typing import Any, Protocol

from superpod.collectives.standing import Standing, describe
from superpod.interconnect.control import Failure
from superpod.interconnect.errors import ranks_text
from superpod.launcher.console import Console
from superpod.launcher.ending import Ending
from superpod.launcher.flight import flight_record
from superpod.launcher.job import JobSpec
from superpod.launcher.logs import Logs
from superpod.launcher.outcome import LAUNCHER, Card, Outcome
from superpod.launcher.pipes import Drain
from superpod.launcher.processes import end_in_words, signal_name
from superpod.launcher.share import ranks_of
from superpod.launcher.signals import ENDING, SignalInbox
from superpod.launcher.survey import Standings, ended_how
from superpod.launcher.values import Values

_SAME_WAIT = 1 / 3  # of a wait's length: reports are no closer together, for all cards that wait ask for them
_HEARSAY = 0.3  # seconds: a card that only heard of a failure is believed when its cause does not show up by then
_HERE = -1  # in place of a host's number: where the head is
_ANSWERS = 2.5  # seconds for the hosts to say what their cards are doing, or did


class HostAgent(Protocol):
    """One host of the job: an Agent in this process, or one that is reached over a line."""

    @property
    def doubtful(self) -> bool:
        """Whether it will soon be known if the host is lost."""
        ...

    def obey(self, order: dict[str, Any]) -> None: ...

    def next_time(self) -> float | None:
        """When `mind` wants to be called at the latest, by time.monotonic()."""
        ...

    def mind(self) -> None: ...

    def close(self) -> None: ...


class Head:
    """Use: `add` an agent for every host, `run()`, then `outcome`; `close()` whatever happened."""

    def __init__(
        self, spec: JobSpec, console: Console, logs: Logs, inbox: SignalInbox, selector: selectors.BaseSelector
    ) -> None:
        """`selector`: the one that everything on this host is registered in; its keys have functions as their data."""
        self.names = [host.plain for host in spec.hosts] or [socket.gethostname()]
        self._ranks = ranks_of(spec.sizes)
        self.outcome = Outcome(spec.world_size)
        for card in self.outcome.cards:
            card.host = self.names[spec.host_of(card.rank)]
        self._spec, self._console, self._logs, self._inbox = spec, console, logs, inbox
        self._agents: list[HostAgent] = []
        self._idle, self._over = set[int](), set[int]()  # hosts
        self._ending = Ending()
        self._signalled = set[int]()  # hosts whose launcher got a signal that ends the job
        self._closing = False
        self._hearsay: tuple[float, Card] | None = None  # when to believe it, and whom
        self._values = Values(self._order)
        self._asked: tuple[float, dict[int, Standing], set[int], Callable[[Standings], None]] | None = None
        self._reported = float("-inf")  # when the last report on waiting cards was asked for
        self._records: dict[int, Standing] = {}
        self._awaited_records = set[int]()  # hosts
        self.selector = selector
        self._drain = Drain(selector, console, lambda held: self._order_all({"do": "hold", "held": held}))
        selector.register(inbox, selectors.EVENT_READ, self._on_signals)

    def add(self, agent: HostAgent) -> None:
        """The agent of the next host; what happens there it must say to `hear`, with the host's number."""
        self._agents.append(agent)

    def run(self) -> None:
        """Until nothing of the job runs any more."""
        self._order_all({"do": "start"})
        self._show_progress()
        while len(self._over) < len(self._agents):
            self._turn(None)

    def _turn(self, at_most: float | None) -> None:
        """One round of the loop, of at most that many seconds."""
        patience = self._patience()
        if at_most is not None:
            patience = at_most if patience is None else min(at_most, patience)
        for key, _ in self.selector.select(patience):
            key.data()
        self._drain.balance()
        self._mind_ending()
        self._mind_deadlines()

    def close(self) -> None:
        """Leave nothing, however `run` ended."""
        code = self.outcome.exit_code
        if len(self._over) < len(self._agents):  # the head itself has failed: no host may think that all went well
            code = code or 1
        self._order_all({"do": "leave", "code": code})
        with ExitStack() as stack:
            for agent in self._agents:
                stack.callback(agent.close)

    def flight_record(self, reason: str) -> dict[str, Any] | None:
        """What the cards have recorded, also those that are gone; None when no card has. Call it before `close`."""
        self._awaited_records = set(range(len(self._agents)))
        self._order_all({"do": "record"})
        end = time.monotonic() + _ANSWERS
        while self._awaited_records and (rest := end - time.monotonic()) > 0:
            self._turn(rest)
        if not self._records:
            return None
        for card in self.outcome.cards:
            how = f"was on host {card.host}, which is gone" if card.lost else ended_how(card)
            self._records.setdefault(card.rank, Standing(card.rank, silent=how))
        return flight_record(self.outcome, self._records, socket.gethostname(), reason)

    def _order(self, number: int, order: dict[str, Any]) -> None:
        self._agents[number].obey(order)

    def _order_all(self, order: dict[str, Any], but: int | None = None) -> None:
        for number, agent in enumerate(self._agents):
            if number != but:
                agent.obey(order)

    # What may happen

    def hear(self, number: int, event: dict[str, Any]) -> None:
        """An event from host `number`; one that makes no sense is none."""
        match event:
            case {"event": "output", "rank": int(rank), "stream": int(stream), "data": bytes(data)} if (
                rank == LAUNCHER or rank in self._ranks[number]
            ) and stream in (1, 2):
                self._logs.write(rank if rank >= 0 else -1 - number, stream, data)
            case {"event": "warning", "text": str(text)}:
                self._console.say(text + self._on(number))
            case {"event": "started", "rank": int(rank), "pid": int(pid)} if rank in self._ranks[number]:
                self.outcome.started(rank, pid)
            case {"event": "failed", "text": str(text)}:
                self._fail(text + self._on(number), 1)
            case {"event": "exited", "rank": int(rank), "code": int(code), "time": float(ended)} if (
                rank in self._ranks[number]
            ):
                self._on_exit(number, rank, code, ended)
            case {"event": "news", "item": dict(item)} if item.get("rank") in self._ranks[number]:
                self._on_news(item)
            case {"event": "idle"}:
                self._idle.add(number)
            case {"event": "lost", "text": str(text), "code": int(code)}:
                self._lose(number, text, code)
            case {"event": "over"}:
                self._over.add(number)
                self._idle.add(number)
            case {"event": "standings", "standings": dict(standings)}:
                self._on_standings(number, standings)
            case {"event": "record", "standings": (dict() | None) as standings}:
                self._records.update(standings or {})
                self._awaited_records.discard(number)
            case {"event": "store", "operation": str(operation), "key": str(key), "value": bytes(value)}:
                self._values.handle(number, operation, key, value)
            case {"event": "signal", "signum": int(signum)} if signum in ENDING:
                self._on_ending_signal(number, signum)
            case {"event": "tunnel", "origin": int(origin)}:
                self._on_tunnel(number, origin, event)
        self._end_when_done()

    def _on(self, number: int) -> str:
        return f" (host {self.names[number]})" if len(self.names) > 1 else ""

    def _on_exit(self, number: int, rank: int, code: int, ended: float) -> None:
        self.outcome.ended(rank, code, ended)
        self._check(self.outcome.cards[rank])
        if code == 0:
            self._order_all({"do": "gone", "rank": rank, "how": end_in_words(code)})

    def _on_news(self, item: dict[str, Any]) -> None:
        card = self.outcome.hear(item)
        match item:
            case {"event": "late", "call": str(call), "seconds": float(seconds)} if card is not None:
                self._on_late(card.rank, call, seconds)
        if card is not None:
            self._check(card)
        self._show_progress()

    def _on_tunnel(self, number: int, origin: int, event: dict[str, Any]) -> None:
        """torch's store is on the first host."""
        to = 0 if number else origin
        if 0 < origin < len(self._agents) and number in (0, origin):
            self._order(to, {"do": "tunnel", **{k: v for k, v in event.items() if k != "event"}})

    def _on_late(self, rank: int, call: str, seconds: float) -> None:
        """A card's watchdog: it has waited for so long."""
        now = time.monotonic()
        if not self._ending.begun and now - self._reported >= seconds * _SAME_WAIT:
            self._reported = now
            self._report(f"rank {rank} has waited for {seconds:.0f} s in {call}; what the cards are doing:")

    def _on_signals(self) -> None:
        for signum in self._inbox.read():
            if signum == signal.SIGUSR1:
                self._report("what the cards are doing (SIGUSR1):")
            else:
                self._on_ending_signal(_HERE, signum)

    def _on_ending_signal(self, source: int, signum: int) -> None:
        """The launcher on host `source` got it; `_HERE`: this one.

        Slurm and Kubernetes signal all of a job's launchers: that is one request, and only a second one of the same
        host, or one while a failed job ends, means: at once.
        """
        if not self._ending.begun:
            if source != _HERE:
                self._console.say(f"host {self.names[source]} got {signal_name(signum)}; ending the cards")
            self._interrupt(signum)
        elif source in self._signalled or not self._signalled:
            self._ending.at_once(time.monotonic())
        self._signalled.add(source)

    # What the cards are doing

    def _report(self, headline: str) -> None:
        """Ask all cards what they are doing, and say it."""

        def say(standings: Standings) -> None:
            self._console.say("\n".join([headline, *(f"  {line}" for line in describe(standings))]))

        if self._asked is None:
            waits_for = set(range(len(self._agents))) - self._over
            self._asked = time.monotonic() + _ANSWERS, {}, waits_for, say
            self._order_all({"do": "survey"})

    def _on_standings(self, number: int, standings: Mapping[int, Standing]) -> None:
        if self._asked is not None:
            _, found, waits_for, _ = self._asked
            found.update(standings)
            waits_for.discard(number)
            self._mind_report()

    def _mind_report(self) -> None:
        if self._asked is None:
            return
        deadline, found, waits_for, say = self._asked
        if waits_for and time.monotonic() < deadline:
            return
        self._asked = None
        for number in waits_for:
            silent = f"is on host {self.names[number]}, which does not answer"
            found.update({rank: Standing(rank, silent=silent) for rank in self._ranks[number]})
        say(dict(sorted(found.items())))

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
        self._pull(Failure(card.rank, card.host, card.pid, card.cause))

    def _fail(self, cause: str, exit_code: int) -> None:
        """The job cannot go on, and no card is to blame."""
        if not self._ending.begun:
            self.outcome.launcher_failed(cause, exit_code)
            self._pull(Failure(LAUNCHER, socket.gethostname(), os.getpid(), cause))

    def _pull(self, failure: Failure) -> None:
        """Every card of every host hears of it, and ends."""
        self._order_all({"do": "remember"})
        self._order_all({"do": "pull", **asdict(failure)})
        self._begin_ending(self._ending.after_failure)

    def _lose(self, number: int, how: str, exit_code: int) -> None:
        """A host's zygote has ended, or the host has gone altogether."""
        if len(self.names) > 1:
            how = f"host {self.names[number]} ({ranks_text(self._ranks[number])}) was lost: {how}"
            for rank in self._ranks[number]:
                self.outcome.cards[rank].lost = True
        if self._ending.begun:
            self._console.say(f"while the job ended: {how}")
        self._fail(how, exit_code)

    def _interrupt(self, signum: int) -> None:
        self.outcome.interrupt(signum, time.time())
        if signum == signal.SIGINT:
            self._console.say("interrupted; ending the cards (Ctrl-C again kills them)")
        to_cards = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        self._begin_ending(partial(self._ending.by_signal, to_cards))

    # Ending: how

    def _begin_ending(self, plan: Callable[[float, float], None]) -> None:
        plan(time.monotonic(), self._spec.grace)
        self._order_all({"do": "stop"})
        self._end_when_done()

    def _mind_ending(self) -> None:
        if self._console.closed and not self._ending.begun:
            self._interrupt(signal.SIGPIPE)
        signum = self._ending.due(time.monotonic())
        if signum is None:
            return
        self.outcome.signalled(signum)
        if signum == signal.SIGKILL:
            self._end(kill=True)
        else:
            self._order_all({"do": "signal", "signum": signum})

    def _mind_deadlines(self) -> None:
        for agent in self._agents:
            agent.mind()
        self._mind_report()
        if self._believes_at() <= time.monotonic():
            assert self._hearsay is not None
            self._blame(self._hearsay[1])

    def _believes_at(self) -> float:
        """When hearsay is believed: not while the loss of a host may turn out to be its cause."""
        waits = self._hearsay is None or self._ending.begun or any(agent.doubtful for agent in self._agents)
        return inf if waits or self._hearsay is None else self._hearsay[0]

    def _patience(self) -> float | None:
        """Seconds until something is due; None when only the cards can bring news."""
        report = self._asked[0] if self._asked is not None else None
        moments = (
            self._ending.next_time(),
            self._believes_at(),
            report,
            *(agent.next_time() for agent in self._agents),
        )
        times = [moment for moment in moments if moment is not None and moment < inf]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _end_when_done(self) -> None:
        if len(self._idle) == len(self._agents):
            self._end(kill=False)

    def _end(self, *, kill: bool) -> None:
        """No card is wanted any more, on no host."""
        if not self._closing:
            self._closing = True
            self._order_all({"do": "end", "kill": kill})
