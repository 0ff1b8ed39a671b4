"""Hypercube: in step s rank r exchanges with r XOR 2^s. Both algorithms want p = 2^k ranks, the largest p ≤ n.

recursive_doubling  log2 p steps, log2 p·S: both send all they have and add what they get
halving_doubling    2·log2 p steps, 2(p−1)/p·S: each keeps half of what is left, then the halves are collected again
When p < n, ranks p to n − 1 first add theirs to rank r − p and get the result from there: 2 more steps, S more.

Halving starts with the nearest rank, where most bytes go. There are no reduce_scatter and all_gather of this kind here:
circulant.py and bruck.py take as few steps and bytes for every n.

Source: Rabenseifner, Optimization of collective reduction operations, ICCS 2004; Thakur, Rabenseifner & Gropp,
Optimization of collective communication operations in MPICH, IJHPCA 19 (2005).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, floor_log2, others
from superpod.collectives.schedule import IntArray, Schedule, Step


def _folds(n: int) -> bool:
    return n > 1 << floor_log2(n)


def _folded(name: str, n: int, nchunks: int, nsteps: int, exchange: Callable[[int], Step]) -> Schedule:
    """An all_reduce among p ranks as one among n."""
    p = 1 << floor_log2(n)
    extra, before = np.arange(p, n), int(_folds(n))

    def build(s: int) -> Step:
        if before and s == 0:
            return Step.of(extra, extra - p, 0, nchunks, reduce=True)
        if before and s == nsteps + 1:
            return Step.of(extra - p, extra, 0, nchunks)
        return exchange(s - before)

    return Schedule("all_reduce", name, n, nchunks, nsteps + 2 * before, build)


def recursive_doubling(n: int) -> Schedule:
    """After step s, ranks that differ in bits 0 to s only have the same sum; a + b = b + a keeps its bits the same."""
    bits = floor_log2(n)
    ranks = np.arange(1 << bits)
    return _folded("recursive_doubling", n, 1, bits, lambda s: Step.of(ranks, ranks ^ (1 << s), 0, reduce=True))


def _range(ranks: IntArray, p: int, halvings: int) -> IntArray:
    """First of the p / 2^halvings chunks that a rank has left: each halving keeps the half that its next bit names."""
    first = np.zeros_like(ranks)
    for s in range(halvings):
        first += (ranks >> s & 1) * (p >> (s + 1))
    return first


def halving_doubling(n: int) -> Schedule:
    """Step s < log2 p: give the partner its half of the range, reducing; then the same steps backwards, copying."""
    bits = floor_log2(n)
    p = 1 << bits
    ranks = np.arange(p)

    def exchange(s: int) -> Step:
        halving = s < bits
        bit = s if halving else 2 * bits - 1 - s
        partner = ranks ^ (1 << bit)
        first = _range(partner if halving else ranks, p, bit + 1)
        return Step.of(ranks, partner, first, p >> (bit + 1), reduce=halving)

    return _folded("halving_doubling", n, p, 2 * bits, exchange)


ALGORITHMS = (
    Algorithm(
        "all_reduce",
        "recursive_doubling",
        recursive_doubling,
        lambda n: floor_log2(n) + 2 * _folds(n),
        lambda n: floor_log2(n) + _folds(n),
        "Thakur, Rabenseifner & Gropp, IJHPCA 19 (2005)",
    ),
    Algorithm(
        "all_reduce",
        "halving_doubling",
        halving_doubling,
        lambda n: 2 * floor_log2(n) + 2 * _folds(n),
        lambda n: 2 * others(1 << floor_log2(n)) + _folds(n),
        "Rabenseifner, ICCS 2004",
    ),
)
