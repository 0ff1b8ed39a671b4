"""Which core a card runs on.

Cards that meet in shared memory wait for one another all the time. Left to itself the kernel moves them from core to
core as they wake, and their arrays stay behind in the other core's cache: 8 cards on 2 cores take half as long again
for a small all-reduce, 64 cards for a large one (benchmarks/LOG.md). Bound, neighbours are on different cores.

A program that a card forks may run anywhere, as if there were no binding: it is for the card's own waiting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from functools import partial

POLICIES = ("auto", "core", "none")


def core_for(policy: str, card: int, cards: int, *, meets_in_memory: bool) -> int | None:
    """The core for a card; None: any.

    Args:
        policy: auto: bound where all cards are on this host, meet in memory, and every core gets as many of them;
            core: bound in any case; none: never.
        card: the card's number on this host, of so many `cards`.
        meets_in_memory: whether the job's cards are all here and have no thread beside them that carries messages.
    """
    cores = sorted(os.sched_getaffinity(0))
    if policy == "none" or len(cores) == 1:
        return None
    if policy == "auto" and not (meets_in_memory and cards % len(cores) == 0):
        return None
    return cores[card % len(cores)]


def bind(core: int) -> None:
    """This process runs on `core` from now on; what it forks does not. A core that is gone by now binds nobody."""
    with contextlib.suppress(OSError):
        before: Collection[int] = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        os.register_at_fork(after_in_child=partial(_free, before))


def _free(cores: Collection[int]) -> None:
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores)
