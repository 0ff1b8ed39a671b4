"""NHR, nonuniform hierarchical ring: few steps for any n, and most bytes go to the nearest rank; L = ceil(log2 n).

reduce_scatter  L steps, (n−1)/n·S       all_gather  L steps, (n−1)/n·S       all_reduce  2L steps, 2(n−1)/n·S
As circulant.py and bruck.py, but the other way around: there the longest messages travel farthest, here they go to rank
r ± 1, and only single blocks to rank r ± n/2. The blocks of a message do not lie side by side.

Source: Huawei, HCCL documentation, collective communication algorithms (2024), as NHR.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, ceil_log2, others
from superpod.collectives.schedule import Schedule, Step, Traffic


def _held(n: int, distance: int) -> int:
    """How many blocks r, r − 2d, r − 4d, … a rank holds before it hears from the rank d = `distance` below."""
    return -(-n // (2 * distance))


def _sent(n: int, distance: int) -> int:
    return -(-n // distance) - _held(n, distance)


def _moves(n: int, distance: int, *, gather: bool) -> Step:
    """Rank r hands blocks r, r − 2d, r − 4d, … on to r + d; backwards, r + d hands their sums to r."""
    ranks, many = np.arange(n)[:, None], np.arange(_sent(n, distance))
    block, far = (ranks - 2 * distance * many) % n, np.broadcast_to((ranks + distance) % n, (n, len(many)))
    near = np.broadcast_to(ranks, block.shape)
    return Step.of(near, far, block) if gather else Step.of(far, near, block, reduce=True)


def _schedule(collective: str, n: int) -> Schedule:
    levels = ceil_log2(n)
    near_first, far_first = [1 << s for s in range(levels)], [1 << (levels - 1 - s) for s in range(levels)]
    scattering = [(d, False) for d in near_first] if collective != "all_gather" else []
    gathering = [(d, True) for d in far_first] if collective != "reduce_scatter" else []
    plan = scattering + gathering

    def traffic() -> Iterator[Traffic]:
        ranks = np.arange(n)
        for distance, gather in plan:
            far, count = (ranks + distance) % n, _sent(n, distance)
            ends = (ranks, far) if gather else (far, ranks)
            yield Traffic(flows=Step.of(*ends, 0, count, reduce=not gather))

    return Schedule(
        collective, "nhr", n, n, len(plan), lambda s: _moves(n, plan[s][0], gather=plan[s][1]), traffic=traffic
    )


def all_reduce(n: int) -> Schedule:
    return _schedule("all_reduce", n)


def reduce_scatter(n: int) -> Schedule:
    """Backwards through all_gather: each block's sum grows on its way to its owner."""
    return _schedule("reduce_scatter", n)


def all_gather(n: int) -> Schedule:
    """Before the step of distance d, rank r holds every 2d-th block below its own."""
    return _schedule("all_gather", n)


_PAPER = "Huawei, HCCL documentation (2024)"
ALGORITHMS = (
    Algorithm("all_reduce", "nhr", all_reduce, lambda n: 2 * ceil_log2(n), lambda n: 2 * others(n), _PAPER),
    Algorithm("reduce_scatter", "nhr", reduce_scatter, ceil_log2, others, _PAPER),
    Algorithm("all_gather", "nhr", all_gather, ceil_log2, others, _PAPER),
)
