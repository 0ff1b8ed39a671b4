"""Every algorithm: proved right, as many steps and bytes as it says, and the same bits on every rank."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpod.collectives import algorithms, spec
from superpod.collectives.algorithms import Algorithm
from superpod.collectives.schedule import ROOTED, Schedule, Step
from superpod.collectives.spec import NOTHING
from superpod.collectives.verify import verify
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue

ALL = [algorithms.get(collective, name) for collective in COLLECTIVES for name in algorithms.names(collective)]
ALL_REDUCE = algorithms.names("all_reduce")
SIZES = [*range(1, 18), 64]

every_algorithm = pytest.mark.parametrize("algorithm", ALL, ids=lambda a: f"{a.collective}-{a.name}")


def build(algorithm: Algorithm, n: int, root: int = 0) -> Schedule:
    return algorithms.build(algorithm.collective, algorithm.name, n, root)


def roots(algorithm: Algorithm, n: int) -> list[int]:
    if algorithm.collective not in ROOTED:
        return [0]
    return list(range(n)) if n <= 17 else [0, 1, n // 2 + 5, n - 1]


class TestEveryAlgorithm:
    @every_algorithm
    @pytest.mark.parametrize("exact", [True, False], ids=["exact", "words"])
    def test_is_right(self, algorithm: Algorithm, exact: bool) -> None:
        for n in SIZES:
            for root in roots(algorithm, n)[:: 1 if exact else 5]:
                verify(build(algorithm, n, root), exact=exact)

    @given(algorithm=st.sampled_from(ALL), n=st.integers(1, 80), data=st.data())
    @settings(deadline=None)
    def test_is_right_for_any_size_and_root(self, algorithm: Algorithm, n: int, data: st.DataObject) -> None:
        verify(build(algorithm, n, data.draw(st.sampled_from(roots(algorithm, n)))))

    @every_algorithm
    def test_takes_the_steps_and_bytes_that_it_says(self, algorithm: Algorithm) -> None:
        for n in SIZES:
            for root in roots(algorithm, n):
                schedule = build(algorithm, n, root)
                assert schedule.nsteps == algorithm.steps(n)
                assert Fraction(int(schedule.chunks_sent().max()), schedule.nchunks) == algorithm.sent(n)

    @every_algorithm
    def test_wastes_no_step(self, algorithm: Algorithm) -> None:
        for n in SIZES:
            assert all(len(step) for step in build(algorithm, n).steps())

    @every_algorithm
    def test_alone_sends_nothing(self, algorithm: Algorithm) -> None:
        schedule = build(algorithm, 1)
        assert schedule.nmoves == 0
        assert schedule.nsteps == (algorithm.collective == "all_to_all")

    @every_algorithm
    def test_carries_its_names(self, algorithm: Algorithm) -> None:
        schedule = build(algorithm, 5, roots(algorithm, 5)[-1])
        assert (schedule.collective, schedule.algorithm) == (algorithm.collective, algorithm.name)
        assert (schedule.world_size, schedule.root) == (5, roots(algorithm, 5)[-1])
        assert schedule.equal_blocks == algorithm.equal_blocks

    @every_algorithm
    def test_names_its_paper_in_full_in_its_file(self, algorithm: Algorithm) -> None:
        text = sys.modules[algorithm.build.__module__].__doc__ or ""
        author, year = algorithm.source.split()[0].rstrip(","), algorithm.source.rstrip(")")[-4:]
        assert "Source: " in text
        assert author in text.partition("Source: ")[2]
        assert year in text.partition("Source: ")[2]


class TestBounds:
    @every_algorithm
    def test_no_fewer_steps_than_information_needs(self, algorithm: Algorithm) -> None:
        """When every rank sends to one other and receives from one in a step, knowledge doubles at best."""
        if algorithm.collective in ("all_to_all", "gather", "scatter"):
            return  # fewer contributions per rank; the bound is about one datum that all know or all contribute to
        for n in SIZES[1:]:
            schedule = build(algorithm, n)
            one_port = all(max(len(p) for p in peers_of(step).values()) == 1 for step in schedule.steps())
            if one_port:
                assert schedule.nsteps >= (n - 1).bit_length()

    @pytest.mark.parametrize("name", ALL_REDUCE)
    def test_all_reduce_sends_no_less_than_the_bound(self, name: str) -> None:
        for n in SIZES:
            schedule = algorithms.build("all_reduce", name, n)
            mean = Fraction(int(schedule.chunks_sent().sum()), schedule.nchunks * n)
            assert mean >= Fraction(2 * (n - 1), n)

    @pytest.mark.parametrize("name", ["ring", "circulant", "two_shot"])
    def test_these_all_reduces_reach_it_on_every_rank(self, name: str) -> None:
        for n in SIZES:
            assert set(algorithms.build("all_reduce", name, n).chunks_sent()) == {2 * (n - 1)}

    @pytest.mark.parametrize("name", ["ring", "tree", "double_tree", "halving_doubling", "circulant", "two_shot"])
    def test_these_all_reduces_send_the_same_in_all(self, name: str) -> None:
        for n in SIZES:
            schedule = algorithms.build("all_reduce", name, n)
            assert schedule.chunks_sent().sum() == 2 * (n - 1) * schedule.nchunks


def peers_of(step: Step) -> dict[tuple[str, int], set[int]]:
    """Whom each rank sends to, and receives from, in a step."""
    peers: dict[tuple[str, int], set[int]] = defaultdict(set)
    for src, dst in zip(step.src.tolist(), step.dst.tolist(), strict=True):
        if src != dst:
            peers["to", src].add(dst)
            peers["from", dst].add(src)
    return peers or {("to", 0): {0}}


class TestShapes:
    def test_ring_uses_n_links(self) -> None:
        assert all(len(algorithms.build("all_reduce", "ring", n).links()) == n for n in SIZES[1:])

    def test_tree_sends_fewest_messages(self) -> None:
        for n in SIZES:
            assert algorithms.build("all_reduce", "tree", n).nmoves == 2 * (n - 1)
            assert algorithms.build("broadcast", "tree", n, n - 1).nmoves == n - 1

    def test_every_rank_is_an_inner_node_of_one_tree_at_most(self) -> None:
        for n in SIZES:
            schedule = algorithms.build("all_reduce", "double_tree", n)
            inner = defaultdict(set)
            for step in schedule.steps():
                for dst, chunk in zip(step.dst[step.reduce].tolist(), step.first[step.reduce].tolist(), strict=True):
                    inner[dst].add(chunk // (schedule.nchunks // 2))
            assert all(len(trees) == 1 for trees in inner.values())

    def test_double_tree_is_binary(self) -> None:
        for n in SIZES:
            for step in algorithms.build("broadcast", "double_tree", n, n // 2).steps():
                sends = list(zip(step.src.tolist(), step.first.tolist(), strict=True))
                assert max(sends.count(s) for s in sends) <= 2

    def test_bruck_sends_one_message_a_rank_and_hop(self) -> None:
        for n in SIZES:
            schedule = algorithms.build("all_to_all", "bruck", n)
            assert schedule.nmoves == n * (n - 1).bit_length()

    def test_bruck_copies_runs_and_not_blocks(self) -> None:
        for n in (2, 5, 16):
            for step in list(algorithms.build("all_to_all", "bruck", n).steps())[::2]:
                ends = (step.src, step.first + step.count, step.to + step.count)
                starts = (step.src, step.first, step.to)
                goes_on = [(end[:-1] == start[1:]) for end, start in zip(ends, starts, strict=True)]
                assert not np.logical_and.reduce(goes_on).any()

    def test_pairwise_floods_nobody(self) -> None:
        for n in SIZES:
            for step in algorithms.build("all_to_all", "pairwise", n).steps():
                assert max(len(p) for p in peers_of(step).values()) == 1

    def test_the_largest_superpod_costs_nothing_until_a_step_is_asked_for(self) -> None:
        schedule = algorithms.build("all_reduce", "ring", 15_488)
        assert schedule.nsteps == 30_974
        assert len(schedule.step(30_000)) == 15_488


class TestRegistry:
    def test_collectives_are_those_of_the_environment(self) -> None:
        for collective in COLLECTIVES:
            assert algorithms.names(collective)
        with pytest.raises(InvalidValue, match=r"collective='all_reduze' must be one of all_reduce, .*barrier"):
            algorithms.names("all_reduze")

    def test_a_wrong_name_lists_the_right_ones(self) -> None:
        with pytest.raises(
            InvalidValue,
            match=r"^algorithm='rinG' does not exist for all_gather; there are ring, direct, bruck, .*nhr$",
        ):
            algorithms.get("all_gather", "rinG")

    def test_all_reduce_has_the_promised_ones(self) -> None:
        promised = {"ring", "tree", "double_tree", "halving_doubling", "recursive_doubling", "one_shot", "two_shot"}
        assert promised <= set(ALL_REDUCE)

    def test_schedules_are_kept(self) -> None:
        assert algorithms.build("broadcast", "tree", 6, 2) is algorithms.build("broadcast", "tree", 6, 2)

    @pytest.mark.parametrize(
        ("collective", "name", "n", "root", "text"),
        [
            ("all_reduce", "halving_doubling", 0, 0, "world_size=0 must be at least 1"),
            ("broadcast", "tree", -1, 0, "world_size=-1 must be at least 1"),
            ("broadcast", "tree", 4, 4, "root=4 must be a rank: 0 to 3"),
            ("broadcast", "tree", 4, -1, "root=-1 must be a rank: 0 to 3"),
            ("all_reduce", "tree", 4, 1, "root=1 must be 0: all_reduce has no root"),
        ],
    )
    def test_sizes_and_roots_that_do_not_exist(self, collective: str, name: str, n: int, root: int, text: str) -> None:
        with pytest.raises(InvalidValue, match=text):
            algorithms.build(collective, name, n, root)


# On data: an interpreter of twenty lines that knows nothing of data and contributions, only arrays

Arrays = list[list[npt.NDArray[Any] | None]]
"""[rank][slot] → what is in it."""


def run(schedule: Schedule, slots: Arrays, combine: np.ufunc = np.add) -> None:
    for index in range(schedule.nsteps):
        programs = [schedule.for_rank(r) for r in range(schedule.world_size)]
        parts = {r: p for r, program in enumerate(programs) for p in program if p.index == index}
        before = [list(rank) for rank in slots]
        for r, part in parts.items():
            moves = [(r, m) for m in part.local] + [(m.peer, m) for m in part.receives]
            for source, m in moves:
                for i in range(m.count):
                    payload, mine = before[source][m.first + i], slots[r][m.to + i]
                    assert payload is not None
                    if not m.reduce:
                        slots[r][m.to + i] = payload.copy()
                    else:
                        assert mine is not None
                        assert mine.shape == payload.shape
                        slots[r][m.to + i] = combine(mine, payload)


def fill(schedule: Schedule, value: Callable[[int, int], npt.NDArray[Any]]) -> Arrays:
    """What the spec says: value(rank, datum) in every slot that holds something."""
    a_spec = spec.of(schedule)
    each = schedule.nchunks // a_spec.nblocks
    slots: Arrays = [[None] * schedule.nslots for _ in range(schedule.world_size)]
    for r in range(schedule.world_size):
        for chunk in range(schedule.nchunks):
            datum = int(a_spec.before[r, chunk // each])
            if datum != NOTHING:
                slots[r][chunk] = value(r, datum * each + chunk % each)
    return slots


def results(schedule: Schedule, slots: Arrays) -> list[tuple[int, int, npt.NDArray[Any] | None]]:
    """(rank, datum, array) for every slot that the spec asks for."""
    a_spec = spec.of(schedule)
    each = schedule.nchunks // a_spec.nblocks
    return [
        (r, datum * each + chunk % each, slots[r][a_spec.result * schedule.nchunks + chunk])
        for r in range(schedule.world_size)
        for chunk in range(schedule.nchunks)
        if (datum := int(a_spec.after[r, chunk // each])) != NOTHING
    ]


class TestOnData:
    """Chunks of unequal size wherever the algorithm allows it, some of them empty."""

    @every_algorithm
    @pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8])
    def test_integers(self, algorithm: Algorithm, n: int) -> None:
        def value(rank: int, datum: int) -> npt.NDArray[Any]:
            size = 3 if algorithm.equal_blocks else datum * 7 % 5
            return 1000 * datum + np.arange(size) + 10**6 * (rank + 1)

        if algorithm.collective == "barrier":
            return  # has no data; below
        root = roots(algorithm, n)[-1]
        schedule = build(algorithm, n, root)
        slots = fill(schedule, value)
        run(schedule, slots)
        for r, datum, array in results(schedule, slots):
            assert array is not None
            expected = {
                "broadcast": lambda d: value(root, d),
                "scatter": lambda d: value(root, d),
                "all_gather": lambda d: value(d // (schedule.nchunks // n), d),
                "gather": lambda d: value(d // (schedule.nchunks // n), d),
                "all_to_all": lambda d: value(d // schedule.nchunks, d),
            }.get(algorithm.collective, lambda d: sum(value(q, d) for q in range(n)))(datum)
            assert array.tolist() == expected.tolist(), (r, datum)

    @pytest.mark.parametrize("name", algorithms.names("barrier"))
    @pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
    def test_after_a_barrier_everyone_has_heard_of_everyone(self, name: str, n: int) -> None:
        schedule = algorithms.build("barrier", name, n)
        slots = fill(schedule, lambda r, _: np.array([1 << r]))
        run(schedule, slots, np.bitwise_or)
        assert all(array is not None and array.tolist() == [2**n - 1] for _, _, array in results(schedule, slots))

    @pytest.mark.parametrize("name", ALL_REDUCE)
    @pytest.mark.parametrize("n", [2, 3, 5, 6, 8, 13])
    def test_floats_have_the_same_bits_on_every_rank(self, name: str, n: int) -> None:
        random = np.random.default_rng(n)
        schedule = algorithms.build("all_reduce", name, n)
        scale = [10.0 ** random.integers(-8, 8) for _ in range(n)]  # so that the order of the terms shows
        slots = fill(schedule, lambda r, _: random.standard_normal(50).astype(np.float32) * np.float32(scale[r]))
        run(schedule, slots)
        by_chunk: dict[int, set[bytes]] = defaultdict(set)
        for _, datum, array in results(schedule, slots):
            assert array is not None
            by_chunk[datum].add(array.tobytes())
        assert all(len(bits) == 1 for bits in by_chunk.values())
