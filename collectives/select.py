"""Which algorithm for which call: what the user asked for, else a table of what is fastest where it was measured.

TABLE is for messages on a host with few cores, where work counts and not steps: a call that exchanges small ones costs
a card 40 µs of processor time, and 200 µs where 64 cards take turns. Most all_reduce algorithms move the same 2(n−1)·S
in all; a star in the fewest wake-ups, a binomial tree in as few messages. BOARD is for cards of one host, in shared
memory. The thresholds were measured on 2 cores with 2 to 64 ranks (benchmarks/LOG.md); beyond that they are guesses.

Where every card has a core of its own, ranks work at once and steps count: OWN_CORES and OWN_CORES_BOARD replace what
that changes. Up to 2 ranks they are measured, beyond that modelled: messages by superpod-sim on this-host.toml without
`cores`, which makes every card a machine of its own; boards by arithmetic, a second meeting of 8 µs against n − 2 more
arrays to read at 16 GB/s. superpod-run counts the cores, once for all cards; what is started otherwise gets TABLE.

Before all of these come a tuned table (tuning.py), and before that what the user asks for.

With SUPERPOD_DETERMINISTIC=1 only algorithms that add up in the order of the ranks are chosen: then results have the
same bits whatever the size, the link and the algorithm.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from superpod.collectives import algorithms
from superpod.collectives.algorithms import Algorithm
from superpod.collectives.hosts import Layout
from superpod.collectives.schedule import REDUCING
from superpod.collectives.select_hosts import between_hosts
from superpod.collectives.selection import Selection
from superpod.collectives.tuning import Tuning
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


_FEW = (Rule(2, 16 * _K, "one_shot"), Rule(4, 64 * _K, "one_shot"), Rule(8, 16 * _K, "one_shot"))
_MANY = (Rule(64, 4 * _K, "one_shot"), Rule(256, 512, "one_shot"))
_LONG = (Rule(256, MAX, "two_shot_ordered"),)
BOARD: Mapping[str, tuple[Rule, ...]] = {  # where all cards meet on a board; for larger worlds TABLE goes on
    "all_reduce": (*_FEW, *_MANY, *_LONG),
    "broadcast": (Rule(256, MAX, "direct"),),
    "reduce": (Rule(256, MAX, "star"),),
    "all_gather": (Rule(256, MAX, "direct"),),
    "reduce_scatter": (Rule(256, MAX, "direct_ordered"),),
    "all_to_all": (Rule(256, MAX, "direct"),),
    "gather": (Rule(256, MAX, "direct"),),
    "scatter": (Rule(256, MAX, "direct"),),
    "barrier": (Rule(256, MAX, "dissemination"),),
}


OWN_CORES: Mapping[str, tuple[Rule, ...]] = {  # in place of TABLE's, where every card has a core of its own
    "all_reduce": (
        *(rule for rule in TABLE["all_reduce"] if rule.ranks == 2),
        Rule(16, 512 * _K, "recursive_doubling"),
        Rule(MAX, 256 * _K, "recursive_doubling"),
        Rule(MAX, MAX, "halving_doubling"),
    ),
    "all_gather": (Rule(2, MAX, "direct"), Rule(MAX, 32 * _M, "bruck"), Rule(MAX, MAX, "ring")),
    "scatter": (Rule(2, MAX, "direct"), Rule(MAX, 32 * _M, "tree"), Rule(MAX, MAX, "direct")),
    "barrier": (Rule(MAX, MAX, "dissemination"),),
}
_EACH = (
    Rule(8, 32 * _K, "one_shot"),
    Rule(16, 8 * _K, "one_shot"),
    Rule(64, 2 * _K, "one_shot"),
    Rule(256, 512, "one_shot"),
)
OWN_CORES_BOARD: Mapping[str, tuple[Rule, ...]] = {  # in place of BOARD's
    "all_reduce": (*_FEW, *_EACH, Rule(2, MAX, "two_shot_ordered"), Rule(256, MAX, "two_shot")),
}


ORDERED: Mapping[str, tuple[Rule, ...]] = {  # in place of TABLE's, if only algorithms with the fixed order will do
    "all_reduce": (
        Rule(2, 512 * _K, "one_shot"),
        Rule(2, MAX, "two_shot_ordered"),
        Rule(8, 1 * _M, "star"),
        Rule(8, MAX, "two_shot_ordered"),
        Rule(64, 8 * _M, "star"),
        Rule(64, MAX, "two_shot_ordered"),
        Rule(MAX, MAX, "star"),
    ),
    "reduce": (Rule(MAX, MAX, "star"),),
    "reduce_scatter": (
        Rule(2, MAX, "direct_ordered"),
        Rule(8, 1 * _M, "star"),
        Rule(8, MAX, "direct_ordered"),
        Rule(64, 8 * _M, "star"),
        Rule(64, MAX, "direct_ordered"),
        Rule(MAX, MAX, "star"),
    ),
}
ORDERED_BOARD: Mapping[str, tuple[Rule, ...]] = {  # in place of BOARD's
    "all_reduce": (*_FEW, *_MANY, *_LONG),
    "reduce": (Rule(256, MAX, "star"),),
    "reduce_scatter": (Rule(256, MAX, "direct_ordered"),),
}
OWN_CORES_ORDERED_BOARD: Mapping[str, tuple[Rule, ...]] = {  # in place of ORDERED_BOARD's
    "all_reduce": (*_FEW, *_EACH, *_LONG),
}
_SETTING = "SUPERPOD_DETERMINISTIC"


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
    """Chooses algorithms; the same on every rank that has the same overrides and the same selection."""

    def __init__(
        self,
        overrides: Mapping[str, str],
        *,
        board: bool = False,
        deterministic: bool = False,
        link: str = "",
        selection: Selection = Selection(),  # noqa: B008  # frozen
    ) -> None:
        """Raises InvalidValue naming the variable that a wrong override came from, or the line of a tuned table.

        Args:
            overrides: collective → text for `parse_override`.
            board: the cards are on one host and meet on boards.
            deterministic: only algorithms with the fixed order.
            link: the one whose tuned rules count; "" for none.
            selection: what all cards of the job are told.
        """
        self._deterministic, self._link, self._tuning = deterministic, link, selection.tuning
        self._tables = tables(board=board, deterministic=deterministic, own_cores=selection.own_cores)
        self._between = tables(board=False, deterministic=deterministic, own_cores=False)
        if self._tuning is not None:
            check_names(self._tuning)
        self._overrides: dict[str, list[tuple[int, int, str]]] = {}
        self._kept: dict[tuple[str, int, int, bool, Layout | None], Choice] = {}
        for collective, text in overrides.items():
            try:
                ranges = self._overrides[collective] = parse_override(collective, text)
                for _, _, name in ranges:
                    self.admit(collective, name)
            except InvalidValue as error:
                raise InvalidValue(f"{_variable(collective)}={text!r}: {error}") from error

    def admit(self, collective: str, name: str) -> Algorithm:
        """An algorithm that is asked for by name. Raises InvalidValue if it has not the fixed order that is wanted."""
        able = algorithms.in_fixed_order(collective)
        if self._deterministic and name not in able:
            raise InvalidValue(
                f"algorithm={name!r} does not add up in the order of the ranks, as {_SETTING}=1 wants it of "
                f"{collective}; {', '.join(able)} do, or unset {_SETTING}"
            )
        return algorithms.get(collective, name)

    def choose(
        self,
        collective: str,
        nbytes: int,
        world_size: int,
        *,
        equal_blocks: bool = True,
        layout: Layout | None = None,
    ) -> Choice:
        """The algorithm for arrays of S = `nbytes` (see algorithms/algorithm.py) on `world_size` ranks.

        Args:
            equal_blocks: whether all blocks have one size; if not, algorithms that need it are passed over.
            layout: which ranks share a host; None: all do.
        Raises:
            InvalidValue: there is no such collective.
        """
        key = (collective, nbytes, world_size, equal_blocks, layout)
        choice = self._kept.get(key)
        if choice is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            choice = self._kept[key] = self._choose(*key)
        return choice

    def _choose(
        self, collective: str, nbytes: int, world_size: int, equal_blocks: bool, layout: Layout | None
    ) -> Choice:
        algorithms.names(collective)  # raises if there is no such collective
        fixed_order = self._deterministic and collective in REDUCING
        note = f"; {_SETTING}=1" if fixed_order else ""
        for low, high, name in self._overrides.get(collective, ()):
            if low <= nbytes <= high:
                if equal_blocks or not algorithms.get(collective, name).equal_blocks:
                    return Choice(name, f"{_variable(collective)} says so for {_span(low, high)}{note}")
                note += f"; {_variable(collective)} says {name}, which needs equal blocks"
        within = layout is None or layout.count == 1
        if within and equal_blocks and (tuned := self._tuned(collective, nbytes, world_size, fixed_order)):
            return Choice(tuned.algorithm, tuned.reason + note)
        if layout is not None and not within and not fixed_order:
            known = between_hosts(collective, nbytes, layout, equal_blocks=equal_blocks)
            if known is not None:
                return Choice(known.algorithm, f"built-in table for {layout}, {_span(0, known.nbytes)}{note}")
        rule = next(
            rule
            for rule in (self._tables if within else self._between)[collective]
            if nbytes <= rule.nbytes
            and world_size <= rule.ranks
            and (equal_blocks or not algorithms.get(collective, rule.algorithm).equal_blocks)
        )
        ranks = "any world" if rule.ranks == MAX else f"up to {rule.ranks} ranks"
        return Choice(rule.algorithm, f"built-in table, {ranks}, {_span(0, rule.nbytes)}{note}")

    def _tuned(self, collective: str, nbytes: int, world_size: int, fixed_order: bool) -> Choice | None:
        """What was measured on this machine, with equal blocks; None beyond it."""
        table = self._tuning
        if table is None:
            return None
        rule = table.find((self._link, collective, fixed_order), nbytes, world_size)
        if rule is None:
            return None
        place = f"{table.file}:{rule.line}" if rule.line else table.file
        return Choice(rule.algorithm, f"tuned, up to {rule.ranks} ranks, {_span(0, rule.nbytes)} ({place})")


def tables(*, board: bool, deterministic: bool, own_cores: bool) -> dict[str, tuple[Rule, ...]]:
    """Each collective's built-in rules; the arguments are the Selector's."""
    found, boards = dict(TABLE), dict(BOARD)
    if own_cores:
        found |= OWN_CORES
        boards |= OWN_CORES_BOARD
    if deterministic:
        found |= ORDERED
        boards |= {**ORDERED_BOARD, **(OWN_CORES_ORDERED_BOARD if own_cores else {})}
    return {name: (*boards.get(name, ()), *rules) if board else rules for name, rules in found.items()}


def check_names(tuning: Tuning) -> None:
    """Raises InvalidValue for a rule that names no algorithm, or one that has not the order it should have."""
    for (_, collective, fixed_order), rules in tuning.rules.items():
        able = algorithms.in_fixed_order(collective) if fixed_order else algorithms.names(collective)
        for rule in rules:
            if rule.algorithm not in able:
                raise InvalidValue(
                    f"{tuning.file}, line {rule.line}: algorithm={rule.algorithm!r} must be one of {', '.join(able)}; "
                    "make the table anew with superpod-bench tune, or set SUPERPOD_TUNING=off"
                )


def _variable(collective: str) -> str:
    return f"SUPERPOD_{collective.upper()}"


def _span(low: int, high: int) -> str:
    if high < MAX:
        return f"up to {size_text(high)}" if low == 0 else f"{size_text(low)} to {size_text(high)}"
    return "any size" if low == 0 else f"{size_text(low)} and more"
