"""What algorithms for hosts of different sizes share. Ranks of a host are neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

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


class Runs(NamedTuple):
    """What a host sends to the cards of others: for each of these, shape (n − k,), all that the host has for it.

    Attributes:
        to: the card; speaker: the one of the host that sends it.
        slot: where the k blocks lie at the speaker, in the order of the host's ranks.
    """

    to: IntArray
    speaker: IntArray
    slot: IntArray


def runs(by: Hosts, host: int) -> Runs:
    """The runs of a speaker lie one after the other from bank 2 on, in the order of `to`; each within a bank.

    A host of one card sends out of its input.
    """
    n, k, first = int(by.first[-1]), by.sizes[host], int(by.first[host])
    to = np.concatenate([np.arange(first), np.arange(first + k, n)])
    home = np.searchsorted(by.first, to, side="right") - 1
    speaker = first + (to - by.first[home]) * k // np.array(by.sizes)[home]
    if k == 1:
        return Runs(to, speaker, to)
    order = np.argsort(speaker, kind="stable")
    number = np.empty_like(to)  # among those of its speaker
    number[order] = np.arange(len(to)) - np.searchsorted(speaker[order], speaker[order])
    a_bank = n // k
    return Runs(to, speaker, 2 * n + number // a_bank * n + number % a_bank * k)
