"""Leaders: one card a host speaks for all of its host; the fewest messages, and the fewest between hosts.

With hosts of k cards, m of them, L = ceil(log2 m), A = L for m > 2, else m − 1:
all_reduce  2 steps within if k > 1, 2A across (for m = 2: one, an exchange); leaders send (k − 1 + A)·S at the most;
            the hosts together send 2(m − 1)·S
broadcast   L steps across, 1 within if k > 1: the root sends (L + k − 1)·S     reduce  the same backwards: S a rank
barrier     all_reduce's steps without data
Across, leaders form a binomial tree. The first card of a host is its leader, but for the root, which is its own.

Source: Thakur, Rabenseifner & Gropp, IJHPCA 19 (2005), for the tree; Karonis et al., Exploiting hierarchy in parallel
computer networks to optimize collective operation performance, IPDPS (2000), for leaders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from superpod.collectives.algorithms import tree
from superpod.collectives.algorithms.algorithm import Algorithm, any_other, ceil_log2
from superpod.collectives.algorithms.host_sizes import Hosts, even
from superpod.collectives.schedule import Schedule, Step


class _Leaders:
    """Who leads whom."""

    def __init__(self, n: int, hosts: Sequence[int] | None, root: int = 0) -> None:
        by = Hosts(n, hosts)
        self.count = by.count
        self.host_of_root = int(np.searchsorted(by.first, root, side="right")) - 1
        self.leaders = by.first[:-1].copy()
        self.leaders[self.host_of_root] = root
        everyone, leader_of = np.arange(n), np.repeat(self.leaders, by.sizes)
        self.led, self.by = everyone[leader_of != everyone], leader_of[leader_of != everyone]
        self.within = int(len(self.led) > 0)

    def across(self, schedule: Schedule, index: int) -> Step:
        """A step of a schedule of hosts, as one of their leaders."""
        step = schedule.step(index)
        return replace(step, src=self.leaders[step.src], dst=self.leaders[step.dst])

    def gather(self) -> Step:
        return Step.of(self.led, self.by, 0, reduce=True)

    def spread(self) -> Step:
        return Step.of(self.by, self.led, 0)


def all_reduce(n: int, hosts: Sequence[int] | None = None) -> Schedule:
    """Within, to the leaders; across, in a tree of leaders or between two; within, from the leaders."""
    by = _Leaders(n, hosts)
    if by.count == 2:
        both = np.array([0, 1])
        between = Schedule("all_reduce", "exchange", 2, 1, 1, lambda _: Step.of(both, both[::-1], 0, reduce=True))
    else:
        between = tree.all_reduce(by.count)
    nsteps = between.nsteps + 2 * by.within

    def build(s: int) -> Step:
        if by.within and s in (0, nsteps - 1):
            return by.spread() if s else by.gather()
        return by.across(between, s - by.within)

    return Schedule("all_reduce", "leaders", n, 1, nsteps, build)


def barrier(n: int, hosts: Sequence[int] | None = None) -> Schedule:
    return replace(all_reduce(n, hosts), collective="barrier")


def broadcast(n: int, root: int, hosts: Sequence[int] | None = None) -> Schedule:
    """Across, from the root to the other leaders; within, from the leaders."""
    by = _Leaders(n, hosts, root)
    between = tree.broadcast(by.count, by.host_of_root)

    def build(s: int) -> Step:
        return by.across(between, s) if s < between.nsteps else by.spread()

    return Schedule("broadcast", "leaders", n, 1, between.nsteps + by.within, build, root=root)


def reduce(n: int, root: int, hosts: Sequence[int] | None = None) -> Schedule:
    """Within, to the leaders; across, from them to the root."""
    by = _Leaders(n, hosts, root)
    between = tree.reduce(by.count, by.host_of_root)

    def build(s: int) -> Step:
        return by.gather() if by.within and s == 0 else by.across(between, s - by.within)

    return Schedule("reduce", "leaders", n, 1, between.nsteps + by.within, build, root=root)


def _across(n: int) -> int:
    m = len(even(n))
    return ceil_log2(m) if m > 2 else m - 1


def _most(n: int) -> int:
    return even(n)[0] - 1 + _across(n)


def _both_ways(n: int) -> int:
    return 2 * any_other(even(n)[0]) + (1 if len(even(n)) == 2 else 2 * _across(n))


def _one_way(n: int) -> int:
    return any_other(even(n)[0]) + ceil_log2(len(even(n)))


_PAPER = "Karonis et al., IPDPS (2000)"
ALGORITHMS = (
    Algorithm("all_reduce", "leaders", all_reduce, _both_ways, _most, _PAPER, hosted=True),
    Algorithm("broadcast", "leaders", broadcast, _one_way, _most, _PAPER, hosted=True),
    Algorithm("reduce", "leaders", reduce, _one_way, any_other, _PAPER, hosted=True),
    Algorithm("barrier", "leaders", barrier, _both_ways, _most, _PAPER, hosted=True),
)
