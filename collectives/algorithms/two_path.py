"""Two-path all-to-all: on a mesh of two dimensions half of each block goes X→Y, the other half Y→X.

all_to_all  2 steps, S·(k0·(k1 − 1) + k1·(k0 − 1))/n a rank: what differs in both coordinates is sent twice. Each
            rank only talks to those with whom it shares a coordinate. Equal blocks only

Without a shape: the most square one of two dimensions. Of more dimensions the lower and the upper ones count as one.

Source: Liao et al., UB-Mesh: a hierarchically localized nD-FullMesh datacenter network architecture, arXiv 2503.20377
(2025).
"""

from __future__ import annotations

from fractions import Fraction
from math import prod

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, checked_shape, grid
from superpod.collectives.schedule import Exchange, IntArray, Schedule, Step, Traffic


def all_to_all(n: int, shape: tuple[int, ...] | None = None) -> Schedule:
    """Chunks 2q and 2q + 1 are the halves of block q. Banks: 0 input, 1 output, 2 what waits for its second way."""
    size = _two(n, checked_shape(n, shape or grid(n)))
    ranks = np.arange(n)
    digits = (ranks % size[0], ranks // size[0])

    def rank(half: int, near: IntArray, far: IntArray) -> IntArray:
        """Of the dimension that a half travels first, and the one that it travels second: the rank of coordinates."""
        return np.asarray(near + far * size[0] if half == 0 else far + near * size[0])

    def first(half: int) -> Step:
        """To each rank in the first dimension, all that it or the ranks behind it in the second one shall have."""
        x, y = digits[half][:, None, None], digits[1 - half][:, None, None]
        to = (x + np.arange(1, size[half])[:, None]) % size[half]
        end = np.arange(size[1 - half])
        target = rank(half, to, end)
        here = end == y  # it is there already
        slot = np.where(here, 2 * n + 2 * ranks[:, None, None] + half, 4 * n + 2 * rank(half, x, end) + half)
        return Step.of(ranks[:, None, None], rank(half, to, y), 2 * target + half, 1, slot)

    def second(half: int) -> Step:
        """To each rank in the second dimension: what came for it, and one's own."""
        x, y = digits[half][:, None, None], digits[1 - half][:, None, None]
        to = (y + np.arange(1, size[1 - half])[:, None]) % size[1 - half]
        source = np.arange(size[half])
        target = rank(half, x, to)
        slot = np.where(source == x, 2 * target + half, 4 * n + 2 * rank(half, source, to) + half)
        return Step.of(ranks[:, None, None], target, slot, 1, 2 * n + 2 * rank(half, source, y) + half)

    def build(s: int) -> Step:
        if s == 1:
            return Step.join(second(0), second(1))
        own = Step.of(ranks, ranks, 2 * ranks, 2, 2 * n + 2 * ranks)
        return Step.join(own, first(0), first(1))

    def traffic() -> list[Traffic]:
        both = (Exchange(size[1], size[0]), Exchange(size[0], size[1], size[0]))  # the same in both steps
        return [Traffic(exchanges=both, local=2), Traffic(exchanges=both)][: 1 + (n > 1)]

    return Schedule(
        "all_to_all", "two_path", n, 2 * n, 1 + (n > 1), build, nbanks=3, equal_blocks=True, traffic=traffic
    )


def _two(n: int, dims: tuple[int, ...]) -> tuple[int, int]:
    """The dimensions below and above a cut that makes the two as equal as can be."""
    below = min((prod(dims[:i]) for i in range(1, len(dims) + 1)), key=lambda k: k + n // k, default=1)
    return below, n // below


def _sent(n: int) -> Fraction:
    """In each step, of half of the array: what leaves in X and what leaves in Y."""
    k0, k1 = (*grid(n), 1)[:2]
    return Fraction((k0 - 1) * k1 + (k1 - 1) * k0, n)


_PAPER = "Liao et al., UB-Mesh, arXiv 2503.20377 (2025)"
ALGORITHMS = (
    Algorithm(
        "all_to_all",
        "two_path",
        all_to_all,
        lambda n: 1 + (n > 1),
        _sent,
        _PAPER,
        equal_blocks=True,
        shaped=True,
    ),
)
