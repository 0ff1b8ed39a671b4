"""Which core a card runs on.

Cards that meet in shared memory wait for one another all the time. Left to itself the kernel moves them from core to
core as they wake, and their arrays stay behind in the other core's cache: 8 cards on 2 cores take half as long again
for a small all-reduce, 64 cards for a large one (benchmarks/LOG.md). Bound, neighbours are on different cores.

A program that a card forks may run anywhere, as if there were no binding: it is for the card's own waiting.
"""

from __future__ import annotations

import os

from superpod.interconnect.cores import bind
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import InvalidValue

POLICIES = ("auto", "core", "none")


def bind_card(policy: str) -> None:
    """Bind this process, a card whose environment says which, as `policy` has it.

    auto: where all cards are on this host, meet in memory, and every core gets as many of them; core: always; none:
    never.
    """
    try:
        place, link = Place.read(), Settings.read().link
    except InvalidValue:
        return  # the card will say so, if it uses superpod
    in_memory = place.local_world_size == place.world_size and link != "zmq"
    core = core_for(policy, place.local_rank, place.local_world_size, in_memory=in_memory)
    if core is not None:
        bind(core)


def core_for(policy: str, card: int, cards: int, *, in_memory: bool) -> int | None:
    """The core for the card of this number on a host, of so many; None: any."""
    cores = sorted(os.sched_getaffinity(0))
    if policy == "none" or len(cores) == 1:
        return None
    if policy == "auto" and not (in_memory and cards % len(cores) == 0):
        return None
    return cores[card % len(cores)]
