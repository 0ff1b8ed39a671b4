"""The reader that predicts: how long a schedule would take on a `Topology`, and which links it would wait for.

    machine = Machine(topology_file.load("atlas-950"))
    machine.predict(algorithms.build("all_reduce", "ring", 8192), nbytes=64 << 20).seconds

The model is LogGP's with shared links: docs/model.md says what is in it and what is not. Nothing random: the same call
gives the same time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from superpod.collectives import algorithms
from superpod.collectives.bounds import lower_bound
from superpod.collectives.loads import Loads, loads
from superpod.collectives.schedule import IntArray, Schedule
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Protocol, Topology
from superpod.interconnect.topology_faults import Faults, lay
from superpod.interconnect.wires import FloatArray, LevelWires
from superpod.interconnect.wires_regular import fill

MEMORY = "memory"
"""The bottleneck's name when cards wait for their own adding and copying."""

_KEPT = 64  # schedules whose loads are remembered


@dataclass(frozen=True, slots=True)
class Usage:
    """What one link class does in a call: the time of its busiest link, and the mean of all, over the call's time."""

    name: str
    busiest: float
    mean: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a call would take.

    Attributes:
        seconds: from the start to the last rank's end.
        nsteps: steps of the schedule.
        bottleneck: the link class (or "memory") whose busiest link works longest.
        utilisation: the share of the time in which it works: the rest is latency.
        bound: seconds that no algorithm can beat on this machine.
        protocol: the fastest one, which was taken.
        usage: every link class.
        sampled: some steps stand for others (see Loads).
    """

    seconds: float
    nsteps: int
    bottleneck: str
    utilisation: float
    bound: float
    protocol: str
    usage: tuple[Usage, ...]
    sampled: bool = False

    @property
    def share_of_bound(self) -> float:
        """1: as fast as anything can be; 0.5: twice as long."""
        return self.bound / self.seconds if self.seconds > 0 else 1.0


class Machine:
    """A topology with its links laid, its faults in place, and what schedules load it with remembered."""

    def __init__(self, topology: Topology, faults: Faults | None = None) -> None:
        """Raises InvalidValue for a fault that this machine cannot have."""
        self.topology = topology
        self.wires = lay(topology, faults)
        self._slowdown = faults.slowdown() if faults else 1.0
        self._kept: OrderedDict[tuple[int, bytes], tuple[Schedule, Loads]] = OrderedDict()

    def predict(self, schedule: Schedule, nbytes: float, *, cards: IntArray | None = None) -> Prediction:
        """What `schedule` takes on S = `nbytes` (see algorithms/algorithm.py).

        Args:
            cards: the card of each rank, all different; by default rank r is card r.
        Raises:
            InvalidValue: the machine has not so many cards, or not these; nbytes is negative; a cut cannot be avoided.
        """
        if not nbytes >= 0:
            raise InvalidValue(f"nbytes={nbytes} must be at least 0")
        found = self.loads(schedule, cards)
        chunk = nbytes / schedule.nchunks
        protocols = self.topology.protocols
        calls = [call_seconds(self.topology, p, found, chunk, self._slowdown) for p in protocols]
        best = min(range(len(calls)), key=calls.__getitem__)
        return self._prediction(schedule, nbytes, found, protocols[best], calls[best])

    def loads(self, schedule: Schedule, cards: IntArray | None = None) -> Loads:
        """What a schedule loads this machine's links with, whatever the size. Raises as `predict`."""
        if schedule.world_size > self.wires.ncards:
            raise InvalidValue(
                f"{schedule.world_size} cards are more than the {self.wires.ncards} of {self.topology.name}; "
                "take fewer, or a topology with larger levels"
            )
        if cards is not None:
            _check_cards(cards, schedule.world_size, self.wires.ncards)
        key = (id(schedule), b"" if cards is None else cards.tobytes())
        if key not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            self._kept[key] = (schedule, loads(schedule, self.wires, cards))  # the schedule too: its id stays taken
        return self._kept[key][1]

    def _prediction(
        self, schedule: Schedule, nbytes: float, found: Loads, protocol: Protocol, seconds: float
    ) -> Prediction:
        links, memory = work_seconds(self.topology, protocol, found, nbytes / schedule.nchunks, self._slowdown)
        busiest = [float(found.times @ column) for column in links.T]
        span = seconds or 1.0
        usage = []
        for index, name in enumerate(self.wires.classes):
            rate = self.wires.rate[self.wires.spans[index]].mean() * protocol.efficiency
            mean = found.carried[index] * nbytes / schedule.nchunks / (rate * self.wires.links_of(index))
            usage.append(Usage(name, busiest[index] / span, float(mean) / span))
        names = [*self.wires.classes, MEMORY]
        work = [*busiest, float(found.times @ memory)]
        most = max(range(len(work)), key=work.__getitem__)
        bound = lower_bound(schedule.collective, self.wires, schedule.world_size, nbytes)
        return Prediction(
            seconds, schedule.nsteps, names[most], work[most] / span, bound, protocol.name, tuple(usage), found.sampled
        )


def work_seconds(
    topology: Topology, protocol: Protocol, found: Loads, chunk: float, slowdown: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Seconds that each kind of step's busiest links, shape (k, classes), and busiest memory, (k,), work."""
    links = found.busy * (chunk / protocol.efficiency)
    if topology.cores:  # one memory, at whose share of its rate the messages travel, too
        return links, found.all_memory * (chunk * slowdown / topology.memory / protocol.efficiency)
    return links, found.memory * (chunk * slowdown / topology.memory)


def call_seconds(topology: Topology, protocol: Protocol, found: Loads, chunk: float, slowdown: float = 1.0) -> float:
    """A call's seconds under one protocol; `chunk` in bytes, `slowdown` of the slowest card's own work."""
    links, memory = work_seconds(topology, protocol, found, chunk, slowdown)
    x = np.maximum(links.max(axis=1, initial=0.0), memory)  # adding goes on while data come in
    messages = found.messages > 0
    if topology.cores:
        sending = found.all_messages * (topology.message / topology.cores)
    else:
        sending = np.maximum(found.messages - 1, 0) * topology.message
    step = np.where(messages, protocol.step, 0.0) + sending
    segments = 2 * protocol.segment ** (1 - protocol.ramp) * x**protocol.ramp
    each = step * slowdown + found.latency + x + np.where(messages, segments, 0.0)
    return float(protocol.call + (found.times * each).sum())


def suited(machine: Machine, collective: str, name: str, n: int, root: int = 0) -> Schedule:
    """An algorithm's schedule for n cards of a machine; those that take a shape get that of its levels.

    Raises InvalidValue when there is no such algorithm or root.
    """
    algorithm = algorithms.get(collective, name)
    wires = machine.wires
    used = fill(wires, n) if algorithm.shaped and isinstance(wires, LevelWires) and n <= wires.ncards else None
    if used is None:
        return algorithms.build(collective, name, n, root)
    return _shaped(collective, name, n, tuple(k for k in used if k > 1))


@lru_cache(maxsize=64)
def _shaped(collective: str, name: str, n: int, shape: tuple[int, ...]) -> Schedule:
    return algorithms.get(collective, name).build(n, shape=shape)


def _check_cards(cards: IntArray, n: int, ncards: int) -> None:
    if len(cards) != n or len(set(cards.tolist())) < n or cards.min() < 0 or cards.max() >= ncards:
        raise InvalidValue(f"placement of {len(cards)} ranks must name {n} different cards among 0 to {ncards - 1}")
