"""Leaders: one card a host speaks for all of its host; few messages, and few one after the other between hosts.

With hosts of k cards, m of them, L = ceil(log2 m), p = 2^l the largest power of two ≤ m, F = 1 if p < m, else 0:
all_reduce  2 steps within if k > 1, l + 2F across; leaders send (k − 1 + l + F)·S at the most; the hosts together send
            (p·l + 2(m − p))·S
broadcast   L steps across, 1 within if k > 1: the root sends (L + k − 1)·S     reduce  the same backwards: S a rank
barrier     all_reduce's steps without data
Across, leaders form a hypercube where all need the result, else a binomial tree. The first card of a host is its
leader, but for the root, which is its own.

Source: Thakur, Rabenseifner & Gropp, IJHPCA 19 (2005), for hypercube and tree; Karonis et al., Exploiting hierarchy in
parallel computer networks to optimize collective operation performance, IPDPS (2000), for leaders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from superpod.collectives.algorithms import tree
from superpod.collectives.algorithms.algorithm import Algorithm, any_other, ceil_log2, floor_log2
from superpod.collectives.algorithms.halving_doubling import recursive_doubling
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
        leader_of = np.repeat(self.leaders, by.sizes)
        host = slice(int(by.first[self.host_of_root]), int(by.first[self.host_of_root + 1]))
        everyone = np.arange(n)
        everyone[host] = np.roll(everyone[host], host.start - root)  # from the root on, as the others from their leader
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
    """Within, to the leaders; across, by recursive doubling; within, from the leaders."""
    by = _Leaders(n, hosts)
    between = recursive_doubling(by.count)
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


def _most(n: int) -> int:
    return even(n)[0] - 1 + ceil_log2(len(even(n)))


def _both_ways(n: int) -> int:
    m = len(even(n))
    return 2 * any_other(even(n)[0]) + floor_log2(m) + 2 * (m > 1 << floor_log2(m))


def _one_way(n: int) -> int:
    return any_other(even(n)[0]) + ceil_log2(len(even(n)))


_PAPER = "Karonis et al., IPDPS (2000)"
ALGORITHMS = (
    Algorithm("all_reduce", "leaders", all_reduce, _both_ways, _most, _PAPER, hosted=True),
    Algorithm("broadcast", "leaders", broadcast, _one_way, _most, _PAPER, hosted=True),
    Algorithm("reduce", "leaders", reduce, _one_way, any_other, _PAPER, hosted=True),
    Algorithm("barrier", "leaders", barrier, _both_ways, _most, _PAPER, hosted=True),
)
