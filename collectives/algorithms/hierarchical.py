"""Hierarchical: reduce-scatter within a host, all-reduce across, all-gather within; of any depth, a ring at each level.

all_reduce  2·Σ(k − 1) steps over the levels' sizes k, 2(n−1)/n·S; with m hosts of k0 cards only 2(m−1)/m · S/k0 of it
            leave the host, so that a slow network carries little
all_gather, reduce_scatter  Σ(k − 1) steps, (n−1)/n·S, of which (m−1)/n·S between hosts

Without a shape: hosts of the largest k0 ≤ 8 that divides n.

Source: Cho, Finkler, Kung & Hunter, BlueConnect: decomposing all-reduce for deep learning on heterogeneous network
hierarchy, MLSys (2019).
"""

from __future__ import annotations

from superpod.collectives.algorithms.algorithm import Algorithm, others
from superpod.collectives.algorithms.dimension_blocks import by_blocks
from superpod.collectives.algorithms.dimensions import by_dimensions, ring_steps
from superpod.collectives.schedule import Schedule

HOST = 8


def hosts(n: int) -> tuple[int, ...]:
    """(cards a host, hosts)."""
    size = next(k for k in range(min(n, HOST), 0, -1) if n % k == 0)
    return (size, n // size)


def all_reduce(n: int, shape: tuple[int, ...] | None = None) -> Schedule:
    """`shape`: sizes of the levels, lowest first."""
    return by_dimensions("hierarchical", n, shape or hosts(n), ring=True, split=False)


def all_gather(n: int, shape: tuple[int, ...] | None = None) -> Schedule:
    """Across hosts first, then within."""
    return by_blocks("all_gather", "hierarchical", n, shape or hosts(n), ring=True, split=False)


def reduce_scatter(n: int, shape: tuple[int, ...] | None = None) -> Schedule:
    """Within hosts first, then across."""
    return by_blocks("reduce_scatter", "hierarchical", n, shape or hosts(n), ring=True, split=False)


def _half(n: int) -> int:
    return ring_steps(hosts(n)) // 2


_PAPER = "Cho, Finkler, Kung & Hunter, MLSys (2019)"
ALGORITHMS = (
    Algorithm(
        "all_reduce",
        "hierarchical",
        all_reduce,
        lambda n: ring_steps(hosts(n)),
        lambda n: 2 * others(n),
        _PAPER,
        shaped=True,
    ),
    Algorithm("all_gather", "hierarchical", all_gather, _half, others, _PAPER, shaped=True),
    Algorithm("reduce_scatter", "hierarchical", reduce_scatter, _half, others, _PAPER, shaped=True),
)
