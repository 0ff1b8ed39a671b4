"""Which algorithm for a group on several hosts, where what goes between them is dear and what stays within is cheap.

Thresholds were measured with 2 hosts of 4 cards and 4 of 8, in network namespaces on 2 cores (benchmarks/LOG.md).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from superpod.collectives import algorithms

if TYPE_CHECKING:
    from superpod.collectives.hosts import Layout

MAX = sys.maxsize
_K = 1 << 10


class Rule(NamedTuple):
    """For arrays of up to `nbytes`."""

    nbytes: int
    algorithm: str


BETWEEN_HOSTS: Mapping[str, tuple[Rule, ...]] = {
    "all_reduce": (Rule(4096 * _K, "leaders"), Rule(MAX, "rails")),
    "broadcast": (Rule(MAX, "leaders"),),
    "reduce": (Rule(MAX, "leaders"),),
    "all_gather": (Rule(MAX, "rails"),),
    "reduce_scatter": (Rule(MAX, "rails"),),
    "all_to_all": (Rule(1024 * _K, "rails"), Rule(MAX, "direct")),
    "barrier": (Rule(MAX, "leaders"),),
}


def between_hosts(collective: str, nbytes: int, layout: Layout, *, equal_blocks: bool) -> Rule | None:
    """The rule that fits; None where those for one host do: where each host has one card, or all are on one."""
    if layout.count == 1 or max(layout.sizes) == 1:
        return None
    for rule in BETWEEN_HOSTS.get(collective, ()):
        known = algorithms.get(collective, rule.algorithm)
        fits = (equal_blocks or not known.equal_blocks) and nbytes <= rule.nbytes
        if fits and (layout.can(collective, rule.algorithm) or not known.hosted):
            return rule
    return None
