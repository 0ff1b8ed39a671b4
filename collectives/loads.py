"""Part of `simulate`: what each step of a schedule loads the links of a machine with, whatever the size of the data.

A step is kept as a few numbers: the latency of its longest way, and for each link class how long its busiest link works
for one byte of chunk [s/B]. A step ends when its longest way and its busiest link have ended, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from superpod.collectives.schedule import Exchange, IntArray, Schedule, Step, Traffic
from superpod.collectives.traffic import exchange_pairs, merged, traffic
from superpod.interconnect.topology_faults import Wires
from superpod.interconnect.wires import FloatArray, LevelWires
from superpod.interconnect.wires_partial import partial_pairs
from superpod.interconnect.wires_regular import all_pairs, shifts

_BLOCK = 1 << 19  # pairs that are routed at once
_ALL_DISTANCES, _SOME = 2048, 256  # up to so many shifts are routed one by one; of more, some stand for all
ADD, COPY = 3, 2  # bytes that a card's memory moves for each byte added (two reads, a write) or copied
SEND = 2 * COPY  # for each byte between processes of one host: into the link and out of it


@dataclass(frozen=True, slots=True)
class Loads:
    """One row a kind of step. Times are per byte of chunk unless said.

    Attributes:
        times: how many steps are of this kind, shape (k,).
        latency: of the longest way [s], shape (k,).
        messages: most that one rank sends, shape (k,).
        busy: the busiest link of each class [s/B], shape (k, classes).
        memory: the busiest card's adding and copying, in bytes moved per byte of chunk, shape (k,).
        all_messages: what all ranks send together, shape (k,).
        all_memory: what all memories move, sending included, in bytes per byte of chunk, shape (k,): for cards that
            are processes of one host.
        carried: what all links of each class carry in all steps together, in chunks, shape (classes,).
        sampled: some steps stand for others that were not looked at.
    """

    times: FloatArray
    latency: FloatArray
    messages: FloatArray
    busy: FloatArray
    memory: FloatArray
    all_messages: FloatArray
    all_memory: FloatArray
    carried: FloatArray
    sampled: bool


@dataclass(frozen=True, slots=True)
class _Row:
    times: float
    latency: float
    messages: int
    busy: FloatArray
    memory: float
    all_messages: float
    all_memory: float
    carried: FloatArray


@dataclass(slots=True)
class _Sum:
    """A step's numbers, growing; amounts in chunks."""

    load: FloatArray
    latency: float = 0.0
    messages: int = 0
    memory: float = 0.0
    all_messages: float = 0.0
    all_memory: float = 0.0


def loads(schedule: Schedule, wires: Wires, cards: IntArray | None = None) -> Loads:
    """What `schedule` loads the links with.

    Args:
        cards: the card of each rank; by default rank r is card r.
    """
    return _Reader(wires, schedule.world_size, cards).read(traffic(schedule))


class _Reader:
    def __init__(self, wires: Wires, n: int, cards: IntArray | None) -> None:
        self.wires, self.n = wires, n
        self.cards = np.arange(n) if cards is None else cards
        self.in_order = cards is None or bool(np.array_equal(cards, np.arange(n)))
        self.sampled = False
        self._rate = wires.rate.copy()
        self._rate[self._rate == 0] = np.inf  # cut links carry nothing

    def read(self, parts: Iterable[Traffic]) -> Loads:
        rows = [row for part in parts for row in self._rows(part)]
        width = len(self.wires.classes)
        return Loads(
            times=np.array([row.times for row in rows], np.float64),
            latency=np.array([row.latency for row in rows], np.float64),
            messages=np.array([row.messages for row in rows], np.float64),
            busy=np.array([row.busy for row in rows]).reshape(-1, width),
            memory=np.array([row.memory for row in rows], np.float64),
            all_messages=np.array([row.all_messages for row in rows], np.float64),
            all_memory=np.array([row.all_memory for row in rows], np.float64),
            carried=np.sum([row.times * row.carried for row in rows], axis=0) if rows else np.zeros(width),
            sampled=self.sampled,
        )

    def _rows(self, part: Traffic) -> Iterator[_Row]:
        cost = ADD if part.reduce else 0
        local = part.local * (ADD if part.reduce else COPY)
        if part.shift is not None:
            yield from self._shifts(*part.shift, local, cost)
            return
        total = _Sum(np.zeros(self.wires.nlinks), memory=local, all_memory=local * self.n)
        for exchange in part.exchanges:
            if exchange.size > 1:
                met, latency = self._exchange(exchange)
                sent = exchange.chunks * (exchange.size - 1)
                total.load += met * exchange.chunks
                total.latency = max(total.latency, latency)
                total.messages += exchange.size - 1
                total.all_messages += self.n * (exchange.size - 1)
                total.memory += cost * sent
                total.all_memory += (cost + SEND) * sent * self.n
        if part.flows is not None:
            self._add_flows(total, part.flows)
        yield self._row(part.times, total)

    def _row(self, times: float, total: _Sum) -> _Row:
        spans, load = self.wires.spans, total.load
        busy = np.array([(load[s] / self._rate[s]).max(initial=0.0) for s in spans])
        carried = np.array([load[s].sum() for s in spans])
        numbers = (total.messages, busy, total.memory, total.all_messages, total.all_memory, carried)
        return _Row(times, total.latency, *numbers)

    def _add_flows(self, total: _Sum, flows: Step) -> None:
        step = merged(flows)
        away = step.src != step.dst
        src, dst, count = step.src[away], step.dst[away], step.count[away].astype(np.float64)
        load, latency = self.wires.carry(self.cards[src], self.cards[dst], count)
        total.load += load
        total.latency = max(total.latency, latency)
        total.messages += int(np.bincount(src).max(initial=0))
        total.all_messages += len(src)
        moves = np.where(step.reduce, ADD, np.where(away, 0, COPY)) * step.count
        total.memory += float(np.bincount(step.dst, moves).max(initial=0.0))
        total.all_memory += float(moves.sum() + SEND * count.sum())

    def _exchange(self, exchange: Exchange) -> tuple[FloatArray, float]:
        """Load of every link, and the longest way's latency, when a chunk goes from everyone to everyone."""
        if self.in_order and isinstance(self.wires, LevelWires):
            closed = all_pairs(self.wires, self.n, exchange.size, exchange.stride)
            if closed is None and exchange.size == self.n:
                closed = partial_pairs(self.wires, self.n)
            if closed is not None:
                return closed
        load, latency = np.zeros(self.wires.nlinks), 0.0
        block = max(_BLOCK // exchange.size, 1)
        for start in range(0, self.n, block):
            src, dst = exchange_pairs(exchange, np.arange(start, min(start + block, self.n)))
            part, further = self.wires.carry(self.cards[src], self.cards[dst], np.ones(len(src)))
            load, latency = load + part, max(latency, further)
        return load, latency

    def _shifts(self, chunks: int, first: int, last: int, local: int, cost: int) -> Iterator[_Row]:
        """`local`: what each memory moves beside the messages; `cost`: for each byte that it receives."""
        distance = np.arange(first, last + 1)
        memory, all_memory = float(local + cost * chunks), float((local + (cost + SEND) * chunks) * self.n)
        if self.in_order and isinstance(self.wires, LevelWires):
            closed = shifts(self.wires, self.n, distance)
            if closed is not None:
                rate = np.array([level.rate for level in self.wires.levels])
                rows = np.column_stack([closed.latency, closed.load])
                kinds, times = np.unique(rows, axis=0, return_counts=True)
                mean = closed.total * chunks / len(distance)
                for kind, many in zip(kinds, times.tolist(), strict=True):
                    busy = kind[1:] * chunks / rate
                    yield _Row(many, float(kind[0]), 1, busy, memory, self.n, all_memory, mean)
                return
        weight = 1.0
        if len(distance) > _ALL_DISTANCES:
            self.sampled, weight = True, len(distance) / _SOME
            distance = distance[np.linspace(0, len(distance) - 1, _SOME).astype(np.int64)]
        ranks, amount = np.arange(self.n), np.full(self.n, float(chunks))
        for d in distance.tolist():
            load, latency = self.wires.carry(self.cards, self.cards[(ranks + d) % self.n], amount)
            yield self._row(weight, _Sum(load, latency, 1, memory, self.n, all_memory))
