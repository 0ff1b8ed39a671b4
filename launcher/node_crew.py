"""Node 0's part before a job of several nodes starts: wait until all have joined, and know where their cards are."""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import replace
from functools import partial
from typing import Any

from superpod.interconnect.errors import BadFrame, InvalidValue
from superpod.interconnect.interfaces import local_address
from superpod.interconnect.zmq_agents import AgentDesk
from superpod.launcher.crew import Crew
from superpod.launcher.gather import check_agreement, heed_signals, machines
from superpod.launcher.hosts import Host
from superpod.launcher.job import JobSpec
from superpod.launcher.munge import SecretDesk
from superpod.launcher.node_line import HeadDesk, HeadLine
from superpod.launcher.nodes import ANYWHERE, NodeSpec
from superpod.launcher.pipes import Drain
from superpod.launcher.remote_agent import FarHost
from superpod.launcher.signals import SignalInbox

JOIN_WITHIN = 600.0  # seconds for all nodes to join: a cluster may start them one after the other


class JoinedHost:
    """A host whose agent has come by itself. It is a FarHost."""

    def __init__(self, line: HeadLine, selector: selectors.BaseSelector) -> None:
        self.line = line
        self.drain = Drain(selector, line, lambda held: None)

    def why(self) -> str:
        return "its agent was killed: the connection to it has broken"

    def close(self, *, kill: bool = False) -> None:
        self.line.close()


class NodeCrew(Crew):
    """The crew of a job whose agents come by themselves; it owns the desk at which they arrive."""

    def __init__(
        self, spec: JobSpec, far: dict[int, FarHost], addresses: dict[int, str], known: set[str], muster: _Muster
    ) -> None:
        """`known`: the other nodes' machines in words."""
        super().__init__(spec, far, addresses, known)
        self._secret, self._desk = muster.secret.text if muster.secret and len(spec.sizes) > 1 else "", muster.desk

    def close(self) -> None:
        super().close()
        self._desk.close()


def call_nodes(spec: JobSpec, nodes: NodeSpec, selector: selectors.BaseSelector, inbox: SignalInbox) -> Crew:
    """Wait for all other nodes of the job. Raises InvalidValue naming those that are missing or differ; Interrupted."""
    muster = _Muster(nodes, selector, inbox)
    try:
        answers = muster.wait()
        names = {number: str(answer["host"]) for number, answer in answers.items()}
        by_name = {f"{names[n]} (node {n})": answers[n] for n in answers}
        check_agreement(socket.gethostname(), by_name)
        hosts = [Host(socket.gethostname(), nodes.cards)]
        hosts += [Host(names[number], int(answers[number]["cards"])) for number in sorted(answers)]
        addresses = {number: str(answer["address"]) for number, answer in answers.items()}
        addresses[0] = local_address(spec.reach.interface or None, next(iter(addresses.values()), None))
        world_size = sum(host.cards for host in hosts)
        spec = replace(spec, hosts=tuple(hosts), world_size=world_size)
        far: dict[int, FarHost] = {number: JoinedHost(muster.lines[number], selector) for number in answers}
        return NodeCrew(spec, far, addresses, machines(by_name), muster)
    except BaseException as error:
        muster.dismiss(str(error))
        raise


class _Muster:
    """Attributes: lines: to the nodes that have joined, by rank; desk: where they arrive; secret: the job's."""

    def __init__(self, nodes: NodeSpec, selector: selectors.BaseSelector, inbox: SignalInbox) -> None:
        self._nodes, self._selector, self._inbox = nodes, selector, inbox
        self.lines: dict[int, HeadLine] = {}
        self._all: list[HeadLine] = []
        self._answers: dict[int, dict[str, Any]] = {}
        self.secret, self._munge = nodes.secret, None
        if nodes.by_munge:
            self._munge = SecretDesk([port for _, port in nodes.endpoints], nodes.job, selector)
            self.secret = self._munge.secret
        door = AgentDesk(ANYWHERE, self.secret) if self._munge else _first_free(nodes)
        if self._munge is not None:
            self._munge.announce(int(door.endpoint.rpartition(":")[2]))
        self.desk = HeadDesk(door, self._on_new)
        selector.register(self.desk, selectors.EVENT_READ, self.desk.serve)

    def wait(self) -> dict[int, dict[str, Any]]:
        """Each node's answer, by its rank."""
        self._selector.register(self._inbox, selectors.EVENT_READ, self._on_signal)
        end = time.monotonic() + JOIN_WITHIN
        try:
            while missing := [n for n in range(1, self._nodes.count) if n not in self._answers]:
                if (rest := end - time.monotonic()) <= 0:
                    raise InvalidValue(
                        f"nodes {', '.join(map(str, missing))} of {self._nodes.count} have not joined within "
                        f"{JOIN_WITHIN:.0f} s; see their output"
                    )
                for key, _ in self._selector.select(rest):
                    key.data()
        finally:
            self._selector.unregister(self._inbox)
            for line in self._all:
                self._selector.unregister(line)
            if self._munge is not None:
                self._munge.close()
        return self._answers

    def _on_new(self, line: HeadLine) -> None:
        if len(self._answers) < self._nodes.count - 1:
            self._all.append(line)
            self._selector.register(line, selectors.EVENT_READ, partial(self._on_line, line))
        else:
            line.send({"do": "refuse", "why": "the job has all its nodes already"})

    def _on_line(self, line: HeadLine) -> None:
        try:
            messages = line.receive()
        except BadFrame:
            return
        for message in messages:
            match message:
                case {
                    "event": "join",
                    "node": int(node),
                    "cards": int(),
                    "host": str(),
                    "address": str(),
                    "facts": dict(),
                }:
                    self._join(line, node, message)

    def _join(self, line: HeadLine, node: int, answer: dict[str, Any]) -> None:
        if answer.get("trouble"):
            raise InvalidValue(f"node {node} (host {answer['host']}) cannot take part: {answer['trouble']}")
        if not 0 < node < self._nodes.count or node in self._answers or answer.get("count") != self._nodes.count:
            taken = f"; node {node} is {self._answers[node]['host']}" if node in self._answers else ""
            why = f"this job has nodes 0 to {self._nodes.count - 1}, each once{taken}"
            line.send({"do": "refuse", "why": f"--nnodes {answer.get('count')} --node-rank {node} does not fit: {why}"})
            return
        self.lines[node], self._answers[node] = line, answer

    def _on_signal(self) -> None:
        missing = ", ".join(str(n) for n in range(1, self._nodes.count) if n not in self._answers)
        heed_signals(self._inbox, f"waiting for nodes {missing} of {self._nodes.count} to join")

    def dismiss(self, why: str) -> None:
        """The job will not be."""
        for line in self._all:
            line.send({"do": "refuse", "why": why})
        self._selector.unregister(self.desk)
        self.desk.close()


def _first_free(nodes: NodeSpec) -> AgentDesk:
    places = nodes.to_listen()
    for place in places[:-1]:
        try:
            return AgentDesk(place, nodes.secret)
        except InvalidValue:
            continue
    return AgentDesk(places[-1], nodes.secret)
