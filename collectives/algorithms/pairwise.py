"""Pairwise exchange: n − 1 steps, in each of which every rank sends to one and receives from another.

all_to_all  max(1, n − 1) steps, (n−1)/n·S: nothing travels twice, and no rank is flooded

Source: Thakur, Rabenseifner & Gropp, Optimization of collective communication operations in MPICH, IJHPCA 19 (2005).
"""

from __future__ import annotations

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, others
from superpod.collectives.schedule import Schedule, Step, Traffic


def all_to_all(n: int) -> Schedule:
    """Step s: rank r sends to r + s + 1; in step 0 it also copies its own block from input to output."""
    ranks = np.arange(n)

    def shift(distance: int) -> Step:
        far = (ranks + distance) % n
        return Step.of(ranks, far, far, 1, n + ranks)

    def build(s: int) -> Step:
        if s > 0:
            return shift(s + 1)
        return Step.join(*(shift(distance) for distance in range(min(2, n))))

    def traffic() -> list[Traffic]:
        if n == 1:
            return [Traffic(local=1)]
        return [Traffic(shift=(1, 1, 1), local=1), Traffic(n - 2, shift=(1, 2, n - 1))]

    return Schedule("all_to_all", "pairwise", n, n, max(1, n - 1), build, nbanks=2, traffic=traffic)


_PAPER = "Thakur, Rabenseifner & Gropp, IJHPCA 19 (2005)"
ALGORITHMS = (Algorithm("all_to_all", "pairwise", all_to_all, lambda n: max(1, n - 1), others, _PAPER),)
