"""One per host: starts the zygote and through it the cards, watches them, and does what the head of the job says.

The head is in the same process on the host where superpod-run was started, and behind a line on the others; it makes no
difference here. Orders come in as small dictionaries ("do"), events go out as such ("event"); head.py decides what
follows from them. No thread: whatever may happen is a file descriptor in one selector, and nothing blocks.
"""

from __future__ import annotations

import os
import selectors
import signal
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpod.interconnect.control import AbortSwitch, Failure, NewsDesk
from superpod.launcher.console import STDERR, STDOUT
from superpod.launcher.outcome import LAUNCHER, Outcome
from superpod.launcher.pipes import CardPipe, Pump
from superpod.launcher.processes import adopt_orphans, children, end_in_words, kill_children
from superpod.launcher.share import Share
from superpod.launcher.survey import BlackBoxes, Standings, Survey
from superpod.launcher.tunnel import Tunnel
from superpod.launcher.zygote_process import ZygoteProcess, store_endpoint

if TYPE_CHECKING:
    from superpod.interconnect.rendezvous import StoreServer

_UNDER_WAY = 32  # cards being started at a time: fewer would wait for one another, more fill the channel
_LAST_WAIT = 8.0  # seconds for the zygote to say that all has ended

Tell = Callable[[dict[str, Any]], None]


class Agent:
    """Use: `obey(order)`; keep the selector going, and call `mind` at `next_time` at the latest; `close` at the end.

    Attributes:
        pump: reads what the cards print; hold it when there is nowhere to put that.
        zygote_pid: the process from which the cards are forked.
    """

    def __init__(
        self,
        share: Share,
        directory: Path,
        selector: selectors.BaseSelector,
        tell: Tell,
        spared: Collection[int] = (),
    ) -> None:
        """`spared`: children of this process that are none of the agent's, beside those that it has already."""
        self._share, self._selector, self._tell, self._spared = share, selector, tell, spared
        self._not_ours = children(os.getpid())  # of the process that became the agent
        adopt_orphans()
        self._cards = Outcome(share.world_size)
        self._unstarted: Iterator[int] = iter(share.ranks)
        self._asked = self._started = self._ended = 0  # cards so far
        self._ready = self._wanted = self._stopped = self._idle = self._closing = self._over = False
        self._deadline: float | None = None  # for the zygote to end
        self._pipes: list[CardPipe] = []
        self.pump = Pump(selector)
        self._boxes = BlackBoxes()
        self._survey = Survey(directory, self._cards, share.ranks, self._boxes, selector)
        self._at_failure: Standings = {}
        self._tunnel = Tunnel(self.pump, selector, share.number, tell)
        self._zygote = self._start_zygote(directory)
        self.zygote_pid = self._zygote.pid
        try:
            host = share.names[share.number] if len(share.sizes) > 1 else ""
            self._abort, self._desk = AbortSwitch(directory, host), NewsDesk(directory)
            self._store = self._open(directory)
        except BaseException:
            self._zygote.kill()
            raise
        for source, handler in (
            (self._zygote, self._on_zygote),
            (self._desk, self._on_news),
            (self._store, self._store.serve),
        ):
            selector.register(source, selectors.EVENT_READ, handler)

    def _start_zygote(self, directory: Path) -> ZygoteProcess:
        """torch's store is hosted by the first host's zygote; elsewhere its cards are led there."""
        output = self._new_pipe(LAUNCHER, STDERR)
        port = self._tunnel.listen() if self._share.number else None
        zygote = ZygoteProcess(self._share, directory, output.card_end, port)
        self._tunnel.port = zygote.store_port
        output.close_card_end()
        self.pump.watch(output)
        return zygote

    def _open(self, directory: Path) -> StoreServer:
        """The store in which this host's cards meet; with several hosts it is a branch of the head's."""
        from superpod.interconnect.rendezvous import StoreServer  # ZeroMQ loads while the zygote does

        several = len(self._share.sizes) > 1
        return StoreServer(store_endpoint(directory), upstream=self._ask_head if several else None)

    def _ask_head(self, operation: str, key: str, value: bytes) -> None:
        self._tell({"event": "store", "operation": operation, "key": key, "value": value})

    def _new_pipe(self, rank: int, stream: int) -> CardPipe:
        self._pipes.append(CardPipe(rank, stream, self._print))
        return self._pipes[-1]

    def _print(self, rank: int, stream: int, data: bytes) -> None:
        self._tell({"event": "output", "rank": rank, "stream": stream, "data": data})

    def obey(self, order: dict[str, Any]) -> None:
        """Do what the head says; an order that makes no sense is none."""
        match order:
            case {"do": "start"}:
                self._wanted = True
                self._start_cards()
            case {"do": "stop"}:
                self._stop()
            case {"do": "pull", "rank": int(rank), "host": str(host), "pid": int(pid), "cause": str(cause)}:
                self._abort.pull(Failure(rank, host, pid, cause))
            case {"do": "gone", "rank": int(rank), "how": str(how)}:
                self._abort.note_gone(rank, how)
            case {"do": "signal", "signum": int(signum)}:
                self._cards.signalled(signum)
                self._zygote.signal_cards(signum)
            case {"do": "end", "kill": bool(kill)}:
                self._end(kill)
            case {"do": "survey"}:
                self._survey.begin(lambda found: self._tell({"event": "standings", "standings": found}))
            case {"do": "remember"}:
                self._remember()
            case {"do": "record"}:
                self._tell({"event": "record", "standings": self._record()})
            case {"do": "value", "key": str(key), "value": bytes(value)}:
                self._store.offer(key, value)
            case {"do": "tunnel"}:
                self._tunnel.handle(order)
            case {"do": "hold", "held": bool(held)}:
                self.pump.hold("head", held)

    # What may happen

    def _on_zygote(self) -> None:
        if self._over:  # in this very round of the loop
            return
        match self._zygote.receive():
            case None:
                self._lose_zygote()
            case {"event": "ready"}:
                self._ready = True
                self._start_cards()
            case {"event": "warning", "text": text}:
                self._tell({"event": "warning", "text": text})
            case {"event": "started", "rank": rank, "pid": pid} if rank >= 0:
                self._started += 1
                self._cards.started(rank, pid)
                self._tell({"event": "started", "rank": rank, "pid": pid})
                self._start_cards()
            case {"event": "failed", "rank": rank, "text": text}:
                self._started += rank >= 0
                self._ended += rank >= 0
                self._tell({"event": "failed", "text": text})
            case {"event": "exited", "rank": rank, "code": code, "time": ended}:
                self._on_exit(rank, code, ended)
            case {"event": "ended"}:
                self._finish()
        self._tell_when_idle()

    def _on_exit(self, rank: int, code: int, ended: float) -> None:
        if rank >= 0:
            self._ended += 1
            self._cards.ended(rank, code, ended)
            self._tell({"event": "exited", "rank": rank, "code": code, "time": ended})
        elif not self._closing:
            self._tell({"event": "failed", "text": f"the process with torch's store {end_in_words(code)}"})

    def _on_news(self) -> None:
        for item in self._desk.read():
            descriptor = item.pop("descriptor", None)
            card = self._cards.hear(item)
            if descriptor is not None and card is not None and item["event"] == "record":
                self._boxes.hold(card.rank, descriptor)
            elif descriptor is not None:
                os.close(descriptor)
            if card is not None and card.rank in self._share.ranks:
                self._tell({"event": "news", "item": item})

    # Starting

    def _start_cards(self) -> None:
        if not (self._wanted and self._ready):
            return
        while self._asked - self._started < _UNDER_WAY and (rank := next(self._unstarted, None)) is not None:
            pipes = [self._new_pipe(rank, stream) for stream in (STDOUT, STDERR)]
            self._zygote.start_card(rank, [pipe.card_end for pipe in pipes])
            self._asked += 1
            for pipe in pipes:
                pipe.close_card_end()
                self.pump.watch(pipe)

    # What the cards are doing

    def _remember(self) -> None:
        """For the flight record: where the cards were. Their answers come while they hear of the failure."""
        if self._boxes:
            self._survey.begin(lambda standings: setattr(self, "_at_failure", standings))

    def _record(self) -> Standings | None:
        """What the cards have recorded, also those that are gone; None when no card has."""
        self._on_news()
        return self._survey.record(self._at_failure) if self._boxes else None

    # Ending

    @property
    def doubtful(self) -> bool:
        return False  # a host is not lost to itself

    def next_time(self) -> float | None:
        """When `mind` wants to be called at the latest, by time.monotonic()."""
        times = [moment for moment in (self._deadline, self._survey.next_time()) if moment is not None]
        return min(times, default=None)

    def mind(self) -> None:
        now = time.monotonic()
        if (due := self._survey.next_time()) is not None and now >= due:
            self._survey.mind()
        if self._deadline is not None and now > self._deadline and not self._over:
            text = f"the zygote (pid {self._zygote.pid}) did not end in time and is killed"
            self._tell({"event": "warning", "text": text})
            self._zygote.kill()
            self._finish()

    def _stop(self) -> None:
        """Start no more cards."""
        self._unstarted, self._stopped = iter(()), True
        if not self._ready and not self._over:
            self._zygote.terminate()
        self._tell_when_idle()

    def _tell_when_idle(self) -> None:
        """Once, when none of this host's cards runs any more and none will be started."""
        expected = self._asked if self._stopped else len(self._share.ranks)
        if self._ready and not self._idle and self._ended == self._started == expected:
            self._idle = True
            self._tell({"event": "idle"})

    def _end(self, kill: bool) -> None:
        """No card is wanted any more: end the zygote with all that descends from it. `kill`: some may still run."""
        if kill:
            self._cards.signalled(signal.SIGKILL)
        if not self._closing and not self._over:
            self._closing = True
            self._deadline = time.monotonic() + _LAST_WAIT
            self._zygote.end()
            if not self._ready:
                self._zygote.kill()

    def _lose_zygote(self) -> None:
        if self._over:
            return
        code = self._zygote.wait()
        if not self._closing and not self._stopped:
            how = f"its zygote (pid {self._zygote.pid}) {end_in_words(code)}"
            self._tell({"event": "lost", "text": how, "code": 128 - code if code < 0 else 1})
        self._finish()

    def _finish(self) -> None:
        """The zygote has ended, and with it all cards: pass on what they left, and say so."""
        self._over, self._deadline = True, None
        self._selector.unregister(self._zygote)
        self._zygote.wait()
        kill_children(_LAST_WAIT, spare=[*self._not_ours, *self._spared])
        self._on_news()
        for pipe in self._pipes:
            self.pump.forget(pipe)
            pipe.read(all_there_is=True)
        self._tell({"event": "over"})

    def close(self) -> None:
        """Leave nothing, however it came to this."""
        if not self._over:
            self._zygote.kill()
            self._finish()
        for pipe in self._pipes:
            pipe.close()
        for source in (self._desk, self._store):
            self._selector.unregister(source)
        parts = (self._survey, self._tunnel, self._zygote, self._abort, self._desk, self._store, self._boxes)
        for part in parts:
            part.close()
