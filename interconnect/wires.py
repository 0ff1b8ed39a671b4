"""The links of a machine of levels, numbered, and which of them a flow takes. Vectorised over flows.

Every directed link has a number; those of one level are a *class* and lie together (`spans`). With n cards, a level of
`size` s has, from its start on,

    full_mesh       n · s links: card · s + coordinate of the other end (that to itself is never used)
    ring            2n links: 2 · card, forward, and 2 · card + 1, backward
    switch          2n: every card's way up, then every card's way down
    switch, trunk   2 · units: every unit's way up, then every unit's way down

Routing corrects coordinates from the highest level down; a switch, when units differ, corrects its own and all below at
once. Detours and spreading are done on loads (`relieve`): what a link should carry is handed to those around it.

Traffic is given in any unit, by the amount of each flow; loads are in the same unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Level, Topology

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_ALL = slice(None)
_Hop = tuple[IntArray, IntArray | slice, float, float]
"""(links, which of the flows take them, share of the flow, latency [s])."""


class LevelWires:
    """The links of a topology of levels.

    Attributes:
        classes, spans: names of the link classes, and where each one's links lie.
        rate: what each link carries [B/s]; 0 where it is cut (faults.py sets that).
        latency: of passing each class once [s].
        even: all links of a class carry the same.
        extra: more latency of single links [s], or None.
        detours: cut links, each with what stands for it: (links, share of the load that each of them takes).
    """

    def __init__(self, topology: Topology) -> None:
        n = topology.ncards
        self.topology, self.ncards = topology, n
        self.levels = topology.levels
        self.unit = [topology.below(i) for i in range(len(self.levels))]
        self.classes = tuple(level.name for level in self.levels)
        counts = [self._count(i) for i in range(len(self.levels))]
        ends = np.cumsum(counts).tolist()
        self.spans = tuple(slice(e - c, e) for c, e in zip(counts, ends, strict=True))
        self.rate = np.repeat([level.rate for level in self.levels], counts).astype(np.float64)
        self.latency = [hop_latency(level) for level in self.levels]
        self.even = True
        self.extra: FloatArray | None = None
        self.detours: dict[int, tuple[IntArray, float]] = {}

    def _count(self, index: int) -> int:
        level, n = self.levels[index], self.ncards
        if level.switched:
            return 2 * n // self.unit[index] if level.trunk else 2 * n
        return n * level.size if level.kind == "full_mesh" else 2 * n

    @property
    def nlinks(self) -> int:
        return len(self.rate)

    def links_of(self, index: int) -> int:
        """How many directed links the class has in use when all cards are."""
        level = self.levels[index]
        return self.ncards * (level.size - 1) if level.kind == "full_mesh" else self._count(index)

    def coordinate(self, index: int, cards: IntArray) -> IntArray:
        """The unit in which cards lie, among those that level `index` joins."""
        return cards // self.unit[index] % self.levels[index].size

    def link(self, index: int, src: IntArray, dst: IntArray) -> IntArray:
        """Numbers of mesh or ring links between neighbours at this level."""
        here, there = self.coordinate(index, src), self.coordinate(index, dst)
        start, size = self.spans[index].start, self.levels[index].size
        if self.levels[index].kind == "full_mesh":
            return np.asarray(start + src * size + there)
        return np.asarray(start + 2 * src + ((there - here) % size != 1))

    def port(self, index: int, cards: IntArray, *, down: bool) -> IntArray:
        """Numbers of the ways up to, or down from, the switch at this level."""
        unit = self.unit[index] if self.levels[index].trunk else 1
        half = self._count(index) // 2
        return np.asarray(self.spans[index].start + down * half + cards // unit)

    def carry(self, src: IntArray, dst: IntArray, amount: FloatArray) -> tuple[FloatArray, float]:
        """Route flows, src ≠ dst. Returns the load of every link, shape (nlinks,), and the longest latency [s]."""
        orders = (False, True) if self.topology.routing == "all_paths" else (False,)
        load, longest = np.zeros(self.nlinks), 0.0
        for upwards in orders:
            seconds = np.zeros(len(src))
            ids, weights = [], []
            for links, flows, share in self._hops(src, dst, seconds, upwards=upwards):
                ids.append(links)
                weights.append(amount[flows] * (share / len(orders)))
            if ids:
                load += np.bincount(np.concatenate(ids), np.concatenate(weights), minlength=self.nlinks)
            longest = max(longest, float(seconds.max(initial=0.0)))
        return self.relieve(load), longest

    def _order(self, upwards: bool) -> list[int]:
        """Levels in the order in which they are corrected: downwards; `upwards` turns runs of levels without switch."""
        order: list[int] = []
        run: list[int] = []
        for index in reversed(range(len(self.levels))):
            if self.levels[index].switched:
                order += [*(reversed(run) if upwards else run), index]
                run = []
            else:
                run.append(index)
        return order + list(reversed(run) if upwards else run)

    def _hops(
        self, src: IntArray, dst: IntArray, seconds: FloatArray, *, upwards: bool
    ) -> Iterator[tuple[IntArray, IntArray, float]]:
        """(links, flows, share of the flow) hop by hop; adds up the flows' latencies in `seconds`."""
        here = src.copy()
        for index in self._order(upwards):
            there = self.coordinate(index, dst)
            flows = np.flatnonzero(self.coordinate(index, here) != there)
            if not len(flows):
                continue
            level = self.levels[index]
            if level.switched:
                hops = self._through_switch(index, here[flows], dst[flows])
                here[flows] = dst[flows]
            else:
                target = here[flows] + (there[flows] - self.coordinate(index, here[flows])) * self.unit[index]
                mesh = level.kind == "full_mesh"
                if mesh:
                    hops = iter([(self.link(index, here[flows], target), _ALL, 1.0, self.latency[index])])
                else:
                    hops = self._around_ring(index, here[flows], target)
                if mesh and level.size > 2 and self.topology.routing == "all_paths":
                    seconds[flows] += self.latency[index]  # the ways through a neighbour are a hop longer
                here[flows] = target
            for links, part, share, latency in hops:
                seconds[flows[part]] += latency
                if self.extra is not None:
                    seconds[flows[part]] += self.extra[links]
                yield links, flows[part], share

    def _through_switch(self, index: int, src: IntArray, dst: IntArray) -> Iterator[_Hop]:
        for i in self.chain(index):
            yield self.port(i, src, down=False), _ALL, 1.0, self.latency[i]
            yield self.port(i, dst, down=True), _ALL, 1.0, 0.0

    def chain(self, index: int) -> list[int]:
        """The switch levels that are passed on the way to that of level `index`: down to where cards have ports."""
        levels = [index]
        while self.levels[levels[-1]].trunk and levels[-1] > 0:
            levels.append(levels[-1] - 1)
        return levels

    def _around_ring(self, index: int, src: IntArray, dst: IntArray) -> Iterator[_Hop]:
        """The shorter way around; both ways, half each, where they are equally long."""
        size, unit = self.levels[index].size, self.unit[index]
        forward = (self.coordinate(index, dst) - self.coordinate(index, src)) % size
        for sign, distance in ((1, forward), (-1, size - forward)):
            twin = 2 * distance == size
            going = np.flatnonzero(2 * distance <= size)
            here, left = src[going], distance[going]
            tied = twin[going]
            while len(going):
                start = self.spans[index].start + 2 * here + (sign < 0)
                for mask, share in ((~tied, 1.0), (tied, 0.5)):
                    # of two ways of a tie only the forward one counts towards the latency, or it would count twice
                    latency = self.latency[index] if share == 1.0 or sign > 0 else 0.0
                    if mask.any():
                        yield start[mask], going[mask], share, latency
                x = self.coordinate(index, here)
                here = here + ((x + sign) % size - x) * unit
                on = left > 1
                going, here, left, tied = going[on], here[on], left[on] - 1, tied[on]

    def relieve(self, load: FloatArray) -> FloatArray:
        """Loads after spreading over all paths and after detours around what is cut."""
        if self.topology.routing == "all_paths":
            for index, level in enumerate(self.levels):
                if level.kind == "full_mesh" and level.size > 2:
                    load[self.spans[index]] = self._spread(index, load[self.spans[index]])
        for cut, (instead, share) in self.detours.items():
            if load[cut] > 0 and self.topology.routing == "shortest":
                raise InvalidValue(
                    f"{self.words(cut)} is cut and routing=shortest knows no way around; take detour or all_paths"
                )
            np.add.at(load, instead, load[cut] * share)
            load[cut] = 0.0
        return load

    def _spread(self, index: int, load: FloatArray) -> FloatArray:
        """Each link's load spread evenly over the link itself and the ways through one of the other size − 2 units."""
        size, unit = self.levels[index].size, self.unit[index]
        lines = load.reshape(-1, size, unit, size)  # (line, unit, place, unit of the other end)
        sent, received = lines.sum(axis=3), lines.sum(axis=1)
        spread = (sent[:, :, :, None] + received[:, None] - lines) / (size - 1)
        here = np.arange(size)
        spread[:, here, :, here] = 0.0
        return np.asarray(spread.reshape(-1))

    def words(self, link: int) -> str:
        """A link in words: "the rack link 3→11"."""
        index = next(i for i, span in enumerate(self.spans) if link < span.stop)
        level, place = self.levels[index], link - self.spans[index].start
        if level.switched:
            way, number = divmod(place, self._count(index) // 2)
            return f"the {level.name} {'trunk' if level.trunk else 'port'} {'down to' if way else 'up from'} {number}"
        if level.kind == "full_mesh":
            card, x = divmod(place, level.size)
        else:
            card, back = divmod(place, 2)
            x = (int(self.coordinate(index, np.array(card))) + (-1 if back else 1)) % level.size
        other = card + (x - card // self.unit[index] % level.size) * self.unit[index]
        return f"the {level.name} link {card}→{other}"


def hop_latency(level: Level) -> float:
    """Seconds for passing a level once: a fat tree has 2·tiers − 1 switches on the way."""
    return level.latency * (2 * level.tiers - 1)
