"""Schedules of SuperPoD size are proved right on a sample of their chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from superpod.collectives import algorithms
from superpod.collectives.schedule import Schedule, Step
from superpod.collectives.simulate import Machine, suited
from superpod.collectives.verify import verify
from superpod.collectives.verify_sample import sample
from superpod.interconnect import topology_file
from superpod.interconnect.errors import InvalidValue, ScheduleError

NAMES = ("per_dimension", "halving_doubling", "tree", "double_tree", "recursive_doubling", "circulant")


@pytest.mark.parametrize("name", [n for n in algorithms.names("all_reduce") if n != "one_shot"])
def test_a_sample_of_a_right_schedule_is_right(name: str) -> None:
    verify(sample(algorithms.build("all_reduce", name, 24), 5))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_at_15488_cards(name: str) -> None:
    schedule = suited(Machine(topology_file.load("atlas-960")), "all_reduce", name, 15488)
    verify(sample(schedule, 3), exact=False)


def test_a_wrong_schedule_is_found() -> None:
    ring = algorithms.build("all_reduce", "ring", 16)

    def forgetful(index: int) -> Step:
        step = ring.step(index)
        return Step.of(step.src[1:], step.dst[1:], step.first[1:], reduce=step.reduce[1:]) if index == 3 else step

    with pytest.raises(ScheduleError):
        verify(sample(replace(ring, build=forgetful), 16))


def test_blocks_cannot_be_sampled() -> None:
    with pytest.raises(InvalidValue, match=r"all_gather has a block a rank; only all_reduce, broadcast, reduce can be"):
        sample(algorithms.build("all_gather", "ring", 4), 2)


def test_moves_to_other_chunks_cannot_be_sampled() -> None:
    step = Step.of(0, 1, 0, 1, 1)
    moving = Schedule("broadcast", "x", 2, 2, 1, lambda _: step)
    with pytest.raises(InvalidValue, match=r"x moves chunks to other numbers, so a sample of them proves nothing"):
        sample(moving, 2).step(0)
