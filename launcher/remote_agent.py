"""The head's side of an agent on another host: orders go over the line, events come back, silence means loss."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable
from math import inf
from typing import Any, Protocol

from superpod.collectives.standing import Standing
from superpod.interconnect.errors import BadFrame
from superpod.launcher.heartbeat import BEAT, Heartbeat
from superpod.launcher.line import Line
from superpod.launcher.pipes import Drain

_LOST = 1  # exit code of a job that lost a host


class FarHost(Protocol):
    """How a host was reached. Attributes: line: to its agent; drain: keeps the line moving."""

    @property
    def line(self) -> Line: ...

    @property
    def drain(self) -> Drain: ...

    def why(self) -> str:
        """Why the line has ended, in words."""
        ...

    def close(self, *, kill: bool = False) -> None: ...


class RemoteAgent:
    """Attributes: lost: the host has gone, or its agent has."""

    def __init__(
        self,
        host: FarHost,
        silence: float,
        selector: selectors.BaseSelector,
        tell: Callable[[dict[str, Any]], None],
        bury: Callable[[list[int], list[int], str], None] | None = None,
    ) -> None:
        """`silence`: see Reach; `bury(processes, groups, directory)`: called once for a host that has fallen silent, to
        end what may still be there.
        """
        self._host, self._line, self._tell, self._selector, self._bury = host, host.line, tell, selector, bury
        self._heart = Heartbeat(silence)
        self._processes, self._groups, self._directory = list[int](), list[int](), ""  # what may be there
        self._parts: dict[str, dict[int, Standing]] = {}
        self.lost = self._over = False
        selector.register(self._line, selectors.EVENT_READ, self._on_line)

    def obey(self, order: dict[str, Any]) -> None:
        if not self.lost:
            self._line.send(order)
            self._host.drain.balance()
        elif order["do"] in ("survey", "record"):  # nobody is to wait for it
            self._tell({"event": "standings" if order["do"] == "survey" else "record", "standings": {}})

    def _on_line(self) -> None:
        if self.lost:  # in this very round of the loop
            return
        try:
            messages = self._line.receive()
        except BadFrame as error:
            self._lose(f"what it said made no sense: {error}")
            return
        if messages:
            self._heart.hear()
        for message in messages:
            self._on_event(message)
        if self._line.closed and not self.lost:
            self._lose(self._host.why())

    def _on_event(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "here", "pids": list(pids), "directory": str(directory)}:
                self._processes, self._directory = [pid for pid in pids if isinstance(pid, int)], directory
                return
            case {"event": "part", "of": str(kind), "standings": dict(standings)}:
                self._parts.setdefault(kind, {}).update(standings)
                return
            case {"event": "standings" | "record" as kind}:
                event = {"event": kind, "standings": self._parts.pop(kind, {})}
            case {"event": "started", "pid": int(pid)}:
                self._groups.append(pid)
            case {"event": "over"}:
                self._over = True
        if isinstance(event.get("event"), str):
            self._tell(event)

    def _lose(self, how: str) -> None:
        self.lost = True
        self._selector.unregister(self._line)
        self._host.drain.close()
        if not self._over:
            self._tell({"event": "lost", "text": how, "code": _LOST})
            self._tell({"event": "over"})

    @property
    def doubtful(self) -> bool:
        """Whether it will soon be known if the host is lost."""
        return not self.lost and self._line.doubted is not None

    def next_time(self) -> float | None:
        return None if self.lost else min(self._heart.next_time(), self._line.doubted or inf)

    def mind(self) -> None:
        if self.lost:
            return
        self._host.drain.balance()  # or the loop would spin once what was queued is written
        if self._heart.silent_for() is not None:
            self._on_line()  # it may have spoken while the head was busy elsewhere
        if self.lost:
            return
        if (seconds := self._heart.silent_for()) is not None:
            self._lose(f"nothing has been heard of it for {seconds:.1f} s: its link is down, or it is frozen")
            if self._bury is not None and self._processes:
                self._bury(self._processes, self._groups, self._directory)
        elif self._line.doubted is not None and time.monotonic() >= self._line.doubted:
            self._lose(self._host.why())
        elif self._heart.is_due():
            self.obey(BEAT)

    def close(self) -> None:
        """Let the agent go; it ends whatever still runs on its host."""
        if not self.lost:
            self.lost = True
            self._line.send({"do": "leave", "code": 1})  # unless the head has said it before
            end = time.monotonic() + 1.0
            while self._line.waits_for() is not None and time.monotonic() < end:
                self._line.write_ready()
            self._selector.unregister(self._line)
            self._host.close()
        else:
            self._host.close(kill=True)
