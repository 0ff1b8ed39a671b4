"""The modelled clock of a real run: what this card's calls would have taken elsewhere, on superpod-run --topology.

    clock = superpod.clock()
    clock.seconds                       # so far
    clock.step()                        # ends a step of numpy programs; torch's optimizers do it by themselves

While the program runs, a call costs one entry in a ledger. What it would have taken on the machine is found out when
somebody asks; at the end the launcher asks for all cards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import fsum
from pathlib import Path
from typing import Any

from superpod.collectives import algorithms
from superpod.collectives.clock_log import MOST_KINDS, STEP, Kind, Ledger, Log, send_log
from superpod.collectives.clock_price import RECV, SEND, Price, Pricer
from superpod.collectives.hosts import Layout
from superpod.collectives.recorder import DONE
from superpod.collectives.schedule import Schedule
from superpod.collectives.statistics import CountedCall, Statistics
from superpod.interconnect.calendar import Calendar
from superpod.interconnect.control import send_news
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.link import Link
from superpod.interconnect.shaped_link import Roads, ShapedLink
from superpod.interconnect.streams import Pending


class Clock:
    """One card's modelled clock, for as long as its process lives. Any thread.

    Attributes:
        on: whether there is a machine to go by; without one `step` does nothing and the rest raises InvalidValue.
        rank: this card's, in the job.
    """

    def __init__(self, rank: int, pricer: Pricer | None, directory: Path | None = None) -> None:
        """Use `superpod.clock()`. `directory`: the job's, or None without a launcher."""
        self.on, self.rank = pricer is not None, rank
        self._machine, self._directory = pricer, directory
        self._ledger = Ledger()
        self._groups: list[tuple[str, tuple[int, ...]]] = []
        self._kinds: dict[Kind, int] = {}
        self._unknown = 0
        self._walls: list[Statistics] = []
        self._shaped: list[ShapedLink] = []
        self.place = count().__next__

    @property
    def topology(self) -> str:
        """The machine's name."""
        return self._pricer.topology.name

    @property
    def card(self) -> int:
        """The machine's card that this rank sits on."""
        return int(self._pricer.cards[self.rank])

    @property
    def seconds(self) -> float:
        """What this card's calls so far would have taken there, one after the other; no waiting for late cards."""
        return fsum(row["modelled"] for row in self.operations)

    @property
    def operations(self) -> list[dict[str, Any]]:
        """One row an operation and algorithm, sorted: operation, algorithm, calls, bytes, wall and modelled [s],
        bottleneck (the link class that most of the modelled time waits for) and its utilisation."""
        walls = {(r["operation"], r["algorithm"]): r["seconds"] for s in self._walls for r in s.rows()}
        log = Log(self._groups, list(self._kinds), self._ledger.counts())
        pricer = self._pricer
        rows = priced(log, lambda kind: pricer.price_of(kind, ends(kind, self.rank, self._groups)))
        return [{**row, "wall": walls.get(key, 0.0)} for key, row in rows.items()]

    def step(self) -> None:
        """The program has ended a step. The closing table says what the communication of one would cost."""
        if self.on:
            self._ledger.write(self.place(), STEP)

    def __repr__(self) -> str:
        if not self.on:
            return "<Clock: off, start with superpod-run --topology>"
        return f"<Clock: rank {self.rank} on card {self.card} of {self.topology}>"

    @property
    def _pricer(self) -> Pricer:
        if self._machine is None:
            raise InvalidValue(
                "there is no modelled clock without a machine: start with superpod-run --topology atlas-950, "
                "or set SUPERPOD_TOPOLOGY"
            )
        return self._machine

    # For the runtime and the engine

    def shaped(self, link: Link, scale: float) -> Link:
        """A link whose frames take the machine's time, `scale` times as long; `link` itself with a scale of 0."""
        if not scale:
            return link
        pricer = self._pricer
        wires, file = pricer.machine.wires, None if self._directory is None else self._directory / "links"
        shaped = ShapedLink(link, Roads(wires, pricer.cards, scale), Calendar(wires.nlinks, file))
        self._shaped.append(shaped)
        return shaped

    def group(self, ranks: Sequence[int], name: str, statistics: Statistics) -> GroupClock:
        """What a new group's calls are counted by. `ranks`: the members', in the mesh."""
        if statistics not in self._walls:
            self._walls.append(statistics)
        self._groups.append((name, tuple(ranks)))
        return GroupClock(self, len(self._groups) - 1, tuple(ranks), self._pricer)

    def number(self, kind: Kind) -> int | None:
        """The number of a kind; None when there are too many."""
        number = self._kinds.get(kind)
        if number is None and len(self._kinds) < MOST_KINDS:
            number = self._kinds.setdefault(kind, len(self._kinds) + 1)
        self._unknown += number is None
        return number

    def write(self, place: int, number: int) -> None:
        """A call of the kind with this number has ended."""
        self._ledger.write(place, number)

    def tell(self) -> None:
        """Give the launcher what was not given yet."""
        order, counts = self._ledger.take()
        if counts or len(order):
            send_log(self._directory, self.rank, Log(self._groups, list(self._kinds), counts, order, self._unknown))
            self._unknown = 0
        for link in self._shaped:
            send_news(self._directory, self.rank, "shape", **link.report())
        self._shaped = []


class GroupClock:
    """Counts the calls of one group on one card: a CallClock. Any thread."""

    def __init__(self, clock: Clock, group: int, ranks: tuple[int, ...], pricer: Pricer) -> None:
        """Use `Clock.group`."""
        self.place = clock.place
        self._clock, self._group, self._ranks, self._pricer = clock, group, ranks, pricer
        self._numbers: dict[tuple[str, str, int, int], int] = {}
        self.hosts: tuple[int, ...] = ()

    def schedule(self, collective: str, algorithm: str, world_size: int, root: int) -> Schedule:
        """As algorithms.build; algorithms that take a shape get that of the machine."""
        if algorithms.get(collective, algorithm).shaped:
            return self._pricer.schedule(collective, algorithm, self._ranks, root)
        return algorithms.build(collective, algorithm, world_size, root)

    def words(self, collective: str, algorithm: str) -> str:
        """What the ranks must agree on beside the algorithm: the machine, if the schedule has its shape; else ""."""
        shapes = self._pricer.shapes(collective, algorithm, self._ranks)
        return f" in the shape of {self._pricer.topology.name}" if shapes else ""

    def count(self, call: CountedCall, algorithm: str, place: int) -> None:
        """A collective has ended."""
        nbytes = 0 if call.collective == "barrier" else call.nbytes or call.own_nbytes
        key = (call.collective, algorithm, nbytes, call.root)
        number = self._numbers.get(key)
        if number is None:
            hosts = self.hosts if self.hosts and Layout(self.hosts).can(call.collective, algorithm) else ()
            number = self._clock.number(Kind(*key, self._group, hosts))
            if number is None:
                return
            self._numbers[key] = number
        self._clock.write(place, number)

    def message(self, pending: Pending, nbytes: int, then: Callable[[int], None]) -> Callable[[int], None]:
        """A send or recv is posted: call what is returned with its states. It counts when it is done."""
        place, ahead = self.place(), [True]

        def note(state: int) -> None:
            then(state)
            if state == DONE and ahead and ahead.pop():
                operation = RECV if hasattr(pending, "into") else SEND
                number = self._clock.number(Kind(operation, "direct", nbytes, pending.peer, self._group))
                if number is not None:
                    self._clock.write(place, number)

        return note


def priced(log: Log, price: Callable[[Kind], Price]) -> dict[tuple[str, str], dict[str, Any]]:
    """(operation, algorithm) → a row of `Clock.operations` without its wall time, for one card's calls, sorted.

    Each time is summed up exactly and rounded once, so no order of the calls makes another one.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    terms: dict[tuple[str, str], list[tuple[float, str, float]]] = {}
    for kind, times in sorted(log.calls()):
        key = (kind.operation, kind.algorithm)
        found = price(kind)
        terms.setdefault(key, []).append((found.seconds * times, found.bottleneck, found.utilisation))
        row = rows.setdefault(key, {"operation": key[0], "algorithm": key[1], "calls": 0, "bytes": 0})
        row["calls"] += times
        row["bytes"] += times * kind.nbytes
    for key, row in rows.items():
        row["modelled"] = fsum(seconds for seconds, _, _ in terms[key])
        row.update(_waits_for(terms[key]))
    return dict(sorted(rows.items()))


def ends(kind: Kind, rank: int, groups: Sequence[tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    """The ranks, in the mesh, that a card's call of this kind concerns; of a message its sender and its receiver."""
    if kind.operation == SEND:
        return rank, kind.root
    return (kind.root, rank) if kind.operation == RECV else groups[kind.group][1]


def _waits_for(terms: Sequence[tuple[float, str, float]]) -> dict[str, Any]:
    """The bottleneck of most of the time, and the share of its calls' time in which it works."""
    by_name: dict[str, list[tuple[float, float]]] = {}
    for seconds, name, utilisation in terms:
        by_name.setdefault(name, []).append((seconds, seconds * utilisation))
    sums = {name: (fsum(s for s, _ in found), fsum(w for _, w in found)) for name, found in by_name.items()}
    name = max(sorted(sums), key=lambda one: sums[one][0])
    return {"bottleneck": name, "utilisation": sums[name][1] / sums[name][0] if sums[name][0] else 0.0}


_of_process: Clock | None = None


def of_process(place: Place, settings: Settings) -> Clock:
    """The one clock of this process, made by the first who asks. Raises InvalidValue for a machine that cannot be."""
    global _of_process
    if _of_process is None:
        pricer = None
        if settings.topology is not None:
            pricer = Pricer.of(settings.topology, settings.placement, place.world_size, settings.machine_faults)
        _of_process = Clock(place.rank, pricer, settings.directory)
    return _of_process


def clock() -> Clock:
    """The modelled clock of this card: see Clock."""
    return of_process(Place.read(), Settings.read())
