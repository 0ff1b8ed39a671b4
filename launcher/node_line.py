"""Lines between the head of a job and its agents over ZeroMQ, for hosts that nobody reaches through ssh.

ZeroMQ queues what is sent; so that this stays bounded, each side tells the other how much it has taken.
"""

from __future__ import annotations

import os
import select
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from superpod.interconnect.errors import BadFrame
from superpod.interconnect.zmq_agents import AgentCall, AgentDesk
from superpod.launcher.messages import MAX_MESSAGE, pack, unpack

_HIGH, _LOW = 4 << 20, 1 << 20  # bytes under way: the cards' output waits, and goes on
_BYE_WITHIN = 1.0  # seconds
_BACK_WITHIN = 1.5  # seconds: an agent that lives connects again within 0.1 s or so, and speaks every half second
LAST = ("leave", "refuse")  # the orders after which an agent goes, having said "bye"
_TELL = 256 << 10  # bytes after which the other side is told what has been taken


class _Counted(ABC):
    """What both ends of a line do: pack, count, unpack. Attributes: see Line."""

    def __init__(self) -> None:
        self._sent = self._taken_there = self._taken = self._told = 0  # bytes
        self.closed = False
        self.doubted: float | None = None

    @abstractmethod
    def _transmit(self, data: bytes) -> None:
        """Hand the bytes to the socket."""

    def send(self, message: dict[str, Any]) -> None:
        data = pack(message)
        if not self.closed and len(data) <= MAX_MESSAGE:
            self._sent += len(data)
            self._transmit(data)

    def _unpacked(self, data: bytes) -> list[dict[str, Any]]:
        self._taken += len(data)
        message = unpack(data)
        if message is None:
            raise BadFrame(f"a message of {len(data)} B cannot be read")
        if self._taken - self._told > _TELL:
            self._told = self._taken
            self.send({"taken": self._taken})
        if isinstance(taken := message.get("taken"), int):
            self._taken_there = taken
            return []
        return [message]

    @property
    def crowded(self) -> bool:
        return self._sent - self._taken_there > _HIGH

    @property
    def roomy(self) -> bool:
        return self._sent - self._taken_there < _LOW

    def waits_for(self) -> int | None:
        return None  # ZeroMQ's own thread writes

    def write_ready(self) -> None:  # noqa: B027  it is meant to be empty
        """Nothing to do: see `waits_for`."""


class AgentLine(_Counted):
    """The agent's end."""

    def __init__(self, call: AgentCall) -> None:
        super().__init__()
        self._call = call
        self._unsent: deque[bytes] = deque()  # while nobody is there yet
        self._early: list[bytes] = []

    def fileno(self) -> int:
        return self._call.fileno()

    def _transmit(self, data: bytes) -> None:
        self._unsent.append(data)
        self.push()
        if self._call.has_more():
            self._early += self._call.read()

    def push(self) -> None:
        """Send what waits for somebody to be there."""
        while self._unsent and self._call.send(self._unsent[0]):
            self._unsent.popleft()

    @property
    def has_news(self) -> bool:
        """Whether `receive` has something, though `fileno` may not tell."""
        return bool(self._early) or self._call.has_more()

    def receive(self) -> list[dict[str, Any]]:
        self.push()
        arrived, self._early = self._early + self._call.read(), []
        return [message for data in arrived for message in self._unpacked(data)]

    def close(self) -> None:
        self.closed = True
        self._call.close()


class HeadLine(_Counted):
    """The head's end of the line to one agent: readable when its desk has brought something."""

    def __init__(self, desk: HeadDesk, name: bytes) -> None:
        super().__init__()
        self._desk, self._name = desk, name
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inbox: list[bytes] = []
        self._dismissed = self._said_bye = False

    def send(self, message: dict[str, Any]) -> None:
        self._dismissed = self._dismissed or message.get("do") in LAST
        super().send(message)

    @property
    def lingers(self) -> bool:
        """Whether the agent was told to go, and may still say that it knows: not by a connection that has broken."""
        return self._dismissed and not self._said_bye and self.doubted is None

    def fileno(self) -> int:
        return self._event

    @property
    def has_news(self) -> bool:
        return False  # the descriptor tells

    def bring(self, data: bytes) -> None:
        """A message from the agent; a closed line only heeds that it goes."""
        self._said_bye = self._said_bye or (self._dismissed and (unpack(data) or {}).get("event") == "bye")
        if not (self._said_bye or self.closed):
            self.doubted = None
            self._inbox.append(data)
            os.eventfd_write(self._event, 1)

    def broke(self) -> None:
        """The connection to the agent has: it has been killed, or will be back."""
        self.doubted = self.doubted or time.monotonic() + _BACK_WITHIN

    def _transmit(self, data: bytes) -> None:
        self._desk.send(self._name, data)

    def receive(self) -> list[dict[str, Any]]:
        self._desk.serve()  # what has come since the loop last looked
        arrived, self._inbox = self._inbox, []
        if arrived:
            os.eventfd_read(self._event)
        return [message for data in arrived for message in self._unpacked(data)]

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._event)


class HeadDesk:
    """Where agents arrive. `on_new(line)` is called for each that has not been here before, before its first message.

    Poll `fileno()`, then call `serve()`.
    """

    def __init__(self, desk: AgentDesk, on_new: Callable[[HeadLine], None]) -> None:
        self._desk, self._on_new = desk, on_new
        self._lines: dict[bytes, HeadLine] = {}

    def fileno(self) -> int:
        return self._desk.fileno()

    def serve(self) -> None:
        for name, data in self._desk.read():
            if (line := self._lines.get(name)) is None:
                line = self._lines[name] = HeadLine(self, name)
                self._on_new(line)
            line.bring(data)
        for name in self._desk.broken():
            self._lines[name].broke()

    def send(self, name: bytes, data: bytes) -> None:
        self._desk.send(name, data)
        if self._desk.has_more():
            self.serve()

    def close(self) -> None:
        """Once those who were told to go have heard it: ZeroMQ drops what a peer has not taken when a line breaks."""
        end = time.monotonic() + _BYE_WITHIN
        self._on_new = lambda line: line.send({"do": "refuse", "why": "the job is over"})
        while any(line.lingers for line in self._lines.values()) and (rest := end - time.monotonic()) > 0:
            select.select([self._desk], [], [], rest)
            self.serve()
        for line in self._lines.values():
            line.close()
        self._desk.close()
