"""The short way by messages: calls made again and again over ZeroMQ and in memory, where there is no board."""

from __future__ import annotations

import numpy as np
import pytest

from superpod.collectives.communicator import Communicator
from superpod.collectives.express_messages import MessageExpress
from superpod.interconnect.errors import CollectiveMismatch, DeadlineExceeded, SuperpodError
from superpod.launcher.testing import run_ranks

by_messages = pytest.mark.parametrize("link", ["zmq", "memory"])


def short(comm: Communicator) -> int:
    return sum(isinstance(express, MessageExpress) for express in comm._engine.expresses.values())


@by_messages
@pytest.mark.parametrize("n", [2, 3, 5])
def test_every_collective_again_and_again(link: str, n: int) -> None:
    def card(comm: Communicator) -> None:
        for times in range(1, 4):
            own = np.arange(6.0) + comm.rank * times
            ranks = np.arange(n)
            for op, wanted in (
                ("sum", (np.arange(6.0)[:, None] + ranks * times).sum(1)),
                ("max", np.arange(6.0) + (n - 1) * times),
            ):
                assert comm.all_reduce(own.copy(), op).tolist() == wanted.tolist()
            assert (
                comm.all_reduce(own.reshape(2, 3).copy(), "avg").ravel().tolist()
                == (np.arange(6.0) + times * (n - 1) / 2).tolist()
            )
            assert (
                comm.all_reduce(own.astype(np.float16)[::2]).tolist()
                == (own[::2] * 0 + (own[::2] - comm.rank * times) * n + times * n * (n - 1) / 2).tolist()
            )
            assert comm.broadcast(own.copy(), 1).tolist() == (np.arange(6.0) + times).tolist()
            assert comm.all_gather(own).tolist() == [(np.arange(6.0) + r * times).tolist() for r in range(n)]
            blocks = np.arange(n) + 10 * comm.rank * times
            assert comm.all_to_all(blocks).tolist() == [comm.rank + 10 * r * times for r in range(n)]
            comm.barrier()
        assert short(comm) == 7
        rows = {row["operation"]: row["calls"] for row in comm._runtime.statistics.rows()}
        assert rows == {"all_reduce": 12, "broadcast": 3, "all_gather": 3, "all_to_all": 3, "barrier": 3}
        records = comm._engine._recorder.records()
        assert [record.number for record in records] == list(range(24))
        assert {record.state for record in records} == {"done"}
        assert all("test_express_messages.py" in record.place for record in records)

    run_ranks(n, card, link=link)


@by_messages
def test_long_arrays_for_which_there_is_no_room_at_once(link: str) -> None:
    def card(comm: Communicator) -> None:
        for times in range(3):
            own = np.full(1_500_000, comm.rank + times, np.float64)
            assert set(comm.all_reduce(own)) == {3 + 3 * times}

    run_ranks(3, card, link=link)


@by_messages
def test_ranks_that_disagree_are_told(link: str) -> None:
    def card(comm: Communicator) -> str:
        for _ in range(3):
            comm.all_reduce(np.ones(2))
            comm.broadcast(np.ones(2))
        with pytest.raises(CollectiveMismatch) as raised:
            comm.broadcast(np.ones(2)) if comm.rank else comm.all_reduce(np.ones(2))
        return str(raised.value)

    for text in run_ranks(2, card, link=link):
        assert "all_reduce(2 × float64, sum)" in text
        assert "broadcast(2 × float64, root 0)" in text


@by_messages
def test_a_rank_that_does_not_come_is_named(link: str) -> None:
    def card(comm: Communicator) -> str:
        for _ in range(3):
            comm.all_reduce(np.ones(2))
        if comm.rank == 1:
            comm._engine.timeout = 60
            with pytest.raises(SuperpodError):
                comm.recv(np.ones(1), 0)
            return ""
        comm._engine.timeout = 0.1
        with pytest.raises(DeadlineExceeded) as raised:
            comm.all_reduce(np.ones(2))
        with pytest.raises(SuperpodError):
            comm.all_reduce(np.ones(2))
        states = [record.state for record in comm._engine._recorder.records()]
        assert states == ["done"] * 3 + ["failed"]
        return str(raised.value)

    assert "waiting for rank 1 in all_reduce(2 × float64, sum)" in run_ranks(2, card, link=link)[0]


@by_messages
def test_a_call_behind_an_asynchronous_one_waits_for_it(link: str) -> None:
    def card(comm: Communicator) -> None:
        for _ in range(3):
            comm.all_reduce(np.ones(2))
        for _ in range(20):
            first, second = np.ones(3), np.ones(2)
            work = comm.all_reduce(first, async_op=True)
            comm.all_reduce(second)
            work.wait(30)
            assert (first.tolist(), second.tolist()) == ([2.0] * 3, [2.0] * 2)

    run_ranks(2, card, link=link)
