"""Direct, in the order of the ranks: a chunk's owner gathers all contributions to it and adds them up, rank 0's first.

all_reduce two_shot_ordered    3 steps, 2(n−1)/n·S: contributions to the owners, a local step, results to everyone
reduce_scatter direct_ordered  2 steps, (n−1)/n·S: the first two of these
The local step adds up; n = 2 needs none, for the lower rank's operand is the first one anyway. With n = 1 there is
nothing to do. An owner needs room for n − 1 more chunks. Moves are listed by distance, so that no rank is flooded.

Source: Demmel & Nguyen, Fast reproducible floating-point summation, ARITH (2013), on why a fixed order is the way to
the same bits for any algorithm; the exchange is that of MSCCL++, arXiv 2504.09014 (2025), as all-pairs.
"""

from __future__ import annotations

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, any_other, others
from superpod.collectives.algorithms.direct import pairs
from superpod.collectives.schedule import Exchange, Schedule, Step, Traffic


def _steps(n: int) -> int:
    """To gather and to add up."""
    return min(2, n - 1)


def _gather(n: int) -> Step:
    """Rank q's part of chunk r lands in bank q of rank r, rank r's own too; rank 0's where the result is to be."""
    src, dst = pairs(n)
    if n == 2:
        return Step.of(src, dst, dst, reduce=True)
    own = np.arange(1, n)
    return Step.join(Step.of(own, own, own, 1, own * n + own), Step.of(src, dst, dst, 1, src * n + dst))


def _add_up(n: int) -> Step:
    """Each rank adds banks 1, 2, … to bank 0."""
    rank, bank = np.repeat(np.arange(n), n - 1), np.tile(np.arange(1, n), n)
    return Step.of(rank, rank, bank * n + rank, 1, rank, reduce=True)


def _gathering(n: int) -> list[Traffic]:
    own = np.arange(1, n)
    first = Traffic(flows=Step.of(own, own, 0) if n > 2 else None, exchanges=(Exchange(1, n),), reduce=n == 2)
    return [first, Traffic(local=n - 1, reduce=True)][: _steps(n)]


def _nbanks(n: int) -> int:
    return n if n > 2 else 1


def two_shot_ordered(n: int) -> Schedule:
    """Rank r adds up chunk r, then hands it to everyone."""

    def build(s: int) -> Step:
        if s < _steps(n):
            return _add_up(n) if s else _gather(n)
        src, dst = pairs(n)
        return Step.of(src, dst, src)

    def traffic() -> list[Traffic]:
        return [*_gathering(n), Traffic(exchanges=(Exchange(1, n),))][: _steps(n) + any_other(n)]

    nsteps = _steps(n) + any_other(n)
    return Schedule("all_reduce", "two_shot_ordered", n, n, nsteps, build, _nbanks(n), traffic=traffic)


def reduce_scatter(n: int) -> Schedule:
    """Rank r adds up chunk r."""

    def build(s: int) -> Step:
        return _add_up(n) if s else _gather(n)

    traffic = _gathering
    return Schedule("reduce_scatter", "direct_ordered", n, n, _steps(n), build, _nbanks(n), traffic=lambda: traffic(n))


_PAPER = "Demmel & Nguyen, ARITH (2013)"
ALGORITHMS = (
    Algorithm(
        "all_reduce",
        "two_shot_ordered",
        two_shot_ordered,
        lambda n: _steps(n) + any_other(n),
        lambda n: 2 * others(n),
        _PAPER,
        fixed_order=True,
    ),
    Algorithm("reduce_scatter", "direct_ordered", reduce_scatter, _steps, others, _PAPER, fixed_order=True),
)
