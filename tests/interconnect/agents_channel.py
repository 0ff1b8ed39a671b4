"""The agents' channel in one process: a head that answers every message with itself, and agents that ask."""

from __future__ import annotations

import os
import select
import threading

from cards import SOON, eventually

from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_agents import AgentCall, AgentDesk


class Head:
    """A desk that a thread serves. Attributes: port; names: of those whose messages have come."""

    def __init__(self, secret: JobSecret) -> None:
        self._secret, self._desk = secret, AgentDesk("tcp://127.0.0.1:0", secret)
        self.port = int(self._desk.endpoint.rpartition(":")[2])
        self.names: set[bytes] = set()
        self._end = os.eventfd(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self._desk.has_more() or self._end not in select.select([self._desk, self._end], [], [])[0]:
            for name, message in self._desk.read():
                self.names.add(name)
                self._desk.send(name, message)

    def agent(self) -> AgentCall:
        return AgentCall([self._desk.endpoint], self._secret)

    def stop(self) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join(SOON)
        self._desk.close()
        os.close(self._end)


def ask(agent: AgentCall) -> None:
    """To the head and back."""
    eventually(lambda: agent.send(b"how are you"))
    answers: list[bytes] = []
    eventually(lambda: answers.extend(agent.read()) or answers)
    assert answers == [b"how are you"]
