"""An agent's life on a host where the head of the job is not: from the muster to the end, at the end of a line."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from superpod.interconnect.env import LauncherSettings, ssh_connection
from superpod.interconnect.errors import BadFrame, InvalidValue
from superpod.interconnect.interfaces import local_address
from superpod.launcher.agent import Agent
from superpod.launcher.directory import job_directory
from superpod.launcher.facts import facts
from superpod.launcher.heartbeat import BEAT, Heartbeat
from superpod.launcher.job import check_target
from superpod.launcher.limits import allow_files
from superpod.launcher.line import Line
from superpod.launcher.messages import split
from superpod.launcher.pipes import Drain
from superpod.launcher.processes import set_process_name, signal_name
from superpod.launcher.share import Share
from superpod.launcher.signals import SignalInbox

_FIRST_ORDERS = 120.0  # seconds until the head must have said what is to be done: other hosts may be slow to start


class FarAgent:
    """Use: `run()`, which returns the process's exit code."""

    def __init__(self, line: Line, own: Mapping[str, Any] | None = None, first_orders: float = _FIRST_ORDERS) -> None:
        """`own`: parts of its share that this host knows better; `first_orders`: seconds to wait for the job."""
        self._line, self._own = line, own or {}
        self._code = 0
        self._selector = selectors.DefaultSelector()
        self._drain = Drain(self._selector, line, self._hold)
        self._heart = Heartbeat(first_orders)
        self._agent: Agent | None = None
        self._share: Share | None = None
        self._early: list[dict[str, Any]] = []  # orders that came before there was an agent
        self._leaving = self._signalled = False
        self._inbox = SignalInbox()
        self._selector.register(line, selectors.EVENT_READ, self._on_line)
        self._selector.register(self._inbox, selectors.EVENT_READ, self._on_signals)

    def run(self) -> int:
        set_process_name("superpod-agent")
        with self._inbox.installed():
            while self._share is None and not self._leaving:
                self._turn()
            if self._share is not None and not self._leaving:
                self._live(self._share)
        with contextlib.suppress(OSError):
            self._line.write_ready()
        self._line.close()
        return self._code

    def _live(self, share: Share) -> None:
        try:
            allow_files(len(share.ranks), share.world_size)
            with (
                job_directory(LauncherSettings.read().runtime_directory) as directory,
                contextlib.closing(Agent(share, directory, self._selector, self._tell)) as agent,
            ):
                self._agent = agent
                self._tell({"event": "here", "pids": [os.getpid(), agent.zygote_pid], "directory": str(directory)})
                for order in self._early:
                    agent.obey(order)
                while not self._leaving:
                    self._turn()
                self._agent = None
        except InvalidValue as error:
            self._tell({"event": "lost", "text": str(error), "code": 1})
            self._code = 1

    def _turn(self) -> None:
        times = [self._heart.next_time(), self._agent.next_time() if self._agent else None]
        patience = min(moment for moment in times if moment is not None) - time.monotonic()
        for key, _ in self._selector.select(0.0 if self._line.has_news else max(0.0, patience)):
            key.data()
        if self._line.has_news:
            self._on_line()
        if self._agent is not None:
            self._agent.mind()
        self._beat()
        self._drain.balance()

    def _beat(self) -> None:
        if self._heart.silent_for() is not None:
            _say("nothing has been heard of the head of the job; ending its cards here")
            self._leaving, self._code = True, 1
        elif self._heart.is_due():
            self._line.send(BEAT)

    def _hold(self, held: bool) -> None:
        if self._agent is not None:
            self._agent.pump.hold("line", held)

    def _on_line(self) -> None:
        try:
            orders = self._line.receive()
        except BadFrame as error:
            _say(f"what the head of the job said made no sense: {error}")
            self._leaving, self._code = True, 1
            return
        if orders:
            self._heart.hear()
        for order in orders:
            self._obey(order)
        if self._line.closed:
            self._leaving = True

    def _obey(self, order: dict[str, Any]) -> None:
        match order:
            case {"do": "muster"}:
                self._line.send({"event": "hello", **muster(order)})
            case {"do": "job", "share": dict(fields), "silence": float(silence)}:
                self._share, self._heart = Share.from_message({**fields, **self._own}), Heartbeat(silence)
            case {"do": "leave", "code": int(code)} if not self._leaving:
                self._leaving, self._code = True, code
                self._line.send({"event": "bye"})
            case {"do": "refuse", "why": str(why)}:
                _say(why)
                self._leaving, self._code = True, 2
                self._line.send({"event": "bye"})
            case {"do": str()}:
                self._early.append(order) if self._agent is None else self._agent.obey(order)

    def _tell(self, event: dict[str, Any]) -> None:
        if event["event"] in ("record", "standings"):
            for portion in split(event["standings"]):
                self._line.send({"event": "part", "of": event["event"], "standings": portion})
            event = {"event": event["event"], "standings": {}}
        self._line.send(event)

    def _on_signals(self) -> None:
        """The head ends the job, so that the cards here have their grace; a second signal ends them at once."""
        for signum in self._inbox.read():
            if signum == signal.SIGUSR1:
                continue
            if self._agent is not None and not self._signalled:
                self._signalled = True
                self._tell({"event": "signal", "signum": signum})
            else:
                name = signal_name(signum)
                self._tell({"event": "lost", "text": f"its agent (pid {os.getpid()}) got {name}", "code": 128 + signum})
                self._leaving, self._code = True, 128 + signum


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # ssh, which would carry it on, may have gone
        print(f"superpod: {text}", file=sys.stderr, flush=True)


def muster(order: dict[str, Any]) -> dict[str, Any]:
    """Go where the job is to run and take on its environment; says what is there, and what is in the way ("trouble").

    Keys of the answer: facts, address, trouble.
    """
    import superpod.interconnect.rendezvous  # noqa: F401  later its loading, from a slow disk, would look like silence

    found: dict[str, Any] = {"facts": facts(), "address": "", "trouble": ""}
    os.environ.update({str(name): str(value) for name, value in order.get("environment", {}).items()})
    workdir = str(order.get("workdir", ""))
    try:
        os.chdir(workdir or ".")
        check_target(str(order.get("kind")), str(order.get("target")))
        found["address"] = reachable_address(str(order.get("interface", "")))
    except OSError as error:
        found["trouble"] = f"directory {workdir} must be there: {error.strerror}; name another with --workdir"
    except InvalidValue as error:
        found["trouble"] = str(error)
    return found


def reachable_address(interface: str) -> str:
    """The address by which other hosts reach this one: that to which ssh came, or one of the chosen interface."""
    head, own = ssh_connection()
    if own and not interface and "%" not in own:
        return own
    return local_address(interface or None, head or None)
