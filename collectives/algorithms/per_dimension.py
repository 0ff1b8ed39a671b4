"""Per dimension: on a mesh of D dimensions everyone has a link to everyone in each; send to all of them at once.

all_reduce  2 steps a dimension, 2(n−1)/n·S. Half of the array goes X→Y and half Y→X, so that the links of both
            dimensions always work: on an 8×8 mesh a link carries 9/64·S, the least possible; unsplit, 9/32·S
all_gather, reduce_scatter  1 step a dimension, (n−1)/n·S, in halves as well

Without a shape: the most square one of two dimensions.

Source: Liao et al., UB-Mesh: a hierarchically localized nD-FullMesh datacenter network architecture, arXiv 2503.20377
(2025).
"""

from __future__ import annotations

from superpod.collectives.algorithms.algorithm import Algorithm, grid, others
from superpod.collectives.algorithms.dimension_blocks import by_blocks
from superpod.collectives.algorithms.dimensions import by_dimensions, direct_steps
from superpod.collectives.schedule import Schedule


def all_reduce(n: int, shape: tuple[int, ...] | None = None, *, split: bool = True) -> Schedule:
    """`shape`: sizes of the dimensions, lowest first. `split` False: everything goes X→Y."""
    return by_dimensions("per_dimension", n, shape or grid(n), ring=False, split=split)


def all_gather(n: int, shape: tuple[int, ...] | None = None) -> Schedule:
    """The highest dimension first."""
    return by_blocks("all_gather", "per_dimension", n, shape or grid(n), ring=False, split=True)


def reduce_scatter(n: int, shape: tuple[int, ...] | None = None) -> Schedule:
    """The lowest dimension first."""
    return by_blocks("reduce_scatter", "per_dimension", n, shape or grid(n), ring=False, split=True)


def _half(n: int) -> int:
    return direct_steps(grid(n)) // 2


_PAPER = "Liao et al., UB-Mesh, arXiv 2503.20377 (2025)"
ALGORITHMS = (
    Algorithm(
        "all_reduce",
        "per_dimension",
        all_reduce,
        lambda n: direct_steps(grid(n)),
        lambda n: 2 * others(n),
        _PAPER,
        shaped=True,
    ),
    Algorithm("all_gather", "per_dimension", all_gather, _half, others, _PAPER, shaped=True),
    Algorithm("reduce_scatter", "per_dimension", reduce_scatter, _half, others, _PAPER, shaped=True),
)
