"""The order of additions: which algorithms keep to that of the ranks is proved, and another one is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpod.collectives import algorithms
from superpod.collectives.algorithms import Algorithm
from superpod.collectives.schedule import REDUCING, ROOTED, Schedule, Step
from superpod.collectives.verify import verify
from superpod.interconnect.errors import InvalidValue, ScheduleError

ALL = [algorithms.get(collective, name) for collective in REDUCING for name in algorithms.names(collective)]
ORDERED = [algorithm for algorithm in ALL if algorithm.fixed_order]
SIZES = [*range(1, 10), 16, 33, 64]


def schedules(algorithm: Algorithm, n: int) -> list[Schedule]:
    roots = sorted({0, 1 % n, n // 2, n - 1}) if algorithm.collective in ROOTED else [0]
    return [algorithms.build(algorithm.collective, algorithm.name, n, root) for root in roots]


def handmade(n: int, *steps: Step, nbanks: int = 1) -> Schedule:
    return Schedule("all_reduce", "handmade", n, 1, len(steps), steps.__getitem__, nbanks)


@pytest.mark.parametrize("algorithm", ORDERED, ids=lambda a: f"{a.collective}-{a.name}")
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "words"])
def test_those_that_say_so_keep_to_it(algorithm: Algorithm, exact: bool) -> None:
    for n in SIZES:
        for schedule in schedules(algorithm, n):
            verify(schedule, exact=exact, fixed_order=True)


@pytest.mark.parametrize("algorithm", [a for a in ALL if not a.fixed_order], ids=lambda a: f"{a.collective}-{a.name}")
def test_the_others_are_refused(algorithm: Algorithm) -> None:
    some = [schedule for n in (3, 4, 5, 9, 16) for schedule in schedules(algorithm, n)]
    with pytest.raises(ScheduleError, match=r"adds up ranks? .* and ranks? .*; the fixed order is 0, 1, 2, …"):
        list(map(partial(verify, fixed_order=True), some))


@pytest.mark.parametrize("algorithm", ALL, ids=lambda a: f"{a.collective}-{a.name}")
def test_two_ranks_have_one_order(algorithm: Algorithm) -> None:
    """The lower rank's operand is the first one, in every algorithm."""
    for schedule in schedules(algorithm, 2):
        verify(schedule, fixed_order=True)


def test_what_adds_nothing_is_always_in_order() -> None:
    for collective in ("broadcast", "all_gather", "all_to_all", "barrier"):
        assert algorithms.in_fixed_order(collective) == algorithms.names(collective)
        verify(algorithms.build(collective, algorithms.names(collective)[0], 5), fixed_order=collective != "barrier")


def test_each_collective_that_adds_has_some_and_not_all() -> None:
    for collective in REDUCING:
        assert set(algorithms.in_fixed_order(collective)) < set(algorithms.names(collective))
        assert algorithms.in_fixed_order(collective)
    with pytest.raises(InvalidValue, match="collective='all_reduze' must be one of"):
        algorithms.in_fixed_order("all_reduze")


class TestWhatIsFound:
    def test_a_rank_left_out(self) -> None:
        star = handmade(4, Step.of([1, 3, 2], 0, 0, reduce=True), Step.of(0, [1, 2, 3], 0))
        verify(star)
        text = r"^handmade all_reduce on 4 ranks, step 0, rank 0, chunk 0: adds up ranks 0-1 and rank 3; the fixed"
        with pytest.raises(ScheduleError, match=text):
            verify(star, fixed_order=True)

    def test_sums_of_several_ranks_each(self) -> None:
        tree = handmade(
            4, Step.of([1, 3], [0, 2], 0, reduce=True), Step.of(2, 0, 0, reduce=True), Step.of(0, [1, 2, 3], 0)
        )
        with pytest.raises(ScheduleError, match=r"step 1, rank 0, chunk 0: adds up ranks 0-1 and ranks 2-3; the"):
            verify(tree, fixed_order=True)

    def test_the_last_rank_first(self) -> None:
        chain = handmade(3, Step.of(2, 1, 0, reduce=True), Step.of(1, 0, 0, reduce=True), Step.of(0, [1, 2], 0))
        with pytest.raises(ScheduleError, match=r"step 1, rank 0, chunk 0: adds up rank 0 and ranks 1-2; the fixed"):
            verify(chain, fixed_order=True)

    def test_a_chain_from_rank_0_on_is_right(self) -> None:
        up = [Step.of(r, r + 1, 0, reduce=True) for r in range(3)]
        verify(handmade(4, *up, Step.of(3, [0, 1, 2], 0)), fixed_order=True)

    def test_a_local_move_takes_its_own_operand_first(self) -> None:
        """Unlike a message: there the lower rank's is the first."""
        fetch = Step.of([0, 1], [1, 0], 0, 1, 1)
        backwards = handmade(2, fetch, Step.of([0, 1], [0, 1], 1, 1, 0, reduce=True), nbanks=2)
        with pytest.raises(ScheduleError, match=r"step 1, rank 1, chunk 0: adds up rank 1 and rank 0; the fixed order"):
            verify(backwards, fixed_order=True)

    def test_a_sum_that_is_replaced_by_a_copy_counts_no_more(self) -> None:
        steps = (
            Step.of([1, 2], [0, 0], 0, 1, [1, 2]),  # banks 1 and 2 of rank 0
            Step.of(0, 0, [1, 2], 1, 0, reduce=True),
            Step.of(0, [1, 2], 0),
        )
        verify(handmade(3, *steps, nbanks=3), fixed_order=True)

    @settings(deadline=None)
    @given(algorithm=st.sampled_from(ORDERED), n=st.integers(3, 9), data=st.data())
    def test_any_two_additions_exchanged(self, algorithm: Algorithm, n: int, data: st.DataObject) -> None:
        schedule = algorithms.build(algorithm.collective, algorithm.name, n, 0)
        steps = list(schedule.steps())
        index = next(i for i, step in enumerate(steps) if step.reduce.any())
        step = steps[index]
        if len(step) < 2 or (algorithm.name == "star" and schedule.collective == "reduce" and n == 3):
            return  # a single addition
        rows = data.draw(st.permutations(range(len(step))), "order of the moves")
        steps[index] = Step(*(getattr(step, name)[rows] for name in Step.__slots__))
        changed = replace(schedule, build=steps.__getitem__, program=None, traffic=None)
        kept = all(_into(step, rank) == _into(steps[index], rank) for rank in range(n))
        if kept:
            verify(changed, fixed_order=True)
        else:
            with pytest.raises(ScheduleError, match=r"adds up ranks? |differ between ranks|in another order"):
                verify(changed, fixed_order=True)


def _into(step: Step, rank: int) -> list[tuple[int, int]]:
    """What is added at a rank, in its order."""
    rows = step.dst == rank
    return list(zip(step.src[rows].tolist(), step.first[rows].tolist(), strict=True))
