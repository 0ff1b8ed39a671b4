"""Leaders for gather and scatter: a host's blocks go between hosts in one message.

With m hosts of k cards each:
gather   1 step within if k > 1, 1 across if m > 1: the leaders send k/n·S; n − k blocks come to the root's host in
         m − 1 messages, where direct gather needs n − k
scatter  the same backwards: the root sends (n−1)/n·S
The first card of a host is its leader, but for the root, which is its own.

Source: Karonis et al., Exploiting hierarchy in parallel computer networks to optimize collective operation performance,
IPDPS (2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, any_other, others
from superpod.collectives.algorithms.host_sizes import Hosts, even
from superpod.collectives.schedule import Schedule, Step


def _steps_of_gather(n: int, root: int, hosts: Sequence[int] | None) -> list[Step]:
    by = Hosts(n, hosts)
    home, everyone = int(np.searchsorted(by.first, root, side="right")) - 1, np.arange(n)
    leaders = by.first[:-1].copy()
    leaders[home] = root
    leader_of = np.repeat(leaders, by.sizes)
    led, away = everyone[leader_of != everyone], np.arange(by.count) != home
    within = Step.of(led, leader_of[led], led)
    across = Step.of(leaders[away], root, by.first[:-1][away], np.array(by.sizes)[away])
    return [step for step in (within, across) if len(step)]


def gather(n: int, root: int, hosts: Sequence[int] | None = None) -> Schedule:
    """Within, to the leaders; across, from them to the root. Blocks stay at their places."""
    steps = _steps_of_gather(n, root, hosts)
    return Schedule("gather", "leaders", n, n, len(steps), steps.__getitem__, root=root)


def scatter(n: int, root: int, hosts: Sequence[int] | None = None) -> Schedule:
    """Across, from the root to the other leaders; within, from the leaders."""
    steps = [Step.of(s.dst, s.src, s.first, s.count) for s in reversed(_steps_of_gather(n, root, hosts))]
    return Schedule("scatter", "leaders", n, n, len(steps), steps.__getitem__, root=root)


def _steps(n: int) -> int:
    return any_other(even(n)[0]) + any_other(len(even(n)))


def _sent(n: int) -> Fraction:
    return Fraction(even(n)[0] if len(even(n)) > 1 else any_other(n), n)


_PAPER = "Karonis et al., IPDPS (2000)"
ALGORITHMS = (
    Algorithm("gather", "leaders", gather, _steps, _sent, _PAPER, hosted=True),
    Algorithm("scatter", "leaders", scatter, _steps, others, _PAPER, hosted=True),
)
