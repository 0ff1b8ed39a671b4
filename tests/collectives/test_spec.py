"""What the collectives mean, for three ranks, written out."""

from __future__ import annotations

import pytest

from superpod.collectives import algorithms, spec
from superpod.collectives.schedule import ROOTED, Schedule, Step
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue

_ = spec.NOTHING
ALL = spec.EVERYONE

WRITTEN_OUT = {
    "all_reduce": (spec.all_reduce(3), [[0], [0], [0]], [[0], [0], [0]], [[ALL], [ALL], [ALL]]),
    "broadcast": (spec.broadcast(3, 1), [[_], [0], [_]], [[0], [0], [0]], [[1], [1], [1]]),
    "reduce": (spec.reduce(3, 1), [[0], [0], [0]], [[_], [0], [_]], [[ALL], [ALL], [ALL]]),
    "barrier": (spec.barrier(3), [[0], [0], [0]], [[0], [0], [0]], [[ALL], [ALL], [ALL]]),
    "all_gather": (spec.all_gather(3), [[0, _, _], [_, 1, _], [_, _, 2]], [[0, 1, 2]] * 3, [[0, 1, 2]] * 3),
    "gather": (
        spec.gather(3, 2),
        [[0, _, _], [_, 1, _], [_, _, 2]],
        [[_, _, _], [_, _, _], [0, 1, 2]],
        [[0, 1, 2]] * 3,
    ),
    "reduce_scatter": (spec.reduce_scatter(3), [[0, 1, 2]] * 3, [[0, _, _], [_, 1, _], [_, _, 2]], [[ALL] * 3] * 3),
    "scatter": (
        spec.scatter(3, 2),
        [[_, _, _], [_, _, _], [0, 1, 2]],
        [[0, _, _], [_, 1, _], [_, _, 2]],
        [[2] * 3] * 3,
    ),
    "all_to_all": (
        spec.all_to_all(3),
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[0, 3, 6], [1, 4, 7], [2, 5, 8]],
        [[0, 1, 2]] * 3,
    ),
}


def test_all_collectives_are_written_out_here() -> None:
    assert set(WRITTEN_OUT) == set(COLLECTIVES)


@pytest.mark.parametrize("collective", WRITTEN_OUT)
def test_before_after_origin(collective: str) -> None:
    a_spec, before, after, origin = WRITTEN_OUT[collective]
    assert a_spec.collective == collective
    assert a_spec.before.tolist() == before
    assert a_spec.after.tolist() == after
    assert a_spec.origin.tolist() == origin
    assert (a_spec.world_size, a_spec.nblocks) == (3, len(before[0]))
    assert a_spec.result == (collective == "all_to_all")
    assert a_spec.idempotent == (collective == "barrier")


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_of_takes_collective_size_and_root_from_the_schedule(collective: str) -> None:
    root = 3 if collective in ROOTED else 0
    schedule = algorithms.build(collective, algorithms.names(collective)[0], 4, root)
    found = spec.of(schedule)
    make = getattr(spec, collective)
    expected = make(4, 3) if collective in ROOTED else make(4)
    assert found.collective == collective
    for field in ("before", "after", "origin"):
        assert getattr(found, field).tolist() == getattr(expected, field).tolist()


def test_an_unknown_collective_is_refused_with_the_known_ones() -> None:
    schedule = Schedule("all_reduze", "x", 2, 1, 0, lambda _: Step.of(0, 1, 0))
    with pytest.raises(InvalidValue, match=r"collective='all_reduze' must be one of all_reduce, broadcast, .*barrier"):
        spec.of(schedule)
