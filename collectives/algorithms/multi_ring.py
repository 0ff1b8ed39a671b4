"""Multi-ring: the array in as many parts as there are rings without a common link, a ring all-reduce for each part.

all_reduce  2(n−1) steps, 2(n−1)/n·S over r rings at once: on a full mesh of 8, six rings use 6/7 of all links; on an
            8×8 mesh, fourteen use all of them

Without a shape: the most square one of two dimensions; see rings.py for which rings there are.

Source: Liao et al., UB-Mesh: a hierarchically localized nD-FullMesh datacenter network architecture, arXiv 2503.20377
(2025).
"""

from __future__ import annotations

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, checked_shape, grid, others
from superpod.collectives.algorithms.rings import rings
from superpod.collectives.schedule import Schedule, Step, Traffic


def all_reduce(n: int, shape: tuple[int, ...] | None = None) -> Schedule:
    """Part q travels along ring q: its i-th rank passes chunk i − s on in step s, as in ring.py. `shape`: the mesh."""
    orders = rings(checked_shape(n, shape or grid(n)))
    place, part = np.arange(n), n * np.arange(len(orders))[:, None]
    after = np.roll(orders, -1, axis=1)

    def build(s: int) -> Step:
        return Step.of(orders, after, part + (place - s) % n, reduce=s < n - 1)

    def traffic() -> list[Traffic]:
        return [Traffic(n - 1, Step.of(orders, after, 0, reduce=reduce)) for reduce in (True, False)]

    return Schedule("all_reduce", "multi_ring", n, len(orders) * n, 2 * (n - 1), build, traffic=traffic)


_PAPER = "Liao et al., UB-Mesh, arXiv 2503.20377 (2025)"
ALGORITHMS = (
    Algorithm(
        "all_reduce", "multi_ring", all_reduce, lambda n: 2 * (n - 1), lambda n: 2 * others(n), _PAPER, shaped=True
    ),
)
