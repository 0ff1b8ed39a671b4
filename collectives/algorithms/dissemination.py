"""Dissemination: in step s every rank tells rank r + 2^s whom it has heard of.

barrier  ceil(log2 n) steps for any n, one message a rank and step; a rank may be heard of twice, which does no harm

Source: Hensgen, Finkel & Manber, Two algorithms for barrier synchronization, Int. J. Parallel Programming 17 (1988).
"""

from __future__ import annotations

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, ceil_log2
from superpod.collectives.schedule import Schedule, Step


def barrier(n: int) -> Schedule:
    """After step s rank r has heard of r − 2^(s+1) + 1 to r."""
    ranks = np.arange(n)

    def build(s: int) -> Step:
        return Step.of(ranks, (ranks + (1 << s)) % n, 0, reduce=True)

    return Schedule("barrier", "dissemination", n, nchunks=1, nsteps=ceil_log2(n), build=build)


_PAPER = "Hensgen, Finkel & Manber, IJPP 17 (1988)"
ALGORITHMS = (Algorithm("barrier", "dissemination", barrier, ceil_log2, ceil_log2, _PAPER),)
