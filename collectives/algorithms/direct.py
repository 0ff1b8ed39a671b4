"""Direct: everyone talks to everyone (or to the root) at once: fewest steps, most messages a rank.

all_reduce one_shot  1 step of messages, (n−1)·S: everyone gets everything and adds it up in the order of the ranks,
                     for n > 2 in a second, local step, so that all get the same bits
all_reduce two_shot  2 steps, 2(n−1)/n·S: reduce_scatter, then all_gather
all_reduce star      2 steps, (n−1)·S: reduce to rank 0, then broadcast; a rank but 0 is woken up once
reduce_scatter, all_gather, all_to_all  1 step, (n−1)/n·S
broadcast  1 step, the root sends (n−1)·S       reduce   1 step, S
scatter    1 step, the root sends (n−1)/n·S     gather   1 step, S/n
With n = 1 there is nothing to do but all_to_all's local copy. Moves are listed by distance: rank r sends to r + 1, then
r + 2 and so on, so that no rank is flooded, and adds what comes from r − 1, then r − 2 and so on.

Source: MSCCL++, arXiv 2504.09014 (2025), as one-phase and two-phase all-pairs; star: Gabriel et al., Open MPI, EuroPVM/MPI
(2004), as its linear algorithm.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, any_other, others
from superpod.collectives.schedule import IntArray, Schedule, Step


def _pairs(n: int, nearest: int = 1) -> tuple[IntArray, IntArray]:
    """Every rank with every other, by distance; `nearest` = 0: also with itself."""
    src = np.tile(np.arange(n), n - nearest)
    distance = np.repeat(np.arange(nearest, n), n)
    return src, (src + distance) % n


def one_shot(n: int) -> Schedule:
    """Rank q's array lands in bank q everywhere; then banks 1, 2, … are added to bank 0."""
    src, dst = _pairs(n)
    if n <= 2:  # two operands: a + b = b + a, bit for bit
        return Schedule("all_reduce", "one_shot", n, 1, n - 1, lambda _: Step.of(src, dst, 0, reduce=True))
    ranks = np.arange(n)

    def build(s: int) -> Step:
        if s == 0:
            own = Step.of(ranks[1:], ranks[1:], 0, 1, ranks[1:])
            return Step.join(own, Step.of(src, dst, 0, 1, src))
        every = np.repeat(ranks, n - 1)
        return Step.of(every, every, np.tile(ranks[1:], n), 1, 0, reduce=True)

    return Schedule("all_reduce", "one_shot", n, nchunks=1, nsteps=2, build=build, nbanks=n)


def two_shot(n: int) -> Schedule:
    """Rank r adds up chunk r, then hands it to everyone."""
    src, dst = _pairs(n)
    nsteps = 2 if n > 1 else 0
    return Schedule(
        "all_reduce", "two_shot", n, n, nsteps, lambda s: Step.of(src, dst, src if s else dst, reduce=s == 0)
    )


def star(n: int) -> Schedule:
    """Rank 0 adds up everyone's array, that of rank 1 first, and hands the result to everyone."""
    leaves = _others(n, 0)
    steps = (Step.of(leaves, 0, 0, reduce=True), Step.of(0, leaves, 0))
    return Schedule("all_reduce", "star", n, 1, 2 if n > 1 else 0, lambda s: steps[s])


def _at_once(collective: str, n: int, nchunks: int, step: Step, *, root: int = 0, nbanks: int = 1) -> Schedule:
    return Schedule(collective, "direct", n, nchunks, min(1, len(step)), lambda _: step, nbanks, root)


def reduce_scatter(n: int) -> Schedule:
    src, dst = _pairs(n)
    return _at_once("reduce_scatter", n, n, Step.of(src, dst, dst, reduce=True))


def all_gather(n: int) -> Schedule:
    src, dst = _pairs(n)
    return _at_once("all_gather", n, n, Step.of(src, dst, src))


def all_to_all(n: int) -> Schedule:
    src, dst = _pairs(n, nearest=0)
    return _at_once("all_to_all", n, n, Step.of(src, dst, dst, 1, n + src), nbanks=2)


def _others(n: int, root: int) -> IntArray:
    return (root + np.arange(1, n)) % n


def broadcast(n: int, root: int) -> Schedule:
    return _at_once("broadcast", n, 1, Step.of(root, _others(n, root), 0), root=root)


def reduce(n: int, root: int) -> Schedule:
    """The root adds root + 1 first, root − 1 last."""
    return _at_once("reduce", n, 1, Step.of(_others(n, root), root, 0, reduce=True), root=root)


def scatter(n: int, root: int) -> Schedule:
    others = _others(n, root)
    return _at_once("scatter", n, n, Step.of(root, others, others), root=root)


def gather(n: int, root: int) -> Schedule:
    others = _others(n, root)
    return _at_once("gather", n, n, Step.of(others, root, others), root=root)


_OPEN_MPI = "Gabriel et al., Open MPI, EuroPVM/MPI (2004)"
_PAPER = "MSCCL++, arXiv 2504.09014 (2025)"
ALGORITHMS = (
    Algorithm("all_reduce", "one_shot", one_shot, lambda n: min(2, n - 1), lambda n: n - 1, _PAPER),
    Algorithm("all_reduce", "two_shot", two_shot, lambda n: 2 * any_other(n), lambda n: 2 * others(n), _PAPER),
    Algorithm("all_reduce", "star", star, lambda n: 2 * any_other(n), lambda n: n - 1, _OPEN_MPI),
    Algorithm("reduce_scatter", "direct", reduce_scatter, any_other, others, _PAPER),
    Algorithm("all_gather", "direct", all_gather, any_other, others, _PAPER),
    Algorithm("all_to_all", "direct", all_to_all, lambda n: 1, others, _PAPER),
    Algorithm("broadcast", "direct", broadcast, any_other, lambda n: n - 1, _PAPER),
    Algorithm("reduce", "direct", reduce, any_other, any_other, _PAPER),
    Algorithm("scatter", "direct", scatter, any_other, others, _PAPER),
    Algorithm("gather", "direct", gather, any_other, lambda n: Fraction(any_other(n), n), _PAPER),
)
