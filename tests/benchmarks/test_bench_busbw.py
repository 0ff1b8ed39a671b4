"""Bandwidths against figures worked out by hand from nccl-tests' definitions."""

import pytest

from superpod.benchmarks.busbw import algbw, busbw, least_bytes
from superpod.benchmarks.point_to_point import EVERY
from superpod.interconnect.errors import InvalidValue


@pytest.mark.parametrize(
    ("collective", "expected"),
    [
        ("all_reduce", 1.75e9),  # 2 · 7/8
        ("all_gather", 0.875e9),
        ("reduce_scatter", 0.875e9),
        ("all_to_all", 0.875e9),
        ("gather", 0.875e9),
        ("scatter", 0.875e9),
        ("broadcast", 1e9),
        ("reduce", 1e9),
        ("sendrecv", 1e9),
        ("barrier", 0.0),
    ],
)
def test_factor_at_eight_cards(collective, expected):
    assert busbw(collective, nbytes=2_000_000, seconds=0.002, world_size=8) == pytest.approx(expected)


def test_two_cards_have_busbw_equal_to_algbw():
    assert busbw("all_reduce", nbytes=1000, seconds=0.5, world_size=2) == algbw(nbytes=1000, seconds=0.5) == 2000


def test_every_measured_collective_has_a_factor():
    for collective in EVERY:
        assert busbw(collective, nbytes=8, seconds=1, world_size=4) >= 0
        assert least_bytes(collective, nbytes=8, world_size=4) >= 0


@pytest.mark.parametrize(
    ("collective", "arrays"),
    [("all_reduce", 8), ("all_gather", 5), ("reduce_scatter", 5), ("broadcast", 4), ("gather", 2), ("barrier", 0)],
)
def test_every_array_is_read_once_and_every_result_written_once(collective, arrays):
    assert least_bytes(collective, nbytes=1000, world_size=4) == arrays * 1000


def test_nothing_moves_in_a_world_of_one():
    assert busbw("all_reduce", nbytes=1 << 20, seconds=0.1, world_size=1) == 0


def test_unknown_collective_lists_the_right_ones():
    with pytest.raises(InvalidValue, match=r"no bus bandwidth for collective='allreduce'.*all_reduce.*barrier"):
        busbw("allreduce", nbytes=8, seconds=1, world_size=2)


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_duration_must_be_positive(seconds):
    with pytest.raises(InvalidValue, match=f"seconds={seconds} must be above 0"):
        algbw(nbytes=8, seconds=seconds)
