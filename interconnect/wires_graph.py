"""The links of a machine that lists them: any graph of cards and switches, routed by breadth-first search.

The same verbs as wires.py. Ways are the shortest in hops; of equally short ones, always that through the node which was
named first. A table of all next nodes costs cards × nodes entries, hence the limit.
"""

from __future__ import annotations

import numpy as np

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Topology
from superpod.interconnect.wires import FloatArray, IntArray

MOST_NODES = 4096


class GraphWires:
    """Attributes as of LevelWires; `ends`: the two nodes of every directed link, shape (nlinks, 2)."""

    def __init__(self, topology: Topology) -> None:
        """Raises InvalidValue for cards that do not exist, have no link, or cannot be reached."""
        self.topology, self.ncards = topology, topology.named_cards
        self.classes = tuple(cable.name for cable in topology.cables)
        self.latency = [cable.latency for cable in topology.cables]
        names = self._nodes()
        ends: list[tuple[int, int]] = []
        spans, rates = [], []
        for cable in topology.cables:
            start = len(ends)
            for a, b in cable.pairs:
                ends += [(names[a], names[b]), (names[b], names[a])]
            spans.append(slice(start, len(ends)))
            rates += [cable.bandwidth] * (len(ends) - start)
        self.names, self.nnodes = {number: name for name, number in names.items()}, len(names)
        self.ends: IntArray = np.array(ends, np.int64)
        self.spans = tuple(spans)
        self.rate = np.array(rates)
        self.even = False
        self.extra: FloatArray | None = None
        self._seconds = np.repeat(self.latency, [s.stop - s.start for s in spans])
        self.route()

    def _nodes(self) -> dict[str, int]:
        names = {str(card): card for card in range(self.ncards)}
        for cable in self.topology.cables:
            for pair in cable.pairs:
                for node in pair:
                    if node.isdigit() and node not in names:
                        raise InvalidValue(
                            f"links {cable.name!r}: card {node} does not exist, cards = {self.ncards} are 0 to "
                            f"{self.ncards - 1}; give switches names that are no numbers"
                        )
                    names.setdefault(node, len(names))
                if pair[0] == pair[1]:
                    raise InvalidValue(f"links {cable.name!r}: {pair[0]}-{pair[1]} joins a node with itself")
        if len(names) > MOST_NODES:
            raise InvalidValue(f"{len(names)} nodes are more than {MOST_NODES}; describe the machine by levels")
        return names

    @property
    def nlinks(self) -> int:
        return len(self.ends)

    def links_of(self, index: int) -> int:
        """How many directed links the class has."""
        return self.spans[index].stop - self.spans[index].start

    def route(self) -> None:
        """Make the table of next links anew, without those whose rate is 0. Raises InvalidValue for cut-off cards."""
        alive = np.flatnonzero(self.rate > 0)
        into: list[list[tuple[int, int]]] = [[] for _ in range(self.nnodes)]
        for link in alive.tolist():
            a, b = self.ends[link].tolist()
            into[b].append((a, link))
        self._next = np.full((self.nnodes, self.ncards), -1, np.int32)  # the link to take from a node to a card
        for card in range(self.ncards):
            self._search(card, into)
        lost = np.argwhere(self._next[: self.ncards] < 0)
        for a, b in lost[lost[:, 0] != lost[:, 1]][:1].tolist():
            raise InvalidValue(
                f"{self.topology.name}: card {a} has no way to card {b}; add a link to one of them, or cut less"
            )

    def _search(self, card: int, into: list[list[tuple[int, int]]]) -> None:
        front, seen = [card], {card}
        while front:
            following = []
            for node in front:
                for other, link in into[node]:
                    if other not in seen:
                        seen.add(other)
                        self._next[other, card] = link
                        following.append(other)
            front = following

    def carry(self, src: IntArray, dst: IntArray, amount: FloatArray) -> tuple[FloatArray, float]:
        """Route flows, src ≠ dst. Returns the load of every link, shape (nlinks,), and the longest latency [s]."""
        load, seconds = np.zeros(self.nlinks), np.zeros(len(src))
        here, flows = src.copy(), np.arange(len(src))
        while len(flows):
            links = self._next[here[flows], dst[flows]]
            load += np.bincount(links, amount[flows], minlength=self.nlinks)
            seconds[flows] += self._seconds[links]
            if self.extra is not None:
                seconds[flows] += self.extra[links]
            here[flows] = self.ends[links, 1]
            flows = flows[here[flows] != dst[flows]]
        return load, float(seconds.max(initial=0.0))

    def words(self, link: int) -> str:
        """A link in words: "the cable link 0→hub"."""
        index = next(i for i, span in enumerate(self.spans) if link < span.stop)
        a, b = self.ends[link].tolist()
        return f"the {self.classes[index]} link {self.names[a]}→{self.names[b]}"
