"""Circulant graph: Bruck's all_gather backwards is a reduce_scatter, in the fewest steps and bytes for any n.

reduce_scatter  L = ceil(log2 n) steps, (n−1)/n·S       all_reduce  2L steps, 2(n−1)/n·S
Where n is no power of two it needs fewer steps and bytes than halving-doubling; where it is, the same.

Source: Träff, Optimal, non-pipelined reduce-scatter and allreduce algorithms, arXiv 2410.14234 (2024).
"""

from __future__ import annotations

import numpy as np

from superpod.collectives.algorithms import bruck
from superpod.collectives.algorithms.algorithm import Algorithm, ceil_log2, others
from superpod.collectives.schedule import Schedule, Step


def reduce_scatter(n: int) -> Schedule:
    """Step s, d = 2^(L−1−s): rank r is left with partial sums of blocks r to r + d − 1; the others go to r + d."""
    ranks, nsteps = np.arange(n), ceil_log2(n)

    def build(s: int) -> Step:
        distance = 1 << (nsteps - 1 - s)
        far = (ranks + distance) % n
        return Step.around(ranks, far, far, min(distance, n - distance), nchunks=n, reduce=True)

    return Schedule("reduce_scatter", "circulant", n, nchunks=n, nsteps=nsteps, build=build)


def all_reduce(n: int) -> Schedule:
    """reduce_scatter, then Bruck's all_gather: each chunk is summed on one rank, so all get the same bits."""
    halves = (reduce_scatter(n), bruck.all_gather(n))
    nsteps = halves[0].nsteps

    def build(s: int) -> Step:
        return halves[0].build(s) if s < nsteps else halves[1].build(s - nsteps)

    return Schedule("all_reduce", "circulant", n, nchunks=n, nsteps=2 * nsteps, build=build)


_PAPER = "Träff, arXiv 2410.14234 (2024)"
ALGORITHMS = (
    Algorithm("all_reduce", "circulant", all_reduce, lambda n: 2 * ceil_log2(n), lambda n: 2 * others(n), _PAPER),
    Algorithm("reduce_scatter", "circulant", reduce_scatter, ceil_log2, others, _PAPER),
)
