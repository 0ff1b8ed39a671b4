"""What schedules carry: every shortcut says what the steps say, and a wrong one is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from superpod.collectives import algorithms
from superpod.collectives.algorithms import Algorithm, rings
from superpod.collectives.schedule import ROOTED, Exchange, Schedule, Step, Traffic
from superpod.collectives.traffic import check_traffic, expanded, merged, traffic
from superpod.collectives.verify import verify
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue, ScheduleError

ALL = [algorithms.get(collective, name) for collective in COLLECTIVES for name in algorithms.names(collective)]
SHAPED = [algorithm for algorithm in ALL if algorithm.shaped]
SHAPES = [(), (4,), (2, 3), (3, 2), (4, 4), (1, 5), (2, 3, 2), (2, 2, 2, 3), (8, 8)]


@pytest.mark.parametrize("algorithm", ALL, ids=lambda a: f"{a.collective}-{a.name}")
def test_shortcuts_say_what_the_steps_say(algorithm: Algorithm) -> None:
    for n in [*range(1, 18), 64]:
        root = n // 2 if algorithm.collective in ROOTED else 0
        schedule = algorithms.build(algorithm.collective, algorithm.name, n, root)
        check_traffic(schedule)
        whole = sum(int(step.count[step.src != step.dst].sum()) for step in schedule.steps())
        told = [step for part in traffic(schedule) for step in expanded(part, n)]
        assert sum(int(step.count[step.src != step.dst].sum()) for step in told) == whole


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("algorithm", SHAPED, ids=lambda a: f"{a.collective}-{a.name}")
def test_any_shape_is_right(algorithm: Algorithm, shape: tuple[int, ...]) -> None:
    schedule = algorithm.build(int(np.prod(shape, dtype=int)), shape=shape)
    verify(schedule)
    check_traffic(schedule)


@pytest.mark.parametrize("algorithm", SHAPED, ids=lambda a: f"{a.collective}-{a.name}")
def test_a_shape_of_another_size_is_refused(algorithm: Algorithm) -> None:
    with pytest.raises(InvalidValue, match=r"shape=\(3, 4\) must have the product world_size=8, such as \(2, 4\)"):
        algorithm.build(8, shape=(3, 4))


class TestRings:
    @pytest.mark.parametrize(("shape", "number"), [((8,), 6), ((8, 8), 14), ((7,), 6), ((3, 4), 4), ((2, 3), 2)])
    def test_no_two_share_a_link(self, shape: tuple[int, ...], number: int) -> None:
        found = rings.rings(shape)
        assert found.shape == (number, int(np.prod(shape)))
        links = {(int(a), int(b)) for order in found for a, b in zip(order, np.roll(order, -1), strict=True)}
        assert len(links) == found.size
        strides = np.cumprod([1, *shape[:-1]])
        for a, b in links:  # neighbours in the mesh: one coordinate differs
            assert sum(a // s % k != b // s % k for s, k in zip(strides.tolist(), shape, strict=True)) == 1

    def test_they_use_six_sevenths_of_a_mesh_of_8_and_all_of_8_by_8(self) -> None:
        assert rings.rings((8,)).size == 6 / 7 * 8 * 7
        assert rings.rings((8, 8)).size == 64 * 14


def handmade(parts: list[Traffic], *steps: Step) -> Schedule:
    return Schedule("all_reduce", "handmade", 3, 1, len(steps), steps.__getitem__, traffic=lambda: parts)


class TestChecking:
    STEP = Step.of([0, 1, 2], [1, 2, 0], 0)

    def test_the_right_one_passes(self) -> None:
        check_traffic(handmade([Traffic(2, self.STEP)], self.STEP, self.STEP))
        check_traffic(handmade([Traffic(shift=(1, 1, 1))], self.STEP))

    @pytest.mark.parametrize(
        "part",
        [
            Traffic(flows=Step.of([0, 1, 2], [1, 2, 0], 0, 2)),
            Traffic(flows=Step.of([0, 1, 2], [1, 2, 0], 0, reduce=True)),
            Traffic(shift=(1, 2, 2)),
            Traffic(exchanges=(Exchange(1, 3),)),
            Traffic(local=1),
        ],
    )
    def test_another_step_is_found(self, part: Traffic) -> None:
        with pytest.raises(ScheduleError, match=r"step 0, rank 0, chunk 0: traffic and steps disagree"):
            check_traffic(handmade([part], self.STEP))

    def test_too_few_steps_are_found(self) -> None:
        with pytest.raises(ScheduleError, match=r"its traffic tells of 1 steps, it has 2; correct Schedule.traffic"):
            check_traffic(handmade([Traffic(flows=self.STEP)], self.STEP, self.STEP))


def test_without_a_shortcut_equal_steps_are_told_once() -> None:
    ring = replace(algorithms.build("all_reduce", "ring", 5), traffic=None)
    assert [part.times for part in traffic(ring)] == [4, 4]


def test_merging_adds_up_the_moves_of_a_pair() -> None:
    step = merged(Step.of([1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 3, 5], [2, 1, 1, 1], reduce=[False, True, False, True]))
    assert [step.src.tolist(), step.dst.tolist(), step.count.tolist()] == [[0, 1, 1], [1, 0, 0], [1, 3, 1]]
    assert step.reduce.tolist() == [True, False, True]
