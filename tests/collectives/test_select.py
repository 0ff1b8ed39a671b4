"""Selection: what the user asked for, else the table; every choice says why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpod.collectives import algorithms
from superpod.collectives.hosts import Layout
from superpod.collectives.schedule import REDUCING
from superpod.collectives.select import (
    MAX,
    ORDERED,
    ORDERED_BOARD,
    OWN_CORES,
    TABLE,
    Choice,
    Rule,
    Selector,
    parse_override,
    tables,
)
from superpod.collectives.selection import Selection
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue


class TestParse:
    def test_ranges(self) -> None:
        text = " ring : 65537-max ; tree:0-64K;"[:-1]
        assert parse_override("all_reduce", text) == [(0, 65536, "tree"), (65537, MAX, "ring")]

    def test_a_bare_name_means_all_sizes(self) -> None:
        assert parse_override("all_reduce", "ring") == [(0, MAX, "ring")]

    def test_gaps_are_allowed(self) -> None:
        assert parse_override("all_gather", "ring:1M-1.5M;bruck:0-5") == [
            (0, 5, "bruck"),
            (1 << 20, 3 << 19, "ring"),
        ]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("tre:0-5", r"algorithm='tre' does not exist for all_reduce; there are ring, tree, .*two_shot"),
            ("bruck", r"algorithm='bruck' does not exist for all_reduce"),
            ("", "algorithm='' does not exist"),
            ("tree;", "algorithm='' does not exist"),
            (":0-5", "algorithm='' does not exist"),
            ("tree:", r"'tree:' must be name or name:low-high, such as tree:0-64K or ring:65537-max"),
            ("tree: 5", r"'tree: 5' must be name or name:low-high"),
            ("tree:a-b", "size 'a' must be a number"),
            ("tree:0-5:7", "size '5:7' must be a number"),
            ("tree:0--5", "size '-5' must be a number"),
            ("tree:max-max", "size 'max' must be a number"),
            ("tree:9-5", r"'tree:9-5': low=9 must not be above high=5"),
            ("tree:0-64K;ring:64K-max", "tree and ring both cover size 65536; ranges include both their ends"),
            ("ring:5-max;tree;", "algorithm=''"),
            ("ring:5-max;tree", "tree and ring both cover size 5"),
        ],
    )
    def test_anything_belowis_refused(self, text: str, message: str) -> None:
        with pytest.raises(InvalidValue, match=message):
            parse_override("all_reduce", text)

    def test_an_unknown_collective_is_refused(self) -> None:
        with pytest.raises(InvalidValue, match="collective='allreduce' must be one of"):
            parse_override("allreduce", "ring")


class TestOverrides:
    def test_both_ends_of_a_range_belong_to_it(self) -> None:
        selector = Selector({"all_reduce": "ring:1K-2K"})
        chosen = [selector.choose("all_reduce", size, 8).algorithm for size in (1023, 1024, 2048, 2049)]
        below, above = (Selector({}).choose("all_reduce", size, 8).algorithm for size in (1023, 2049))
        assert "ring" not in (below, above)
        assert chosen == [below, "ring", "ring", above]

    def test_the_reason_names_the_variable_and_the_range(self) -> None:
        selector = Selector({"all_reduce": "tree:0-4K;ring:1M-max", "broadcast": "direct"})
        reasons = [selector.choose("all_reduce", size, 8).reason for size in (1, 1 << 30)]
        assert reasons == [
            "SUPERPOD_ALL_REDUCE says so for up to 4 KiB",
            "SUPERPOD_ALL_REDUCE says so for 1 MiB and more",
        ]
        assert selector.choose("broadcast", 1, 8).reason == "SUPERPOD_BROADCAST says so for any size"

    def test_what_the_override_leaves_out_is_chosen_by_the_table(self) -> None:
        plain, selector = Selector({}), Selector({"all_reduce": "ring:1K-2K"})
        assert selector.choose("all_reduce", 5, 8) == plain.choose("all_reduce", 5, 8)
        assert selector.choose("barrier", 1, 8) == plain.choose("barrier", 1, 8)

    def test_an_error_names_the_variable(self) -> None:
        with pytest.raises(InvalidValue, match=r"^SUPERPOD_ALL_REDUCE='rong': algorithm='rong' .* there are ring,"):
            Selector({"all_reduce": "rong"})

    def test_one_that_needs_equal_blocks_gives_way_and_the_reason_says_so(self) -> None:
        selector = Selector({"all_to_all": "bruck"})
        assert selector.choose("all_to_all", 64, 8).algorithm == "bruck"
        choice = selector.choose("all_to_all", 64, 8, equal_blocks=False)
        assert choice.algorithm == "pairwise"
        assert choice.reason.endswith("; SUPERPOD_ALL_TO_ALL says bruck, which needs equal blocks")


class TestTable:
    def test_it_covers_the_collectives(self) -> None:
        assert set(TABLE) == set(COLLECTIVES)

    @pytest.mark.parametrize("collective", COLLECTIVES)
    def test_every_rule_names_an_algorithm_and_the_last_fits_everything(self, collective: str) -> None:
        chosen = [algorithms.get(collective, rule.algorithm) for rule in TABLE[collective]]
        assert TABLE[collective][-1][:2] == (MAX, MAX)
        assert not chosen[-1].equal_blocks

    @pytest.mark.parametrize("collective", COLLECTIVES)
    def test_every_rule_is_reached(self, collective: str) -> None:
        """At its own limits, or just above those of the rules before it."""
        selector = Selector({})
        sizes = {min(r.nbytes, MAX) for r in TABLE[collective]}
        worlds = {min(r.ranks, 10_000) for r in TABLE[collective]}
        reasons = {selector.choose(collective, size, n).reason for size in sizes for n in worlds}
        assert len(reasons) == len(TABLE[collective])

    @given(
        collective=st.sampled_from(COLLECTIVES),
        nbytes=st.integers(0, 1 << 45),
        n=st.integers(1, 20_000),
        equal=st.booleans(),
    )
    def test_there_is_always_a_choice_that_works(self, collective: str, nbytes: int, n: int, equal: bool) -> None:
        choice = Selector({}).choose(collective, nbytes, n, equal_blocks=equal)
        assert equal or not algorithms.get(collective, choice.algorithm).equal_blocks
        assert choice.reason.startswith("built-in table, ")

    def test_a_reason(self) -> None:
        rule = TABLE["all_reduce"][0]
        assert Selector({}).choose("all_reduce", rule.nbytes, 2) == Choice(
            rule.algorithm, "built-in table, up to 2 ranks, up to 512 KiB"
        )

    def test_an_unknown_collective_is_refused(self) -> None:
        with pytest.raises(InvalidValue, match="collective='allreduce' must be one of all_reduce"):
            Selector({}).choose("allreduce", 1, 2)


class TestFixedOrder:
    @pytest.mark.parametrize("rules", [ORDERED, ORDERED_BOARD], ids=["messages", "boards"])
    def test_every_rule_names_an_algorithm_that_has_it(self, rules: dict[str, tuple[Rule, ...]]) -> None:
        assert set(rules) == set(REDUCING)
        for collective, table in rules.items():
            assert {rule.algorithm for rule in table} <= set(algorithms.in_fixed_order(collective))

    @given(
        collective=st.sampled_from(COLLECTIVES),
        nbytes=st.integers(0, 1 << 45),
        n=st.integers(1, 20_000),
        equal=st.booleans(),
        board=st.booleans(),
    )
    def test_every_choice_has_it(self, collective: str, nbytes: int, n: int, equal: bool, board: bool) -> None:
        choice = Selector({}, board=board, deterministic=True).choose(collective, nbytes, n, equal_blocks=equal)
        assert choice.algorithm in algorithms.in_fixed_order(collective)
        assert choice.reason.endswith("; SUPERPOD_DETERMINISTIC=1") is (collective in REDUCING)

    @pytest.mark.parametrize("collective", REDUCING)
    def test_every_rule_is_reached(self, collective: str) -> None:
        selector = Selector({}, deterministic=True)
        sizes = {min(r.nbytes, MAX) for r in ORDERED[collective]}
        worlds = {min(r.ranks, 10_000) for r in ORDERED[collective]}
        reasons = {selector.choose(collective, size, n).reason for size in sizes for n in worlds}
        assert len(reasons) == len(ORDERED[collective])

    def test_the_last_rule_fits_everything(self) -> None:
        assert all(rules[-1][:2] == (MAX, MAX) for rules in ORDERED.values())

    def test_another_algorithm_is_refused_by_name(self) -> None:
        with pytest.raises(
            InvalidValue,
            match=r"^SUPERPOD_REDUCE='tree': algorithm='tree' does not add up in the order of the ranks, as "
            r"SUPERPOD_DETERMINISTIC=1 wants it of reduce; star do, or unset SUPERPOD_DETERMINISTIC$",
        ):
            Selector({"reduce": "tree"}, deterministic=True)
        Selector({"reduce": "star", "broadcast": "tree"}, deterministic=True)


class TestMemory:
    def test_a_choice_is_made_once(self) -> None:
        selector = Selector({})
        assert selector.choose("all_reduce", 77, 8) is selector.choose("all_reduce", 77, 8)

    def test_what_is_remembered_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("superpod.collectives.select._KEPT", 10)
        selector = Selector({"all_reduce": "ring:0-15"})
        chosen = [selector.choose("all_reduce", size, 8).algorithm for size in range(40)]
        assert chosen == ["ring"] * 16 + ["star"] * 24
        assert len(selector._kept) <= 10


class TestOwnCores:
    """Where every card has a core of its own."""

    @pytest.mark.parametrize("board", [False, True], ids=["messages", "boards"])
    @pytest.mark.parametrize("deterministic", [False, True], ids=["any order", "fixed order"])
    def test_every_table_names_algorithms_and_fits_everything(self, board: bool, deterministic: bool) -> None:
        found = tables(board=board, deterministic=deterministic, own_cores=True)
        assert set(found) == set(COLLECTIVES)
        for collective, rules in found.items():
            able = algorithms.in_fixed_order(collective) if deterministic else algorithms.names(collective)
            assert {rule.algorithm for rule in rules} <= set(able)
            assert rules[-1][:2] == (MAX, MAX)
            assert not algorithms.get(collective, rules[-1].algorithm).equal_blocks

    def test_every_rule_is_reached(self) -> None:
        selector = Selector({}, selection=Selection(own_cores=True))
        for collective, rules in OWN_CORES.items():
            sizes, worlds = {rule.nbytes for rule in rules}, {min(rule.ranks, 10_000) for rule in rules}
            reasons = {selector.choose(collective, size, n).reason for size in sizes for n in worlds}
            assert len(reasons) == len(rules)

    @pytest.mark.parametrize("board", [False, True], ids=["messages", "boards"])
    @pytest.mark.parametrize("collective", COLLECTIVES)
    def test_two_cards_have_them_on_two_cores_where_it_was_measured(self, collective: str, board: bool) -> None:
        own, shared = Selector({}, board=board, selection=Selection(own_cores=True)), Selector({}, board=board)
        for nbytes in (1, 1 << 10, 1 << 18, 1 << 22, 1 << 30):
            assert own.choose(collective, nbytes, 2).algorithm == shared.choose(collective, nbytes, 2).algorithm

    def test_steps_count_there(self) -> None:
        own = Selector({}, selection=Selection(own_cores=True))
        chosen = [one.choose("all_reduce", 4096, 64).algorithm for one in (own, Selector({}))]
        assert chosen == ["recursive_doubling", "star"]
        between = [one.choose("all_to_all", 64, 8, layout=Layout([0, 1] * 4)) for one in (own, Selector({}))]
        assert between[0] == between[1]
