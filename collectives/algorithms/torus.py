"""2D ring: reduce-scatter around the rows, all-reduce around the columns, all-gather around the rows.

all_reduce  2·Σ(k − 1) steps over the dimensions' sizes k, 2(n−1)/n·S. As in per_dimension.py half of the array goes
            columns first, so that a torus uses the links of both its dimensions; of any number of dimensions

Without a shape: the most square one of two dimensions.

Source: Mikami et al., Massively distributed SGD: ImageNet/ResNet-50 training in a flash, arXiv 1811.05233 (2018).
"""

from __future__ import annotations

from superpod.collectives.algorithms.algorithm import Algorithm, grid, others
from superpod.collectives.algorithms.dimensions import by_dimensions, ring_steps
from superpod.collectives.schedule import Schedule


def all_reduce(n: int, shape: tuple[int, ...] | None = None) -> Schedule:
    """`shape`: sizes of the dimensions, lowest first."""
    return by_dimensions("torus", n, shape or grid(n), ring=True, split=True)


_PAPER = "Mikami et al., arXiv 1811.05233 (2018)"
ALGORITHMS = (
    Algorithm(
        "all_reduce", "torus", all_reduce, lambda n: ring_steps(grid(n)), lambda n: 2 * others(n), _PAPER, shaped=True
    ),
)
