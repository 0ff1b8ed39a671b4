"""Rails for all_to_all: what a host has for one card of another host goes there in one message.

all_to_all  2 steps (1 if m = 1), ((k−1)/k + (m−1)/m)·S for m hosts of k cards each: within the hosts every
            block goes to the card that speaks to its destination; then across. A host sends k·(n−k)/n·S to others, the
            least there is, in n − k messages where direct exchange needs k·(n−k)
Equal blocks only: those of a message come from several ranks. Where sizes differ, a card of a small host speaks to
several cards of a large one.

Source: Kumar, Mamidala & Panda, Scaling alltoall collective on multi-core systems, IPDPS workshop CAC (2008), which
collects blocks within the host; rails are those of Cho, Finkler, Kung & Hunter, BlueConnect, MLSys (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm
from superpod.collectives.algorithms.hierarchical import hosts as default
from superpod.collectives.algorithms.host_sizes import Hosts, runs
from superpod.collectives.schedule import Exchange, Schedule, Step, Traffic


def all_to_all(n: int, hosts: Sequence[int] | None = None) -> Schedule:
    """Banks: 0 input, 1 output, 2 and on the runs."""
    by = Hosts(n, hosts)
    cards = [by.first[host] + np.arange(k) for host, k in enumerate(by.sizes)]

    def within(host: int) -> Step:
        """Every card's blocks for its own host, to the output; those for others, to who speaks for them."""
        src, dst = (array.ravel() for array in np.meshgrid(cards[host], cards[host]))
        own = Step.of(src, dst, dst, 1, n + src)
        if by.sizes[host] == 1:
            return own
        run = runs(by, host)
        from_, t = (array.ravel() for array in np.meshgrid(cards[host], np.arange(len(run.to))))
        place = run.slot[t] + from_ - by.first[host]
        return Step.join(own, Step.of(from_, run.speaker[t], run.to[t], 1, place))

    def across(host: int) -> Step:
        run = runs(by, host)
        turn = np.argsort((run.to - run.speaker) % n, kind="stable")  # by distance, so that nobody is flooded
        return Step.of(run.speaker[turn], run.to[turn], run.slot[turn], by.sizes[host], n + by.first[host])

    halves = [within, across][: by.count]

    def build(s: int) -> Step:
        return Step.join(*(halves[s](host) for host in range(by.count)))

    def traffic() -> list[Traffic]:
        """For hosts of one size."""
        k, m = by.most, by.count
        near = Traffic(exchanges=(Exchange(m, k),), local=m) if k > 1 else Traffic(local=1)
        return [near, Traffic(exchanges=(Exchange(k, m, k),))][:m]

    even = len(set(by.sizes)) == 1
    return Schedule(
        "all_to_all",
        "rails",
        n,
        n,
        len(halves),
        build,
        _banks(by),
        equal_blocks=True,
        traffic=traffic if even else None,
    )


def _banks(by: Hosts) -> int:
    n = int(by.first[-1])
    if len(set(by.sizes)) == 1:
        return 2 if 1 in (by.count, by.most) else 3
    return max(2, *(int(runs(by, host).slot.max()) // n + 1 for host in range(by.count)))


def _sent(n: int) -> Fraction:
    k, m = default(n)
    return Fraction(k - 1, k) + Fraction(m - 1, m)


_PAPER = "Kumar, Mamidala & Panda, IPDPS workshop CAC (2008)"
ALGORITHMS = (
    Algorithm(
        "all_to_all",
        "rails",
        all_to_all,
        lambda n: min(2, default(n)[1]),
        _sent,
        _PAPER,
        equal_blocks=True,
        hosted=True,
    ),
)
