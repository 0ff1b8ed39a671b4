"""What the algorithms for grids of ranks share: all_gather and reduce_scatter, dimension by dimension.

all_gather begins in the highest dimension, where links are slowest, with one block a rank; in each further one a rank
hands on all that it has by then, so that most bytes travel in the lowest dimension. The blocks of a message do not lie
side by side. reduce_scatter is the same backwards. (n−1)/n·S a rank, whatever the shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import prod

import numpy as np

from superpod.collectives.algorithms.algorithm import checked_shape
from superpod.collectives.schedule import Exchange, IntArray, Schedule, Step, Traffic


class _Half:
    """One part of every block, number `part` of `parts`, which visits dimensions in `order`."""

    def __init__(self, n: int, shape: tuple[int, ...], order: list[int], part: int, parts: int, *, ring: bool) -> None:
        self.ring, self.ranks, self.part, self.parts = ring, np.arange(n), part, parts
        self.sizes, self.strides = [shape[d] for d in order], [prod(shape[:d]) for d in order]
        self.turns = [(i, s) for i, size in enumerate(self.sizes) for s in range(size - 1 if ring else 1)]

    def held(self, stage: int) -> IntArray:
        """Blocks that each rank has before a stage, shape (n, number): those of the ranks in all dimensions visited."""
        blocks = self.ranks[:, None]
        for size, stride in zip(self.sizes[:stage], self.strides, strict=False):
            x = self.ranks[:, None] // stride % size
            blocks = ((blocks - x * stride)[:, :, None] + np.arange(size) * stride).reshape(len(self.ranks), -1)
        return blocks

    def step(self, turn: tuple[int, int]) -> Step:
        (stage, number), size, stride = turn, self.sizes[turn[0]], self.strides[turn[0]]
        x, src, blocks = (self.ranks // stride % size)[:, None], self.ranks[:, None], self.held(stage)
        if self.ring:  # what came from the rank that is `number` further back
            blocks = blocks + ((x - number) % size - x) * stride
        moves = []
        for distance in range(1, 2 if self.ring else size):
            dst = src + ((x + distance) % size - x) * stride
            moves.append(Step.of(src, dst, blocks * self.parts + self.part))
        return Step.join(*moves)

    def exchange(self, turn: tuple[int, int]) -> Exchange:
        """A step without rings, in short."""
        return Exchange(prod(self.sizes[: turn[0]]), self.sizes[turn[0]], self.strides[turn[0]])


def by_blocks(collective: str, name: str, n: int, shape: tuple[int, ...], *, ring: bool, split: bool) -> Schedule:
    """all_gather or reduce_scatter; the other arguments are those of dimensions.by_dimensions."""
    dims = checked_shape(n, shape)
    swapped = [d ^ 1 if d ^ 1 < len(dims) else d for d in range(len(dims))]
    orders = [list(range(len(dims))), swapped][: 2 if split and len(dims) > 1 else 1]
    halves = [_Half(n, dims, order[::-1], i, len(orders), ring=ring) for i, order in enumerate(orders)]
    gather, nsteps = collective == "all_gather", len(halves[0].turns)

    def turns(s: int) -> list[tuple[int, int]]:
        return [half.turns[s if gather else nsteps - 1 - s] for half in halves]

    def build(s: int) -> Step:
        step = Step.join(*(half.step(turn) for half, turn in zip(halves, turns(s), strict=True)))
        return step if gather else Step.of(step.dst, step.src, step.first, reduce=True)

    def stages(s: int) -> list[int]:
        """Equal for steps that load links alike."""
        return [stage for stage, _ in turns(s)]

    def traffic() -> Iterator[Traffic]:
        for _, run in groupby(range(nsteps), stages):
            steps = list(run)
            if not ring:
                met = tuple(half.exchange(turn) for half, turn in zip(halves, turns(steps[0]), strict=True))
                yield Traffic(exchanges=met, reduce=not gather)
                continue
            flows = []
            for half, (stage, _) in zip(halves, turns(steps[0]), strict=True):
                size, stride, ranks = half.sizes[stage], half.strides[stage], half.ranks
                x = ranks // stride % size
                src, dst = ranks, ranks + ((x + 1) % size - x) * stride
                count = prod(half.sizes[:stage])
                flows.append(Step.of(src, dst, 0, count) if gather else Step.of(dst, src, 0, count, reduce=True))
            yield Traffic(len(steps), Step.join(*flows))

    return Schedule(collective, name, n, len(halves) * n, nsteps, build, traffic=traffic)
