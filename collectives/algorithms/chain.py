"""Chain: the array is passed on from rank 0 to the last one, each adding its own, and back as a whole, chunk by chunk.

all_reduce  2n + 13 steps, 2·S from every rank inside, S from both ends: 16 chunks follow one another along the chain,
            so that ranks work at once; with n = 1 there is nothing to do.
Contributions are added up in the order of the ranks. Where many ranks share a core, few switches between processes are
needed: each adds a long piece in one go.

Source: Pješivac-Grbović et al., Performance analysis of MPI collective operations, Cluster Computing 10 (2007), as
pipeline.
"""

from __future__ import annotations

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, any_other
from superpod.collectives.schedule import IntArray, Schedule, Step

_CHUNKS = 16


def all_reduce(n: int) -> Schedule:
    """Step s: rank r passes chunk s − r on to r + 1; the last rank has it complete and passes it back a step later."""

    def build(s: int) -> Step:
        turn = n - 1
        up, down = _hops(n, s), _hops(n, s - turn)
        back = turn - down
        return Step.join(Step.of(up, up + 1, s - up, reduce=True), Step.of(back, back - 1, s - turn - down))

    return Schedule("all_reduce", "chain", n, _CHUNKS, _steps(n), build)


def _hops(n: int, s: int) -> IntArray:
    """The hops of n − 1 that carry something in step s: hop h carries chunk s − h."""
    return np.arange(max(0, s - _CHUNKS + 1), min(n - 1, s + 1))


def _steps(n: int) -> int:
    return any_other(n) * (2 * (n - 1) + _CHUNKS - 1)


_PAPER = "Pješivac-Grbović et al., Cluster Computing 10 (2007)"
ALGORITHMS = (Algorithm("all_reduce", "chain", all_reduce, _steps, lambda n: min(2, n - 1), _PAPER, fixed_order=True),)
