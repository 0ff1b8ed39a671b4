"""The same algorithms on cards that are processes and share memory: the bits must be the same."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from collective_cases import EVERY, check, rooted

from superpod.collectives import algorithms
from superpod.collectives.communicator import Communicator, connect
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.shm_link import possible
from superpod.launcher.testing import run_ranks

pytestmark = pytest.mark.skipif(not possible(), reason="there is no such link on this machine")

# 100,003 floats are 400 KB: 25 segments, of which 4 may be under way
SEGMENTS = {"SUPERPOD_SEGMENT": "16K", "SUPERPOD_WINDOW": "64K"}
ENV = {"SUPERPOD_LINK": "shm", **SEGMENTS}


def everything(comm: Communicator, counts: list[int]) -> None:
    for collective, name in EVERY:
        for root in rooted(collective, comm.world_size)[-1:]:
            for count in counts:
                check(comm, collective, name, count, root)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_every_algorithm_in_shared_memory(n: int) -> None:
    run_ranks(n, everything, [0, 1, n - 1, 10_001], env=ENV)
    run_ranks(n, everything, [100_003 // n], env=ENV)


def floats(rank: int, count: int) -> Any:
    rng = np.random.default_rng(rank)
    return (rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count)).astype(np.float32)


def results(comm: Communicator) -> Iterator[bytes]:
    for name in algorithms.names("all_reduce"):
        for count in (10_007, 1_000_003):  # the second in segments of the usual size
            yield comm.all_reduce(floats(comm.rank, count), algorithm=name).tobytes()


@pytest.mark.parametrize("n", [2, 5])
def test_floats_have_the_same_bits_as_over_zeromq(n: int) -> None:
    expected = run_ranks(n, lambda comm: list(results(comm)), env={"SUPERPOD_LINK": "zmq"})
    assert run_ranks(n, lambda comm: list(results(comm)), env={"SUPERPOD_LINK": "shm"}) == expected
    assert all(one == expected[0] for one in expected)


def messages(comm: Communicator) -> None:
    """Everybody to everybody, before anybody receives: the rings must take it all."""
    others = [rank for rank in range(comm.world_size) if rank != comm.rank]
    sent = [comm.send(np.full(300_000, comm.rank), rank, tag, async_op=True) for rank in others for tag in range(3)]
    comm.barrier(algorithm="dissemination")
    for rank in reversed(others):
        for tag in (2, 0, 1):
            into = np.empty(300_000, int)
            comm.recv(into, rank, tag)
            assert (into == rank).all()
    for work in sent:
        work.wait()


def test_messages_that_are_not_received_yet() -> None:
    run_ranks(4, messages, env={"SUPERPOD_LINK": "shm"})


def test_where_it_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(InvalidValue, match=r"memory between cards needs Linux on x86-64, .* set SUPERPOD_LINK=z"):
        connect(Settings(link="shm"), Place(0, 1, 0, 1))
