"""The same algorithms on cards that are processes, over ZeroMQ: the bits must be the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from collective_cases import EVERY, check, rooted

from superpod.collectives import algorithms
from superpod.collectives.communicator import Communicator
from superpod.launcher.testing import run_ranks

# 100,003 floats are 400 KB: 25 segments, of which 4 may be under way
ENV = {"SUPERPOD_SEGMENT": "16K", "SUPERPOD_WINDOW": "64K"}


def everything(comm: Communicator, counts: list[int]) -> None:
    for collective, name in EVERY:
        for root in rooted(collective, comm.world_size)[-1:]:
            for count in counts:
                check(comm, collective, name, count, root)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_every_algorithm_over_ipc(n: int) -> None:
    run_ranks(n, everything, [0, 1, n - 1, 10_001], env=ENV)
    run_ranks(n, everything, [100_003 // n], env=ENV)


def test_every_algorithm_over_tcp() -> None:
    run_ranks(3, everything, [0, 10_001], env={"SUPERPOD_ZMQ_TRANSPORT": "tcp", **ENV})


def floats(rank: int) -> Any:
    rng = np.random.default_rng(rank)
    return (rng.standard_normal(10_007) * 10.0 ** rng.integers(-6, 6, 10_007)).astype(np.float32)


def results(comm: Communicator) -> Iterator[bytes]:
    for name in algorithms.names("all_reduce"):
        yield comm.all_reduce(floats(comm.rank), algorithm=name).tobytes()


@pytest.mark.parametrize("n", [2, 3, 8])
def test_floats_have_the_same_bits_on_every_rank_link_and_run(n: int) -> None:
    expected = run_ranks(n, lambda comm: list(results(comm)), link="memory")
    assert run_ranks(n, lambda comm: list(results(comm)), env=ENV) == expected
    assert all(one == expected[0] for one in expected)
