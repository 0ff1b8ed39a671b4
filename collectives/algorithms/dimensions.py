"""What the algorithms for grids of ranks share: an all_reduce that goes from dimension to dimension.

The array is cut into equal parts, each of which visits the dimensions in an order of its own: it is reduce-scattered
in the first, what is left of it in the second, and so on; then gathered in the last, the last but one, and so on.
Within a dimension all ranks that differ in that coordinate only form a group, which goes around a ring or, in one step,
sends to everyone directly. 2(n−1)/n·S a rank, whatever shape and orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import prod
from typing import NamedTuple

import numpy as np

from superpod.collectives.algorithms.algorithm import checked_shape
from superpod.collectives.schedule import Exchange, IntArray, Schedule, Step, Traffic


class _Turn(NamedTuple):
    """One part's business in one step: the position in its order, a number within that, and whether it reduces."""

    stage: int
    number: int
    reduce: bool


class _Part:
    """One part of the array, n chunks from `start` on, visiting dimensions in `order`."""

    def __init__(self, n: int, shape: tuple[int, ...], order: tuple[int, ...], start: int, *, ring: bool) -> None:
        self.ring, self.ranks = ring, np.arange(n)
        self.sizes = [shape[d] for d in order]
        self.strides = [prod(shape[:d]) for d in order]
        self.digits = [self.ranks // stride % size for stride, size in zip(self.strides, self.sizes, strict=True)]
        self.widths = [n // prod(self.sizes[: i + 1]) for i in range(len(order))]  # chunks of a piece at each stage
        self.start = start
        steps = [size - 1 if ring else 1 for size in self.sizes]
        down = [_Turn(stage, s, True) for stage in range(len(order)) for s in range(steps[stage])]
        up = [_Turn(stage, s, False) for stage in reversed(range(len(order))) for s in range(steps[stage])]
        self.turns = down + up

    def step(self, turn: _Turn) -> Step:
        size, stride, x = self.sizes[turn.stage], self.strides[turn.stage], self.digits[turn.stage]
        width = self.widths[turn.stage]
        base = self.start + sum(
            (digit * w for digit, w in zip(self.digits[: turn.stage], self.widths, strict=False)), np.int64(0)
        )
        if self.ring:  # as in ring.py: the piece of x − 1 − s while reducing, of x − s while gathering
            piece = (x - turn.reduce - turn.number) % size
            return Step.of(self.ranks, self._peer(x, 1, size, stride), base + piece * width, width, reduce=turn.reduce)
        moves = []
        for distance in range(1, size):
            dst = self._peer(x, distance, size, stride)
            piece = (x + distance) % size if turn.reduce else x
            moves.append(Step.of(self.ranks, dst, base + piece * width, width, reduce=turn.reduce))
        return Step.join(*moves)

    def exchange(self, stage: int) -> Exchange:
        """A step of a stage without rings, in short."""
        return Exchange(self.widths[stage], self.sizes[stage], self.strides[stage])

    def _peer(self, x: IntArray, distance: int, size: int, stride: int) -> IntArray:
        return np.asarray(self.ranks + ((x + distance) % size - x) * stride)


def by_dimensions(name: str, n: int, shape: tuple[int, ...], *, ring: bool, split: bool) -> Schedule:
    """The all_reduce.

    Args:
        shape: coordinates' ranges, lowest first; their product is n.
        ring: go around each group in a ring; else send to all of it at once.
        split: two parts; the second one swaps each pair of neighbouring dimensions, so that both are busy.
    """
    dims = checked_shape(n, shape)
    order = tuple(range(len(dims)))
    swapped = tuple(d ^ 1 if d ^ 1 < len(dims) else d for d in order)
    orders = (order, swapped) if split and len(dims) > 1 else (order,)
    parts = [_Part(n, dims, o, i * n, ring=ring) for i, o in enumerate(orders)]
    nsteps = len(parts[0].turns)

    def build(s: int) -> Step:
        return Step.join(*(part.step(part.turns[s]) for part in parts))

    def kind(s: int) -> list[tuple[int, bool]]:
        """Equal for steps that load links alike."""
        return [(part.turns[s].stage, part.turns[s].reduce) for part in parts]

    def traffic() -> Iterator[Traffic]:
        for _, run in groupby(range(nsteps), kind):
            steps = list(run)
            if ring:
                yield Traffic(len(steps), build(steps[0]))
            else:
                turns = [part.turns[steps[0]] for part in parts]
                met = tuple(part.exchange(turn.stage) for part, turn in zip(parts, turns, strict=True))
                yield Traffic(exchanges=met, reduce=turns[0].reduce)

    return Schedule("all_reduce", name, n, len(parts) * n, nsteps, build, traffic=traffic)


def ring_steps(shape: tuple[int, ...]) -> int:
    """Steps with rings."""
    return 2 * sum(k - 1 for k in shape)


def direct_steps(shape: tuple[int, ...]) -> int:
    """Steps without."""
    return 2 * sum(k > 1 for k in shape)
