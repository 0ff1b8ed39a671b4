"""Before a job on several hosts starts: is every host there, with the same Python, superpod and torch?"""

from __future__ import annotations

import contextlib
import selectors
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from superpod.interconnect.errors import BadFrame, InvalidValue
from superpod.launcher.facts import differences, facts
from superpod.launcher.processes import signal_name
from superpod.launcher.remote_agent import FarHost
from superpod.launcher.signals import SignalInbox

_ANSWER_WITHIN = 60.0  # seconds: a jump host may ask another one, and Python be loaded over a network


class Interrupted(Exception):
    """A signal came while the hosts were being gathered. Attributes: signum."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"ended by {signal_name(signum)}")
        self.signum = signum


class Gathering:
    """Waits for the answers of all hosts at once."""

    def __init__(self, hosts: Mapping[str, FarHost], selector: selectors.BaseSelector, inbox: SignalInbox) -> None:
        """`hosts`: by name."""
        self._hosts, self._selector, self._inbox = hosts, selector, inbox
        self._answers: dict[str, dict[str, Any]] = {}
        self._failed: dict[str, str] = {}
        self._listened = set[str]()

    def ask(self, order: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What every host answers, by name. Raises InvalidValue naming those that do not, Interrupted."""
        for name, host in self._hosts.items():
            host.line.send(order)
            self._listen(name)
        import superpod.interconnect.rendezvous  # noqa: F401  the hosts load it now, too: later it would be silence

        self._selector.register(self._inbox, selectors.EVENT_READ, self._on_signal)
        try:
            self._wait(time.monotonic() + _ANSWER_WITHIN)
        finally:
            self._selector.unregister(self._inbox)
            for name in list(self._listened):
                self._ignore(name)
        if self._failed:
            raise InvalidValue("\n".join(f"host {name} cannot take part: {why}" for name, why in self._failed.items()))
        return self._answers

    def _listen(self, name: str) -> None:
        self._selector.register(self._hosts[name].line, selectors.EVENT_READ, partial(self._on_line, name))
        self._listened.add(name)

    def _ignore(self, name: str) -> None:
        if name in self._listened:
            self._listened.discard(name)
            self._selector.unregister(self._hosts[name].line)

    def _wait(self, end: float) -> None:
        while missing := self._hosts.keys() - self._answers.keys() - self._failed.keys():
            for name in missing:
                self._hosts[name].drain.balance()
            rest = end - time.monotonic()
            for key, _ in self._selector.select(max(0.0, rest)):
                key.data()
            if rest <= 0:
                why = f"it has not answered within {_ANSWER_WITHIN:.0f} s; does `ssh {{}} true` work?"
                self._failed.update({name: why.format(name) for name in missing})

    def _on_line(self, name: str) -> None:
        host = self._hosts[name]
        try:
            messages = host.line.receive()
        except BadFrame as error:
            self._fail(name, str(error))
            return
        for message in messages:
            if message.get("event") == "hello" and isinstance(message.get("facts"), dict):
                self._answers[name] = message
                if message.get("trouble"):
                    self._fail(name, str(message["trouble"]))
        if host.line.closed and name not in self._failed:
            self._fail(name, f"{host.why()}; does `ssh {name} true` work?")

    def _fail(self, name: str, why: str) -> None:
        self._failed[name] = why
        self._ignore(name)

    def _on_signal(self) -> None:
        missing = sorted(self._hosts.keys() - self._answers.keys() - self._failed.keys())
        heed_signals(self._inbox, f"waiting for hosts {', '.join(missing)} to answer")


def heed_signals(inbox: SignalInbox, waiting: str) -> None:
    """SIGUSR1: say `waiting` on stderr, and go on. Raises Interrupted for any other signal."""
    for signum in inbox.read():
        if signum != signal.SIGUSR1:
            raise Interrupted(signum)
        with contextlib.suppress(OSError):  # nobody may read it any more
            print(f"superpod-run: {waiting}", file=sys.stderr, flush=True)


def check_agreement(here: str, answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InvalidValue with a table of what differs. `here`: this host's name; `answers`: by the others' names."""
    known = {here: facts(), **{name: {str(k): str(v) for k, v in a["facts"].items()} for name, a in answers.items()}}
    if table := differences(known):
        raise InvalidValue(table)


def machines(answers: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The machines of the other hosts, in words."""
    return {str(answer["facts"].get("machine")) for answer in answers.values()}
