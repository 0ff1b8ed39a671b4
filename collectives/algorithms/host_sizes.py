"""What algorithms for hosts of different sizes share. Ranks of a host are neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from superpod.collectives.algorithms.hierarchical import hosts as default
from superpod.collectives.schedule import IntArray
from superpod.interconnect.errors import InvalidValue


def even(n: int) -> tuple[int, ...]:
    """The cards of each host where nobody has said it: hosts of one size, those of hierarchical.py."""
    size, count = default(n)
    return (size,) * count


class Hosts:
    """Hosts and their cards.

    Attributes:
        sizes: cards of each host; count: how many hosts; first: the first rank of each, and n.
        most: cards of the largest.
    """

    def __init__(self, n: int, sizes: Sequence[int] | None) -> None:
        """Raises InvalidValue for sizes that are not n cards together."""
        self.sizes = tuple(sizes) if sizes else even(n)
        if min(self.sizes) < 1 or sum(self.sizes) != n:
            raise InvalidValue(f"hosts={self.sizes} must have world_size={n} cards together, each at least one")
        self.count, self.most = len(self.sizes), max(self.sizes)
        self.first: IntArray = np.array([0, *accumulate(self.sizes)])

    def owner(self, host: int, share: IntArray, of: int) -> IntArray:
        """Whose a share of `of` shares is on a host; in order, and as evenly as can be."""
        return np.asarray(self.first[host] + share * self.sizes[host] // of)

    def pairs(self, host: int) -> tuple[IntArray, IntArray]:
        """Every card of a host with every other, by distance, numbered within the host."""
        k = self.sizes[host]
        card = np.tile(np.arange(k), k - 1)
        return card, (card + np.repeat(np.arange(1, k), k)) % k
