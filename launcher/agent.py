"""One per host: starts the zygote and through it the cards, watches, passes on what they print, and ends the job.

One loop and no threads: whatever may happen is a file descriptor in one selector. Nothing in it blocks, so that a slow
console or a stuck card cannot keep the launcher from hearing of a failure.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from superpod.interconnect.control import AbortSwitch, Failure, NewsDesk
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.console import STDERR, Console
from superpod.launcher.directory import job_directory
from superpod.launcher.ending import Ending
from superpod.launcher.job import JobSpec
from superpod.launcher.logs import CardStream, LogFiles, Logs
from superpod.launcher.outcome import LAUNCHER, Outcome
from superpod.launcher.processes import adopt_orphans, age, children, end_in_words, kill_children
from superpod.launcher.report import failure_report, summary, summary_table, write_summary
from superpod.launcher.signals import SignalInbox
from superpod.launcher.zygote_process import ZygoteProcess, store_endpoint

if TYPE_CHECKING:
    from superpod.interconnect.rendezvous import StoreServer

_UNDER_WAY = 32  # cards being started at a time: fewer would wait for one another, more fill the channel
_LAST_WAIT = 8.0  # seconds for the zygote to say that all has ended
_FILES_EACH = 6  # a card's pipes, log files and connections to the store; rounded up


def run_job(spec: JobSpec) -> int:
    """Run the job to its end and report. Returns the exit code of superpod-run.

    Raises InvalidValue, with nothing started, for what this host cannot do. Nothing of the job is left afterwards.
    """
    started = time.time() - age()
    console = Console()
    _allow_files(spec.world_size)
    files = LogFiles(spec, console.say)
    with SignalInbox().installed() as inbox:
        logs = Logs(spec, console, files)
        with job_directory() as directory, contextlib.closing(Agent(spec, directory, console, logs, inbox)) as agent:
            agent.run()
        logs.finish()
        code = _close_books(spec, agent.outcome, started, console, logs)
        console.flush(inbox.fileno())
    return code or (128 + signal.SIGPIPE if console.closed else 0)


def _close_books(spec: JobSpec, outcome: Outcome, started: float, console: Console, logs: Logs) -> int:
    """Report and summary. Returns the exit code: the job's, or 1 when only the launcher's own writing failed."""
    code = outcome.exit_code
    if outcome.interrupted == signal.SIGPIPE:
        return code  # nobody reads any more
    first = outcome.first_failure()
    text = failure_report(outcome, socket.gethostname(), started, logs.last_lines(first.rank) if first else "")
    console.write(STDERR, _highlighted(text) if console.colours(STDERR) else text.encode())
    numbers = summary(outcome, started, time.time())
    if spec.summary:
        console.write(STDERR, summary_table(numbers).encode())
    if spec.summary_json is not None:
        try:
            write_summary(spec.summary_json, numbers)
        except OSError as error:
            console.say(f"cannot write the summary to {spec.summary_json}: {error.strerror}")
            code = code or 1
    return code or bool(console.lost)


def _highlighted(text: str) -> bytes:
    head, newline, rest = text.partition("\n")
    return f"\x1b[1;31m{head}\x1b[0m{newline}{rest}".encode() if head else b""


def _allow_files(world_size: int) -> None:
    """Raise the soft limit of open files as far as the job needs. Raises InvalidValue when the hard one forbids it."""
    needed = _FILES_EACH * world_size + 256
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InvalidValue(
            f"nproc_per_node={world_size} needs {needed} open files, and the hard limit is {hard}: "
            "raise it (ulimit -Hn) or start fewer cards"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _open_store(directory: Path) -> StoreServer:
    from superpod.interconnect.rendezvous import StoreServer  # ZeroMQ loads while the zygote does

    return StoreServer(store_endpoint(directory))


class Agent:
    """Use: `run()`, then `outcome`; `close()` whatever happened."""

    def __init__(self, spec: JobSpec, directory: Path, console: Console, logs: Logs, inbox: SignalInbox) -> None:
        self.outcome = Outcome(spec.world_size)
        self._spec, self._console, self._logs, self._inbox = spec, console, logs, inbox
        self._host = socket.gethostname()
        self._not_ours = children(os.getpid())  # of the process that became the launcher
        adopt_orphans()
        self._unstarted: Iterator[int] = iter(range(spec.world_size))
        self._started = self._ended = self._asked = 0
        self._ready = self._closing = self._over = self._paused = False
        self._deadline: float | None = None
        self._ending = Ending()
        self._selector = selectors.DefaultSelector()
        self._streams: set[CardStream] = set()
        self._console_watched: int | None = None
        with contextlib.ExitStack() as stack:
            self._zygote = self._start_zygote(directory)
            stack.callback(self._zygote.kill)
            self._abort = AbortSwitch(directory)
            self._desk = NewsDesk(directory)
            self._store = _open_store(directory)
            stack.pop_all()
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
        self._watch(output)
        return zygote

    def run(self) -> None:
        """Until nothing of the job runs any more."""
        self._show_progress()
        while not self._over:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._mind_console()
            self._mind_ending()

    def close(self) -> None:
        if not self._over:  # an error of the launcher itself
            self._zygote.kill()
        self._zygote.wait()
        kill_children(_LAST_WAIT, spare=self._not_ours)
        self._on_news()
        for part in (self._selector, self._zygote, self._abort, self._desk, self._store):
            part.close()

    # What may happen

    def _on_zygote(self) -> None:
        message = self._zygote.receive()
        match message:
            case None:
                self._lose_zygote()
            case {"event": "ready"}:
                self._ready = True
                self._start_cards()
            case {"event": "warning", "text": text}:
                self._console.say(text)
            case {"event": "failed", "text": text}:
                self._started += 1
                self._ended += 1
                self._fail(text, 1)
            case {"event": "started", "rank": rank, "pid": pid} if rank >= 0:
                self._started += 1
                self.outcome.started(rank, pid)
                self._start_cards()
            case {"event": "exited", "rank": rank, "code": code, "time": ended}:
                self._on_exit(rank, code, ended)
            case {"event": "ended"}:
                self._over = True
        self._end_when_done()

    def _on_exit(self, rank: int, code: int, ended: float) -> None:
        if rank >= 0:
            self._ended += 1
            self.outcome.ended(rank, code, ended)
            self._check(rank)
        elif not self._closing:
            self._fail(f"the process with torch's store {end_in_words(code)}", 1)

    def _on_news(self) -> None:
        for item in self._desk.read():
            self.outcome.hear(item)
            if item["event"] == "error":
                self._check(item["rank"])
        self._show_progress()

    def _on_signals(self) -> None:
        for signum in self._inbox.read():
            if self._ending.begun:
                self._ending.at_once(time.monotonic())  # asked twice
            else:
                self._interrupt(signum)

    def _on_stream(self, stream: CardStream) -> None:
        stream.read()
        if not stream.open:
            self._streams.discard(stream)
            self._selector.unregister(stream)

    # Starting

    def _start_cards(self) -> None:
        while self._asked - self._started < _UNDER_WAY and (rank := next(self._unstarted, None)) is not None:
            streams = self._logs.open(rank)
            self._zygote.start_card(rank, [stream.card_end for stream in streams])
            self._asked += 1
            for stream in streams:
                stream.close_card_end()
                self._watch(stream)

    def _show_progress(self) -> None:
        missing = self.outcome.up < self._spec.world_size and not self._ending.begun
        self._console.status(f"{self.outcome.up}/{self._spec.world_size} cards up" if missing else "")

    # Ending

    def _check(self, rank: int) -> None:
        """Has this card failed, and is it the first?"""
        card = self.outcome.cards[rank]
        if card.failed_at is not None and not self._ending.begun:
            self._abort.pull(Failure(rank, self._host, card.pid, card.cause))
            self._begin_ending(self._ending.after_failure)

    def _fail(self, cause: str, exit_code: int) -> None:
        if not self._ending.begun:
            self.outcome.launcher_failed(cause, exit_code)
            self._abort.pull(Failure(LAUNCHER, self._host, os.getpid(), cause))
            self._begin_ending(self._ending.after_failure)

    def _interrupt(self, signum: int) -> None:
        self.outcome.interrupt(signum, time.time())
        if signum == signal.SIGINT:
            self._console.say("interrupted; ending the cards (Ctrl-C again kills them)")
        to_cards = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
        self._begin_ending(partial(self._ending.by_signal, to_cards))

    def _begin_ending(self, plan: Callable[[float, float], None]) -> None:
        plan(time.monotonic(), self._spec.grace)
        self._unstarted = iter(())
        self._end_when_done()
        if not self._ready:
            self._zygote.terminate()

    def _mind_ending(self) -> None:
        """Send what is due; lose patience with a zygote that does not end."""
        if self._console.closed and not self._ending.begun:
            self._interrupt(signal.SIGPIPE)
        now = time.monotonic()
        signum = self._ending.due(now)
        if signum is not None:
            self.outcome.signalled(signum)
            if signum == signal.SIGKILL:
                self._close_zygote()
            else:
                self._zygote.signal_cards(signum)
        if self._deadline is not None and now > self._deadline:
            self._over = True
            self._zygote.kill()
            self._console.say("the zygote did not end in time and was killed")

    def _end_when_done(self) -> None:
        finished = self._spec.world_size if not self._ending.begun else self._asked
        if self._ready and self._ended >= finished and self._started >= finished:
            self._close_zygote()

    def _close_zygote(self) -> None:
        """No card is wanted any more: end it with all that descends from it."""
        if not self._closing:
            self._closing = True
            self._deadline = time.monotonic() + _LAST_WAIT
            self._zygote.end()
            if not self._ready:
                self._zygote.kill()

    def _lose_zygote(self) -> None:
        code = self._zygote.wait()
        if not self._closing and not self._ending.begun:
            how = f"its zygote (pid {self._zygote.pid}) {end_in_words(code)}"
            self.outcome.launcher_failed(how, 128 - code if code < 0 else 1)
        self._over = True

    def _patience(self) -> float | None:
        times = [moment for moment in (self._ending.next_time(), self._deadline) if moment is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    # The console and what feeds it

    def _watch(self, stream: CardStream) -> None:
        self._streams.add(stream)
        if not self._paused:
            self._selector.register(stream, selectors.EVENT_READ, partial(self._on_stream, stream))

    def _mind_console(self) -> None:
        """Read from the cards no faster than the console takes it; wait for the console while it has something."""
        if self._console.crowded and not self._paused:
            self._paused = True
            for stream in self._streams:
                self._selector.unregister(stream)
        elif self._console.roomy and self._paused:
            self._paused = False
            for stream in self._streams:
                self._watch(stream)
        wanted = self._console.waits_for()
        if wanted != self._console_watched:
            if self._console_watched is not None:
                self._selector.unregister(self._console_watched)
            if wanted is not None:
                self._selector.register(wanted, selectors.EVENT_WRITE, self._console.write_ready)
            self._console_watched = wanted
