"""What a call of a real run would take on a machine: the reader `simulate`, with ranks placed on cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from superpod.collectives import algorithms
from superpod.collectives.clock_log import Kind
from superpod.collectives.hosts import Layout
from superpod.collectives.schedule import IntArray, Schedule, Step
from superpod.collectives.simulate import Machine, suited
from superpod.interconnect import topology_file
from superpod.interconnect.placement import place
from superpod.interconnect.topology import Topology
from superpod.interconnect.topology_faults import Faults

SEND, RECV = "send", "recv"


@dataclass(frozen=True, slots=True)
class Price:
    """What one call would take.

    Attributes:
        seconds: from its start to the last rank's end; of a message, until it is there.
        bottleneck: the link class, or "memory", whose busiest link works longest.
        utilisation: the share of the time in which that one works: the rest is latency and the start of messages.
    """

    seconds: float
    bottleneck: str
    utilisation: float


class Pricer:
    """A machine with the ranks of a job on its cards. The same question has the same answer, to the last bit."""

    def __init__(self, topology: Topology, cards: IntArray, faults: Faults | None = None) -> None:
        """`cards`: the card of each rank, shape (n,), as `place` gives it; `faults`: what is wrong with the machine."""
        self.topology, self.cards, self.faults = topology, cards, faults or Faults()
        self._machine: Machine | None = None
        self._message = Schedule(SEND, "direct", 2, 1, 1, lambda step: Step.of([0], [1], 0, 1))
        self._prices: dict[tuple[str, str, int, int, tuple[int, ...], tuple[int, ...]], Price] = {}

    @staticmethod
    def of(topology: str, placement: str, n: int, faults: str = "") -> Pricer:
        """`topology`: a preset or a file; `faults` as Faults.parse takes them. Raises InvalidValue."""
        machine = topology_file.load(topology)
        return Pricer(machine, place(placement, n, machine), Faults.parse(faults))

    @property
    def machine(self) -> Machine:
        """The machine; its links are laid when they are first needed. Raises InvalidValue for impossible faults."""
        if self._machine is None:
            self._machine = Machine(self.topology, self.faults)
        return self._machine

    def schedule(
        self, collective: str, algorithm: str, ranks: Sequence[int], root: int = 0, hosts: tuple[int, ...] = ()
    ) -> Schedule:
        """The schedule by which `ranks` run an algorithm on this machine, for real and in the model.

        In a job of several hosts it follows from `hosts` (rank → host) if it can.

        One that takes a shape gets that of the machine's levels, as superpod-sim gives it, where the ranks sit on
        the first cards in their order; elsewhere it chooses one by itself.
        """
        if hosts:
            return Layout(hosts).build(collective, algorithm, root)
        if self.shapes(collective, algorithm, ranks):
            return suited(self.machine, collective, algorithm, len(ranks), root)
        return algorithms.build(collective, algorithm, len(ranks), root)

    def shapes(self, collective: str, algorithm: str, ranks: Sequence[int]) -> bool:
        """Whether the schedule of `ranks` has the machine's shape, so that all must know of one machine."""
        return algorithms.get(collective, algorithm).shaped and self._in_order(self.cards[list(ranks)])

    def price_of(self, kind: Kind, ranks: tuple[int, ...]) -> Price:
        """What a call of this kind takes; for a send or recv `ranks` are its two ends."""
        return self.price(kind.operation, kind.algorithm, kind.nbytes, kind.root, ranks, kind.hosts)

    def price(
        self,
        operation: str,
        algorithm: str,
        nbytes: int,
        root: int,
        ranks: tuple[int, ...],
        hosts: tuple[int, ...] = (),
    ) -> Price:
        """What a collective of `ranks` takes on S = `nbytes`; for a send or recv `ranks` are its two ends.

        Raises InvalidValue when a cut cannot be avoided or there is no such algorithm.
        """
        key = (operation, algorithm, nbytes, root, ranks, hosts)
        if key not in self._prices:
            cards = self.cards[list(ranks)]
            if operation in (SEND, RECV):
                found = self.machine.predict(self._message, nbytes, cards=cards)
            else:
                schedule = self.schedule(operation, algorithm, ranks, root, hosts)
                found = self.machine.predict(schedule, nbytes, cards=None if self._in_order(cards) else cards)
            self._prices[key] = Price(found.seconds, found.bottleneck, found.utilisation)
        return self._prices[key]

    def _in_order(self, cards: IntArray) -> bool:
        return bool(np.array_equal(cards, np.arange(len(cards))))
