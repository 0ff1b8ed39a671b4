"""Which algorithm for which call: what the user asked for, else a table of what is fastest where it was measured.

The table is for ZeroMQ on a host with few cores, where work counts and not steps: a message costs 40 to 100 µs of
processor time, the more the oftener a process must be woken up for it, and all ranks together move about 3.5 GB/s. Most
all_reduce algorithms move the same 2(n−1)·S in all; a star in the fewest wake-ups, a binomial tree in as few messages.
Its thresholds were measured on 2 cores with 2 to 64 ranks (benchmarks/LOG.md).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from superpod.collectives import algorithms
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import parse_size, size_text

MAX = sys.maxsize
"""No limit, in ranks or bytes."""

_KEPT = 4096  # choices remembered; a program with more sizes than that starts anew


class Rule(NamedTuple):
    """A line of the table: for worlds of up to `ranks` and arrays of up to `nbytes`."""

    ranks: int
    nbytes: int
    algorithm: str


_K, _M = 1 << 10, 1 << 20
TABLE: Mapping[str, tuple[Rule, ...]] = {  # the first rule that fits counts; the last one fits everything
    "all_reduce": (
        Rule(2, 512 * _K, "recursive_doubling"),
        Rule(2, MAX, "two_shot"),
        Rule(64, 512 * _K, "star"),
        Rule(4, MAX, "circulant"),
        Rule(MAX, 8 * _M, "tree"),
        Rule(MAX, MAX, "circulant"),
    ),
    "broadcast": (Rule(4, 64 * _K, "direct"), Rule(MAX, MAX, "tree")),
    "reduce": (Rule(4, 64 * _K, "direct"), Rule(MAX, MAX, "tree")),
    "all_gather": (Rule(2, MAX, "direct"), Rule(MAX, 1 * _M, "bruck"), Rule(MAX, MAX, "ring")),
    "reduce_scatter": (Rule(2, MAX, "direct"), Rule(MAX, MAX, "circulant")),
    "all_to_all": (
        Rule(4, MAX, "pairwise"),
        Rule(16, 256 * _K, "bruck"),
        Rule(16, MAX, "pairwise"),
        Rule(MAX, 1 * _M, "bruck"),
        Rule(MAX, MAX, "direct"),
    ),
    "gather": (Rule(8, MAX, "direct"), Rule(MAX, 64 * _K, "tree"), Rule(MAX, MAX, "direct")),
    "scatter": (Rule(8, MAX, "direct"), Rule(MAX, 64 * _K, "tree"), Rule(MAX, MAX, "direct")),
    "barrier": (Rule(2, MAX, "dissemination"), Rule(MAX, MAX, "tree")),
}


BOARD: Mapping[str, tuple[Rule, ...]] = {  # where all cards meet on a board; for larger worlds TABLE goes on
    "all_reduce": (Rule(2, 128 * _K, "one_shot"), Rule(256, 64 * _K, "one_shot"), Rule(64, MAX, "two_shot")),
    "broadcast": (Rule(256, MAX, "direct"),),
    "reduce": (Rule(64, MAX, "direct"),),
    "all_gather": (Rule(256, MAX, "direct"),),
    "reduce_scatter": (Rule(64, MAX, "direct"),),
    "all_to_all": (Rule(64, MAX, "direct"),),
    "barrier": (Rule(256, MAX, "dissemination"),),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """An algorithm and why it was chosen, in words."""

    algorithm: str
    reason: str


def parse_override(collective: str, text: str) -> list[tuple[int, int, str]]:
    """What a user asked for: (low, high, name) by size, both ends included [B], in ascending order.

    The syntax is oneCCL's: "tree:0-64K;ring:65537-max"; a name without a range means all sizes. Sizes that no range
    covers are left to the table. Raises InvalidValue for unknown names, ranges that overlap, and anything else.
    """
    ranges = []
    for entry in text.split(";"):
        name, colon, sizes = (part.strip() for part in entry.partition(":"))
        algorithms.get(collective, name)
        low, high = _range(entry, sizes) if colon else (0, MAX)
        ranges.append((low, high, name))
    ranges.sort()
    for (_, high, a), (low, _, b) in pairwise(ranges):
        if low <= high:
            raise InvalidValue(f"{a} and {b} both cover size {low}; ranges include both their ends")
    return ranges


def _range(entry: str, sizes: str) -> tuple[int, int]:
    low_text, dash, high_text = (part.strip() for part in sizes.partition("-"))
    if not dash:
        raise InvalidValue(f"{entry.strip()!r} must be name or name:low-high, such as tree:0-64K or ring:65537-max")
    low, high = parse_size(low_text), MAX if high_text.lower() == "max" else parse_size(high_text)
    if low > high:
        raise InvalidValue(f"{entry.strip()!r}: low={low} must not be above high={high}")
    return low, high


class Selector:
    """Chooses algorithms; the same on every rank that has the same overrides."""

    def __init__(self, overrides: Mapping[str, str], *, board: bool = False) -> None:
        """Raises InvalidValue naming the variable that a wrong override came from.

        Args:
            overrides: collective → text for `parse_override`.
            board: the cards are on one host and meet on boards.
        """
        self._tables = {name: (*BOARD.get(name, ()), *rules) if board else rules for name, rules in TABLE.items()}
        self._overrides: dict[str, list[tuple[int, int, str]]] = {}
        self._kept: dict[tuple[str, int, int, bool], Choice] = {}
        for collective, text in overrides.items():
            try:
                self._overrides[collective] = parse_override(collective, text)
            except InvalidValue as error:
                raise InvalidValue(f"{_variable(collective)}={text!r}: {error}") from error

    def choose(self, collective: str, nbytes: int, world_size: int, *, equal_blocks: bool = True) -> Choice:
        """The algorithm for arrays of S = `nbytes` (see algorithms/algorithm.py) on `world_size` ranks.

        Args:
            equal_blocks: whether all blocks have one size; if not, algorithms that need it are passed over.
        Raises:
            InvalidValue: there is no such collective.
        """
        key = (collective, nbytes, world_size, equal_blocks)
        choice = self._kept.get(key)
        if choice is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            choice = self._kept[key] = self._choose(*key)
        return choice

    def _choose(self, collective: str, nbytes: int, world_size: int, equal_blocks: bool) -> Choice:
        algorithms.names(collective)  # raises if there is no such collective
        note = ""
        for low, high, name in self._overrides.get(collective, ()):
            if low <= nbytes <= high:
                if equal_blocks or not algorithms.get(collective, name).equal_blocks:
                    return Choice(name, f"{_variable(collective)} says so for {_span(low, high)}")
                note = f"; {_variable(collective)} says {name}, which needs equal blocks"
        rule = next(
            rule
            for rule in self._tables[collective]
            if nbytes <= rule.nbytes
            and world_size <= rule.ranks
            and (equal_blocks or not algorithms.get(collective, rule.algorithm).equal_blocks)
        )
        ranks = "any world" if rule.ranks == MAX else f"up to {rule.ranks} ranks"
        return Choice(rule.algorithm, f"built-in table, {ranks}, {_span(0, rule.nbytes)}{note}")


def _variable(collective: str) -> str:
    return f"SUPERPOD_{collective.upper()}"


def _span(low: int, high: int) -> str:
    if high < MAX:
        return f"up to {size_text(high)}" if low == 0 else f"{size_text(low)} to {size_text(high)}"
    return "any size" if low == 0 else f"{size_text(low)} and more"
