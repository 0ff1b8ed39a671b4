"""What the registry knows of an algorithm, and the arithmetic that steps and bytes are stated in.

S is the whole array as nccl-tests counts it: for all_gather the gathered one, for reduce_scatter the whole input, for
gather and scatter the root's whole array, for all_to_all a rank's whole input, for barrier one byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt, prod

from superpod.collectives.schedule import Schedule
from superpod.interconnect.errors import InvalidValue


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
        shaped: `build` also takes shape=(k0, k1, ...) with k0·k1·… = n: rank r has coordinate r mod k0 in the first
            dimension, (r // k0) mod k1 in the second and so on. Without it the algorithm chooses one by itself.
        hosted: `build` also takes hosts=(k0, k1, ...), the cards of each host: their sum is n, and the ranks of a host
            are neighbours. Without it hosts have one size, of the algorithm's choice.
        fixed_order: contributions are added up one by one from rank 0's to rank n − 1's, so its results have the same
            bits as those of all others of which this is true. Says nothing where nothing is added.
    """

    collective: str
    name: str
    build: Callable[..., Schedule]
    steps: Callable[[int], int]
    sent: Callable[[int], Fraction | int]
    source: str
    equal_blocks: bool = False
    shaped: bool = False
    fixed_order: bool = False
    hosted: bool = False


def ceil_log2(n: int) -> int:
    """Steps until everyone can have heard of everyone, when each step doubles who has."""
    return (n - 1).bit_length()


def floor_log2(n: int) -> int:
    """k for the largest power of two 2^k ≤ n."""
    return n.bit_length() - 1


def grid(n: int) -> tuple[int, ...]:
    """n as the product of two numbers that are as close as can be, the smaller one first; (n,) where that is 1."""
    a = next(a for a in range(isqrt(n), 0, -1) if n % a == 0)
    return (a, n // a) if a > 1 else (n,)


def checked_shape(n: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` without its dimensions of one. Raises InvalidValue when its product is not n."""
    if min(shape, default=1) < 1 or prod(shape) != n:
        raise InvalidValue(f"shape={shape} must have the product world_size={n}, such as {grid(n)}")
    return tuple(k for k in shape if k > 1)


def any_other(n: int) -> int:
    """1 when there is another rank to talk to, else 0."""
    return min(1, n - 1)


def others(n: int) -> Fraction:
    """(n−1)/n: the other ranks' share of an array."""
    return Fraction(n - 1, n)
