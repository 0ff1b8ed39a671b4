"""Direct with a root: it talks to everyone at once.

all_reduce star      2 steps, (n−1)·S: reduce to rank 0, then broadcast; a rank but 0 is woken up once
reduce star          2 steps, with n = 2 one, S: rank 0 adds up, whoever is the root
reduce_scatter star  2 steps, S, rank 0 (n−1)/n·S: reduce to rank 0, then scatter
broadcast  1 step, the root sends (n−1)·S       reduce direct   1 step, S
scatter    1 step, the root sends (n−1)/n·S     gather          1 step, S/n
With n = 1 there is nothing to do. Moves are listed by distance from the root, and the root adds in that order; so the
stars add in the order of the ranks.

Source: MSCCL++, arXiv 2504.09014 (2025), of whose all-pairs these are a part; star: Gabriel et al., Open MPI,
EuroPVM/MPI (2004), as its linear algorithm.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, any_other, others
from superpod.collectives.schedule import IntArray, Schedule, Step


def star(n: int) -> Schedule:
    """Rank 0 adds up everyone's array, that of rank 1 first, and hands the result to everyone."""
    leaves = _others(n, 0)
    steps = (Step.of(leaves, 0, 0, reduce=True), Step.of(0, leaves, 0))
    return Schedule("all_reduce", "star", n, 1, 2 if n > 1 else 0, lambda s: steps[s])


def reduce_star(n: int, root: int) -> Schedule:
    """Rank 0 adds up everyone's array, that of rank 1 first; the root gets the sum, or adds the last one if it is 0."""
    leaves = _others(n, 0)
    steps = (Step.of(leaves, 0, 0, reduce=True), Step.of(0, root, 0))
    if n <= 2:
        steps = (Step.of(1 - root, root, 0, reduce=True),) * 2
    elif root == 0:
        steps = (Step.of(leaves[:-1], 0, 0, reduce=True), Step.of(leaves[-1:], 0, 0, reduce=True))
    return Schedule("reduce", "star", n, 1, min(2, n - 1), lambda s: steps[s], root=root)


def reduce_scatter_star(n: int) -> Schedule:
    """Rank 0 adds up everyone's array, that of rank 1 first, and hands its block to everyone."""
    leaves = _others(n, 0)
    steps = (Step.of(leaves, 0, 0, n, reduce=True), Step.of(0, leaves, leaves))
    return Schedule("reduce_scatter", "star", n, n, 2 * any_other(n), lambda s: steps[s])


def _at_once(collective: str, n: int, nchunks: int, step: Step, root: int) -> Schedule:
    return Schedule(collective, "direct", n, nchunks, min(1, len(step)), lambda _: step, root=root)


def _others(n: int, root: int) -> IntArray:
    return (root + np.arange(1, n)) % n


def broadcast(n: int, root: int) -> Schedule:
    return _at_once("broadcast", n, 1, Step.of(root, _others(n, root), 0), root)


def reduce(n: int, root: int) -> Schedule:
    """The root adds root + 1 first, root − 1 last."""
    return _at_once("reduce", n, 1, Step.of(_others(n, root), root, 0, reduce=True), root)


def scatter(n: int, root: int) -> Schedule:
    rest = _others(n, root)
    return _at_once("scatter", n, n, Step.of(root, rest, rest), root)


def gather(n: int, root: int) -> Schedule:
    rest = _others(n, root)
    return _at_once("gather", n, n, Step.of(rest, root, rest), root)


def _twice(n: int) -> int:
    return 2 * any_other(n)


_OPEN_MPI = "Gabriel et al., Open MPI, EuroPVM/MPI (2004)"
_PAPER = "MSCCL++, arXiv 2504.09014 (2025)"
ALGORITHMS = (
    Algorithm("all_reduce", "star", star, _twice, lambda n: n - 1, _OPEN_MPI, fixed_order=True),
    Algorithm("reduce", "star", reduce_star, lambda n: min(2, n - 1), any_other, _OPEN_MPI, fixed_order=True),
    Algorithm("reduce_scatter", "star", reduce_scatter_star, _twice, any_other, _OPEN_MPI, fixed_order=True),
    Algorithm("broadcast", "direct", broadcast, any_other, lambda n: n - 1, _PAPER),
    Algorithm("reduce", "direct", reduce, any_other, any_other, _PAPER),
    Algorithm("scatter", "direct", scatter, any_other, others, _PAPER),
    Algorithm("gather", "direct", gather, any_other, lambda n: Fraction(any_other(n), n), _PAPER),
)
