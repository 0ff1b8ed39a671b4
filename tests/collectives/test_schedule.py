"""Schedules as data: steps, the parts that ranks take, text and JSON."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpod.collectives import algorithms
from superpod.collectives.schedule import Move, RankStep, Schedule, Step
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue

ALL = [(collective, name) for collective in COLLECTIVES for name in algorithms.names(collective)]


def rows(step: Step) -> list[tuple[int, ...]]:
    return list(zip(*(getattr(step, name).tolist() for name in Step.__slots__), strict=True))


def of_steps(*steps: Step, n: int = 3, nchunks: int = 4, nbanks: int = 1) -> Schedule:
    return Schedule("all_reduce", "handmade", n, nchunks, len(steps), steps.__getitem__, nbanks)


class TestStep:
    def test_scalars_are_broadcast_and_to_defaults_to_first(self) -> None:
        step = Step.of([0, 1], 2, [5, 6], reduce=True)
        assert rows(step) == [(0, 2, 5, 1, 5, True), (1, 2, 6, 1, 6, True)]
        assert len(step) == 2
        assert step.src.dtype == np.int64
        assert step.reduce.dtype == np.bool_

    def test_join_keeps_the_order(self) -> None:
        joined = Step.join(Step.of(2, 0, 1), Step.of(1, 0, 1))
        assert joined.src.tolist() == [2, 1]

    @pytest.mark.parametrize("name", ["src", "dst", "first", "count", "to"])
    @pytest.mark.parametrize("value", [0.5, [0.0, 1.2], np.array([1.0]), "1"])
    def test_what_is_no_whole_number_is_refused(self, name: str, value: object) -> None:
        with pytest.raises(InvalidValue, match=f"{name}=.* of a step must be whole numbers; round them"):
            Step.of(**{"src": 0, "dst": 1, "first": 0, name: value})

    def test_an_empty_list_is_a_step_without_moves(self) -> None:
        assert len(Step.of([], [], [])) == 0

    def test_around_splits_only_what_runs_over_the_end(self) -> None:
        step = Step.around([0, 1], [1, 0], [1, 5], [3, 3], nchunks=6, reduce=True)
        assert rows(step) == [(0, 1, 1, 3, 1, True), (1, 0, 5, 1, 5, True), (1, 0, 0, 2, 0, True)]

    def test_around_takes_chunk_numbers_modulo_nchunks(self) -> None:
        assert rows(Step.around(0, 1, 7, 2, nchunks=5)) == [(0, 1, 2, 2, 2, False)]

    @given(nchunks=st.integers(1, 9), first=st.integers(0, 20), data=st.data())
    def test_around_moves_every_chunk_once(self, nchunks: int, first: int, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, nchunks))
        step = Step.around(0, 1, first, count, nchunks=nchunks)
        moved = [c for _, _, f, k, _, _ in rows(step) for c in range(f, f + k)]
        assert moved == [(first + i) % nchunks for i in range(count)]


class TestSchedule:
    @pytest.mark.parametrize("name", ["world_size", "nchunks", "nbanks"])
    def test_sizes_below_one_are_refused(self, name: str) -> None:
        sizes = {"world_size": 2, "nchunks": 2, "nbanks": 1, name: 0}
        with pytest.raises(InvalidValue, match=f"{name}=0 must be at least 1"):
            Schedule("all_reduce", "x", nsteps=0, build=lambda _: Step.of(0, 1, 0), **sizes)

    @pytest.mark.parametrize("name", ["world_size", "nchunks", "nbanks", "nsteps", "root"])
    def test_sizes_are_whole_numbers(self, name: str) -> None:
        sizes = {"world_size": 2, "nchunks": 2, "nbanks": 1, "nsteps": 0, name: 2.0}
        with pytest.raises(InvalidValue, match=f"{name}=2.0 must be a whole number"):
            Schedule("broadcast", "x", build=lambda _: Step.of(0, 1, 0), **sizes)

    def test_a_negative_number_of_steps_is_refused(self) -> None:
        with pytest.raises(InvalidValue, match="nsteps=-1 must be at least 0"):
            Schedule("all_reduce", "x", 2, 1, -1, lambda _: Step.of(0, 1, 0))

    def test_a_root_where_there_is_none_is_refused(self) -> None:
        with pytest.raises(InvalidValue, match="root=1 must be left out: all_reduce has no root"):
            Schedule("all_reduce", "x", 2, 1, 0, lambda _: Step.of(0, 1, 0), root=1)

    def test_a_root_that_is_no_rank_is_refused(self) -> None:
        with pytest.raises(InvalidValue, match=r"root=2 must be a rank: 0 to 1"):
            Schedule("broadcast", "x", 2, 1, 0, lambda _: Step.of(0, 1, 0), root=2)

    def test_a_step_that_does_not_exist_is_refused(self) -> None:
        schedule = algorithms.build("all_reduce", "ring", 3)
        for index in (-1, 4):
            with pytest.raises(InvalidValue, match=f"step {index} does not exist: the schedule has 4"):
                schedule.step(index)

    def test_a_rank_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(InvalidValue, match=r"rank=3 must be 0 to 2"):
            algorithms.build("all_reduce", "ring", 3).for_rank(3)

    def test_it_is_immutable(self) -> None:
        with pytest.raises(FrozenInstanceError):
            algorithms.build("all_reduce", "ring", 3).nsteps = 1  # type: ignore[misc]

    def test_ring_shape(self) -> None:
        schedule = algorithms.build("all_reduce", "ring", 6)
        assert (schedule.nmoves, len(schedule.links())) == (60, 6)
        assert schedule.chunks_sent().tolist() == [10] * 6

    def test_local_moves_are_no_traffic(self) -> None:
        schedule = of_steps(Step.of([0, 0], [0, 1], 0, 2))
        assert schedule.nmoves == 1
        assert schedule.links() == {(0, 1)}
        assert schedule.chunks_sent().tolist() == [2, 0, 0]

    def test_text(self) -> None:
        schedule = of_steps(Step.of([0, 1], [1, 2], [3, 0], [1, 2], [3, 2], [True, False]))
        assert str(schedule) == "handmade all_reduce, 3 ranks, 1 steps\n  0: 0→1 chunk 3 +  1→2 chunks 0-1 to 2"

    def test_a_place_in_words(self) -> None:
        schedule = of_steps(nbanks=2)
        assert schedule.where(4, 1, 3) == "handmade all_reduce on 3 ranks, step 4, rank 1, chunk 3"
        assert schedule.where(4, 1, 7) == "handmade all_reduce on 3 ranks, step 4, rank 1, chunk 3 of bank 1"
        assert schedule.where(-1, 0, 0) == "handmade all_reduce on 3 ranks, before step 0, rank 0, chunk 0"


class TestPrograms:
    def test_local_sends_and_receives_keep_the_order_of_the_step(self) -> None:
        step = Step.of([1, 0, 0, 2, 0], [0, 2, 0, 0, 1], [0, 1, 2, 3, 0], to=[0, 1, 3, 3, 0], reduce=True)
        (part,) = of_steps(step).for_rank(0)
        assert part == RankStep(
            index=0,
            local=(Move(0, 2, 1, 3, True),),
            sends=(Move(2, 1, 1, 1, True), Move(1, 0, 1, 0, True)),
            receives=(Move(1, 0, 1, 0, True), Move(2, 3, 1, 3, True)),
        )

    def test_steps_without_a_part_are_left_out(self) -> None:
        schedule = of_steps(Step.of(0, 1, 0), Step.of(1, 2, 0))
        assert [part.index for part in schedule.for_rank(0)] == [0]
        assert [part.index for part in schedule.for_rank(2)] == [1]

    @pytest.mark.parametrize(("collective", "name"), ALL)
    def test_programs_together_are_the_steps(self, collective: str, name: str) -> None:
        schedule = algorithms.build(collective, name, 6)
        said = sorted((i, *row) for i, step in enumerate(schedule.steps()) for row in rows(step))
        sent, received = [], []
        for rank in range(6):
            for part in schedule.for_rank(rank):
                for m in (*part.local, *part.sends):
                    sent.append((part.index, rank, m.peer, m.first, m.count, m.to, m.reduce))
                for m in part.local:
                    received.append((part.index, rank, rank, m.first, m.count, m.to, m.reduce))
                for m in part.receives:
                    received.append((part.index, m.peer, rank, m.first, m.count, m.to, m.reduce))
        assert sorted(sent) == said
        assert sorted(received) == said


class TestJson:
    @pytest.mark.parametrize(("collective", "name"), ALL)
    def test_there_and_back(self, collective: str, name: str) -> None:
        schedule = algorithms.build(collective, name, 5)
        copy = Schedule.from_json(schedule.to_json())
        for field in ("collective", "algorithm", "world_size", "nchunks", "nsteps", "nbanks", "root", "equal_blocks"):
            assert getattr(copy, field) == getattr(schedule, field)
        assert [rows(s) for s in copy.steps()] == [rows(s) for s in schedule.steps()]

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"steps": [{}]}', '{"steps": [], "collective": "all_reduce"}', "1"]
    )
    def test_what_is_no_schedule_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidValue, match=r"not a schedule in JSON: .*; write one with Schedule\.to_json\(\)"):
            Schedule.from_json(text)
