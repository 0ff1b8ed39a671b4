"""What the registry knows of an algorithm, and the arithmetic that steps and bytes are stated in.

S is the whole array as nccl-tests counts it: for all_gather the gathered one, for reduce_scatter the whole input, for
gather and scatter the root's whole array, for all_to_all a rank's whole input, for barrier one byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from superpod.collectives.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way to do a collective.

    Attributes:
        collective, name: what it is chosen by.
        build: n → Schedule, or (n, root) → Schedule for a rooted collective; for every n ≥ 1.
        steps: n → its exact number of steps.
        sent: n → the most that any one rank sends, as a multiple of S.
        source: the paper; its full title stands in the algorithm's file.
        equal_blocks: it only works when all blocks have one size.
    """

    collective: str
    name: str
    build: Callable[..., Schedule]
    steps: Callable[[int], int]
    sent: Callable[[int], Fraction | int]
    source: str
    equal_blocks: bool = False


def ceil_log2(n: int) -> int:
    """Steps until everyone can have heard of everyone, when each step doubles who has."""
    return (n - 1).bit_length()


def floor_log2(n: int) -> int:
    """k for the largest power of two 2^k ≤ n."""
    return n.bit_length() - 1


def any_other(n: int) -> int:
    """1 when there is another rank to talk to, else 0."""
    return min(1, n - 1)


def others(n: int) -> Fraction:
    """(n−1)/n: the other ranks' share of an array."""
    return Fraction(n - 1, n)
