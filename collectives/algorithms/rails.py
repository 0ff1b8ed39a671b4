"""Rails: every card of a host speaks to the others for its share of the data; the fewest bytes between hosts.

With m hosts, of k cards each:
all_reduce  4 steps (2 if m = 1 or k = 1), 2(n−1)/n·S: reduce-scatter within the hosts, then among the cards that have
            the same share; all-gather among those, then within. A host sends 2(m−1)/m·S to others, the least there is
all_gather, reduce_scatter  2 steps (1), (n−1)/n·S; a host sends (n−k)/n·S to others
With one size of host this is per_dimension on the shape (k, m), undivided. Where sizes differ, a share is 1/max(k) of
the data, and cards of smaller hosts have several.

Source: Cho, Finkler, Kung & Hunter, BlueConnect, MLSys (2019); with direct exchanges in place of rings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, others
from superpod.collectives.algorithms.dimension_blocks import by_blocks
from superpod.collectives.algorithms.dimensions import by_dimensions, direct_steps
from superpod.collectives.algorithms.hierarchical import hosts as default
from superpod.collectives.algorithms.host_sizes import Hosts
from superpod.collectives.schedule import IntArray, Schedule, Step


def _all_reduce(n: int, by: Hosts) -> Schedule:
    """Chunk j of a share is added up on host j; a share is `count` chunks."""
    m, shares = by.count, np.arange(by.most)

    def within(*, reduce: bool) -> Step:
        steps = []
        for host, k in enumerate(by.sizes):
            edges = -(-np.arange(k + 1) * by.most // k)  # card c has the shares from edges[c] to edges[c + 1]
            src, dst = by.pairs(host)
            card = dst if reduce else src
            first, count = edges[card] * m, (edges[card + 1] - edges[card]) * m
            base = by.first[host]
            steps.append(Step.of(base + src, base + dst, first, count, reduce=reduce))
        return Step.join(*steps)

    def across(*, reduce: bool) -> Step:
        steps = []
        for distance in range(1, m):
            for here in range(m):
                there = (here + distance) % m
                chunk = shares * m + (there if reduce else here)
                src, dst = (by.owner(host, shares, by.most) for host in (here, there))
                steps.append(Step.of(src, dst, chunk, reduce=reduce))
        return Step.join(*steps)

    def build(s: int) -> Step:
        return (within, across)[s in (1, 2)](reduce=s < 2)

    return Schedule("all_reduce", "rails", n, m * by.most, 4, build)


def _blocks(collective: str, n: int, by: Hosts) -> Schedule:
    """all_gather; backwards it is reduce_scatter. A block goes to one card of each other host, which hands it on."""
    gather = collective == "all_gather"

    def step(src: IntArray, dst: IntArray, block: IntArray) -> Step:
        return Step.of(src, dst, block) if gather else Step.of(dst, src, block, reduce=True)

    def across() -> Step:
        steps = []
        for distance in range(1, by.count):
            for here, k in enumerate(by.sizes):
                own = by.first[here] + np.arange(k)
                steps.append(step(own, by.owner((here + distance) % by.count, np.arange(k), k), own))
        return Step.join(*steps)

    def within() -> Step:
        steps = []
        for host in range(by.count):
            src, dst = (by.first[host] + card for card in by.pairs(host))
            for home, k in enumerate(by.sizes):
                held_by = by.owner(host, np.arange(k), k)
                pair, block = np.nonzero(src[:, None] == held_by)
                steps.append(step(src[pair], dst[pair], by.first[home] + block))
        return Step.join(*steps)

    return Schedule(collective, "rails", n, n, 2, lambda s: (across if (s == 0) == gather else within)())


def _made(collective: str, n: int, hosts: Sequence[int] | None) -> Schedule:
    by = Hosts(n, hosts)
    shape = (by.most, by.count)
    if len(set(by.sizes)) > 1:
        return _all_reduce(n, by) if collective == "all_reduce" else _blocks(collective, n, by)
    if collective == "all_reduce":
        return by_dimensions("rails", n, shape, ring=False, split=False)
    return by_blocks(collective, "rails", n, shape, ring=False, split=False)


def all_reduce(n: int, hosts: Sequence[int] | None = None) -> Schedule:
    return _made("all_reduce", n, hosts)


def all_gather(n: int, hosts: Sequence[int] | None = None) -> Schedule:
    return _made("all_gather", n, hosts)


def reduce_scatter(n: int, hosts: Sequence[int] | None = None) -> Schedule:
    return _made("reduce_scatter", n, hosts)


def _steps(n: int) -> int:
    return direct_steps(default(n))


_PAPER = "Cho, Finkler, Kung & Hunter, MLSys (2019)"
ALGORITHMS = (
    Algorithm("all_reduce", "rails", all_reduce, _steps, lambda n: 2 * others(n), _PAPER, hosted=True),
    Algorithm("all_gather", "rails", all_gather, lambda n: _steps(n) // 2, others, _PAPER, hosted=True),
    Algorithm("reduce_scatter", "rails", reduce_scatter, lambda n: _steps(n) // 2, others, _PAPER, hosted=True),
)
