"""Ring: rank r talks to r + 1 only, so every link carries the same and bandwidth is used in full.

all_reduce      2(n−1) steps, each rank sends 2(n−1)/n·S: once around reducing, once around copying.
reduce_scatter   n−1 steps, (n−1)/n·S        all_gather  n−1 steps, (n−1)/n·S

Source: Patarasuk & Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, JPDC 69 (2009).
"""

from __future__ import annotations

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, others
from superpod.collectives.schedule import Move, Program, RankStep, Schedule, Step, Traffic


def _ring(collective: str, n: int, nsteps: int, *, lead: int, reducing: int) -> Schedule:
    """Step s: rank r passes chunk r + lead − s on to r + 1, which reduces it while s < reducing."""
    ranks = np.arange(n)

    def build(s: int) -> Step:
        return Step.of(ranks, (ranks + 1) % n, (ranks + lead - s) % n, reduce=s < reducing)

    def program(r: int) -> Program:
        """A shortcut: cut out of O(n) steps of n moves it would take O(n²) on every rank."""

        def passed(s: int, sender: int, peer: int) -> tuple[Move, ...]:
            chunk = (sender + lead - s) % n
            return (Move(peer % n, chunk, 1, chunk, s < reducing),)

        return tuple(RankStep(s, (), passed(s, r, r + 1), passed(s, r - 1, r - 1)) for s in range(nsteps))

    def traffic() -> list[Traffic]:
        """All steps of a phase load the links alike."""
        reduced, copied = (Step.of(ranks, (ranks + 1) % n, 0, reduce=reduce) for reduce in (True, False))
        return [Traffic(reducing, reduced), Traffic(nsteps - reducing, copied)]

    return Schedule(collective, "ring", n, nchunks=n, nsteps=nsteps, build=build, program=program, traffic=traffic)


def all_reduce(n: int) -> Schedule:
    """The chunk that r sends first comes back to it, complete, after n − 1 steps and is then passed on as it is."""
    return _ring("all_reduce", n, 2 * (n - 1), lead=0, reducing=n - 1)


def reduce_scatter(n: int) -> Schedule:
    """Rank r's own chunk starts at r + 1 and arrives at r last, with every contribution."""
    return _ring("reduce_scatter", n, n - 1, lead=-1, reducing=n - 1)


def all_gather(n: int) -> Schedule:
    """Step s: rank r passes on the chunk that it received in step s − 1; its own in step 0."""
    return _ring("all_gather", n, n - 1, lead=0, reducing=0)


_PAPER = "Patarasuk & Yuan, JPDC 69 (2009)"
ALGORITHMS = (
    Algorithm("all_reduce", "ring", all_reduce, lambda n: 2 * (n - 1), lambda n: 2 * others(n), _PAPER),
    Algorithm("reduce_scatter", "ring", reduce_scatter, lambda n: n - 1, others, _PAPER),
    Algorithm("all_gather", "ring", all_gather, lambda n: n - 1, others, _PAPER),
)
