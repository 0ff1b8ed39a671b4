"""Direct: everyone talks to everyone at once: fewest steps, most messages a rank.

all_reduce one_shot  1 step of messages, (n−1)·S: everyone gets everything and adds it up in the order of the ranks,
                     for n > 2 in a second, local step, so that all get the same bits
all_reduce two_shot  2 steps, 2(n−1)/n·S: reduce_scatter, then all_gather
reduce_scatter, all_gather, all_to_all  1 step, (n−1)/n·S
With n = 1 there is nothing to do but all_to_all's local copy. Moves are listed by distance: rank r sends to r + 1, then
r + 2 and so on, so that no rank is flooded, and adds what comes from r − 1, then r − 2 and so on.

Source: MSCCL++, arXiv 2504.09014 (2025), as one-phase and two-phase all-pairs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, any_other, others
from superpod.collectives.schedule import Exchange, IntArray, Schedule, Step, Traffic


def pairs(n: int, nearest: int = 1) -> tuple[IntArray, IntArray]:
    """Every rank with every other, by distance; `nearest` = 0: also with itself."""
    src = np.tile(np.arange(n), n - nearest)
    distance = np.repeat(np.arange(nearest, n), n)
    return src, (src + distance) % n


def one_shot(n: int) -> Schedule:
    """Rank q's array lands in bank q everywhere; then banks 1, 2, … are added to bank 0."""
    if n <= 2:  # two operands: both ranks take the lower one's first
        return Schedule("all_reduce", "one_shot", n, 1, n - 1, lambda _: Step.of(*pairs(n), 0, reduce=True))

    def own() -> Step:
        ranks = np.arange(1, n)
        return Step.of(ranks, ranks, 0, 1, ranks)

    def build(s: int) -> Step:
        if s == 0:
            src, dst = pairs(n)
            return Step.join(own(), Step.of(src, dst, 0, 1, src))
        every = np.repeat(np.arange(n), n - 1)
        return Step.of(every, every, np.tile(np.arange(1, n), n), 1, 0, reduce=True)

    def traffic() -> list[Traffic]:
        return [Traffic(flows=own(), exchanges=(Exchange(1, n),)), Traffic(local=n - 1, reduce=True)]

    return Schedule("all_reduce", "one_shot", n, nchunks=1, nsteps=2, build=build, nbanks=n, traffic=traffic)


def two_shot(n: int) -> Schedule:
    """Rank r adds up chunk r, then hands it to everyone."""

    def build(s: int) -> Step:
        src, dst = pairs(n)
        return Step.of(src, dst, src if s else dst, reduce=s == 0)

    nsteps = 2 * any_other(n)
    everyone = (Exchange(1, n),)
    both = [Traffic(exchanges=everyone, reduce=True), Traffic(exchanges=everyone)][:nsteps]
    return Schedule("all_reduce", "two_shot", n, n, nsteps, build, traffic=lambda: both)


def _exchange(collective: str, n: int, moves: Callable[[IntArray, IntArray], Step], *, nbanks: int = 1) -> Schedule:
    """Every rank with every other, and with itself if there are two banks. Built late: n² moves."""
    carried = Traffic(exchanges=(Exchange(1, n),), local=nbanks - 1, reduce=collective == "reduce_scatter")
    nsteps = max(any_other(n), nbanks - 1)

    def build(_: int) -> Step:
        return moves(*pairs(n, 2 - nbanks))

    return Schedule(collective, "direct", n, n, nsteps, build, nbanks, traffic=lambda: [carried][:nsteps])


def reduce_scatter(n: int) -> Schedule:
    return _exchange("reduce_scatter", n, lambda src, dst: Step.of(src, dst, dst, reduce=True))


def all_gather(n: int) -> Schedule:
    return _exchange("all_gather", n, lambda src, dst: Step.of(src, dst, src))


def all_to_all(n: int) -> Schedule:
    return _exchange("all_to_all", n, lambda src, dst: Step.of(src, dst, dst, 1, n + src), nbanks=2)


_PAPER = "MSCCL++, arXiv 2504.09014 (2025)"
ALGORITHMS = (
    Algorithm("all_reduce", "one_shot", one_shot, lambda n: min(2, n - 1), lambda n: n - 1, _PAPER, fixed_order=True),
    Algorithm("all_reduce", "two_shot", two_shot, lambda n: 2 * any_other(n), lambda n: 2 * others(n), _PAPER),
    Algorithm("reduce_scatter", "direct", reduce_scatter, any_other, others, _PAPER),
    Algorithm("all_gather", "direct", all_gather, any_other, others, _PAPER),
    Algorithm("all_to_all", "direct", all_to_all, lambda n: 1, others, _PAPER),
)
