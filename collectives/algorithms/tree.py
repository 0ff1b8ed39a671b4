"""Binomial tree: fewest messages, each rank but the root has one parent; rank v's parent is v without its lowest bit.

With L = ceil(log2 n) and h = 2^(L−1), the largest power of two below n:
broadcast   L steps, the root sends L·S             reduce   L steps, each rank but the root sends S
all_reduce  2L steps, the root sends L·S, n − 1 messages up and n − 1 down
gather      L steps, at most max(h/2, n − h)/n·S    scatter  L steps, the root sends (n−1)/n·S
barrier     2L steps of all_reduce without data
Another root than 0 shifts all ranks by it: v = (rank − root) mod n. The blocks of a subtree are neighbours.

Source: Thakur, Rabenseifner & Gropp, Optimization of collective communication operations in MPICH, IJHPCA 19 (2005).
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, any_other, ceil_log2, others
from superpod.collectives.schedule import IntArray, Schedule, Step


def _children(n: int, level: int) -> IntArray:
    """The v that hang below v − 2^level: those whose lowest bit it is."""
    return np.arange(1 << level, n, 2 << level)


def _up(n: int, root: int, level: int) -> Step:
    child = _children(n, level)
    return Step.of((child + root) % n, (child - (1 << level) + root) % n, 0, reduce=True)


def _down(n: int, root: int, level: int) -> Step:
    child = _children(n, level)
    return Step.of((child - (1 << level) + root) % n, (child + root) % n, 0)


def reduce(n: int, root: int) -> Schedule:
    """Step s: who has bit s as its lowest hands its subtree's sum to its parent."""
    return Schedule("reduce", "tree", n, 1, ceil_log2(n), lambda s: _up(n, root, s), root=root)


def broadcast(n: int, root: int) -> Schedule:
    """Step s: who has the data passes them on over the distance 2^(L−1−s)."""
    levels = ceil_log2(n)
    return Schedule("broadcast", "tree", n, 1, levels, lambda s: _down(n, root, levels - 1 - s), root=root)


def all_reduce(n: int) -> Schedule:
    """Reduce to rank 0, then broadcast from there."""
    levels = ceil_log2(n)

    def build(s: int) -> Step:
        return _up(n, 0, s) if s < levels else _down(n, 0, 2 * levels - 1 - s)

    return Schedule("all_reduce", "tree", n, nchunks=1, nsteps=2 * levels, build=build)


def barrier(n: int) -> Schedule:
    return replace(all_reduce(n), collective="barrier")


def gather(n: int, root: int) -> Schedule:
    """Step s: who has bit s as its lowest hands its subtree's blocks to its parent."""

    def build(level: int) -> Step:
        child, distance = _children(n, level), 1 << level
        src, dst = (child + root) % n, (child - distance + root) % n
        return Step.around(src, dst, src, np.minimum(distance, n - child), nchunks=n)

    return Schedule("gather", "tree", n, nchunks=n, nsteps=ceil_log2(n), build=build, root=root)


def scatter(n: int, root: int) -> Schedule:
    """gather backwards: each parent hands a child the blocks of the child's subtree."""
    levels = ceil_log2(n)

    def build(s: int) -> Step:
        child, distance = _children(n, levels - 1 - s), 1 << (levels - 1 - s)
        src, dst = (child - distance + root) % n, (child + root) % n
        return Step.around(src, dst, dst, np.minimum(distance, n - child), nchunks=n)

    return Schedule("scatter", "tree", n, nchunks=n, nsteps=levels, build=build, root=root)


def _largest_subtree(n: int) -> Fraction:
    """Its share of the blocks: it hangs below rank h or h/2, whichever has more ranks."""
    half = (1 << ceil_log2(n)) // 2
    return Fraction(max(half // 2, n - half), n) if n > 1 else Fraction(0)


def _twice(n: int) -> int:
    return 2 * ceil_log2(n)


_PAPER = "Thakur, Rabenseifner & Gropp, IJHPCA 19 (2005)"
ALGORITHMS = (
    Algorithm("all_reduce", "tree", all_reduce, _twice, ceil_log2, _PAPER),
    Algorithm("broadcast", "tree", broadcast, ceil_log2, ceil_log2, _PAPER),
    Algorithm("reduce", "tree", reduce, ceil_log2, any_other, _PAPER),
    Algorithm("gather", "tree", gather, ceil_log2, _largest_subtree, _PAPER),
    Algorithm("scatter", "tree", scatter, ceil_log2, others, _PAPER),
    Algorithm("barrier", "tree", barrier, _twice, ceil_log2, _PAPER),
)
