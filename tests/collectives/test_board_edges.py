"""Cards at a board when something comes in between: a signal's handler, a fork, a group that is made again."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import pytest

from superpod.collectives.communicator import Communicator
from superpod.collectives.meeting import Task
from superpod.collectives.relay import relay, relay_shares
from superpod.interconnect.errors import CollectiveMismatch, DeadlineExceeded, RemoteError, SuperpodError
from superpod.launcher.testing import run_ranks


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_handler_that_calls_is_refused_and_the_call_that_it_interrupted_goes_on(pause: float) -> None:
    def card(comm: Communicator) -> tuple[list[float], str]:
        refused = ""

        def handler(*_: object) -> None:
            nonlocal refused
            try:
                comm.barrier()
            except SuperpodError as error:
                refused = str(error)

        comm.barrier()
        if comm.rank == 0:
            signal.signal(signal.SIGUSR1, handler)
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        else:
            time.sleep(0.1 + pause)
        return [float(comm.all_reduce(np.full(4, float(i + comm.rank)))[0]) for i in (1, 10)], refused

    results = run_ranks(2, card, link="shm")
    assert [sums for sums, _ in results] == [[3.0, 21.0]] * 2
    assert results[0][1] == (
        "barrier of group world was called by a signal's handler that has interrupted another call of the group on "
        "rank 0; let the handler set a flag"
    )


def test_a_forked_child_that_closes_signs_nobody_off() -> None:
    def card(comm: Communicator) -> float:
        comm.barrier()
        if comm.rank == 0:
            if (child := os.fork()) == 0:
                try:
                    comm.close()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            time.sleep(0.6)  # the other one looks around meanwhile
        return float(comm.all_reduce(np.ones(1))[0])

    assert run_ranks(2, card, link="shm") == [2.0, 2.0]


def test_a_group_made_again_after_a_failure_meets_at_a_board_of_its_own() -> None:
    def card(comm: Communicator) -> float:
        group = comm.group([0, 1])
        assert group is not None
        if comm.rank == 0:
            with pytest.raises(DeadlineExceeded):
                group.barrier(timeout=0.2)
        comm.barrier()
        group.close()
        again = comm.group([0, 1])
        assert again is not None
        return float(again.all_reduce(np.ones(1))[0])

    assert run_ranks(2, card, link="shm") == [2.0, 2.0]


LONG = 1 << 18  # float32 elements: four pieces of a relay
BEYOND = 1000  # all numbers of a group's calls: who waits for long asks the others what they called under its own


def test_who_does_not_come_to_a_relay_is_named_by_those_before_and_after_it() -> None:
    def card(comm: Communicator) -> str:
        group = comm.group([0, 1, 2, 3])
        assert group is not None
        text = ""
        group.barrier()  # from here on only rank 1 is late
        if comm.rank != 1:
            seconds = 50 if comm.rank == 3 else 3  # whose neighbours are others: it hears of it
            with pytest.raises((DeadlineExceeded, RemoteError)) as raised:  # its own, or what another one told it first
                group.all_reduce(np.ones(LONG, np.float32), algorithm="two_shot_ordered", timeout=seconds)
            text = str(raised.value)
        comm.barrier()
        return text

    texts = run_ranks(4, card, link="shm")
    for rank in (0, 2, 3):
        assert "waiting for rank 1" in texts[rank]


def test_cards_of_different_relays_find_out() -> None:
    def card(comm: Communicator) -> str:
        with pytest.raises(CollectiveMismatch) as raised:
            comm.all_reduce(np.ones(LONG + (comm.rank == 2), np.float32), algorithm="two_shot_ordered", timeout=20)
        return str(raised.value)

    for text in run_ranks(4, card, link="shm"):
        assert f"{LONG} × float32" in text
        assert f"{LONG + 1} × float32" in text


def test_relays_and_meetings_by_turns_leave_nothing_of_one_another() -> None:
    """Who leaves a relay early must not write where a late one still reads."""

    def card(comm: Communicator) -> int:
        n, wrong = comm.world_size, 0
        for i in range(40):
            count = (LONG, 3, LONG // 2 + i, 5000)[i % 4]
            mine = np.full(count * n, comm.rank + i, np.float32)
            block = comm.reduce_scatter(mine, algorithm="direct_ordered")
            wrong += np.count_nonzero(block != n * (n - 1) // 2 + n * i)
            rows = comm.all_gather(np.full(count, comm.rank - i, np.float32))
            wrong += np.count_nonzero(rows != np.arange(n, dtype=np.float32)[:, None] - i)
            summed = comm.reduce(mine, i % n, algorithm="star")
            wrong += 0 if summed is None else np.count_nonzero(summed != n * (n - 1) // 2 + n * i)
        return wrong

    assert run_ranks(5, card, link="shm") == [0] * 5


def test_nobody_leaves_an_empty_relay_before_all_have_come() -> None:
    """Who runs two meetings ahead overwrites the stamp of one that others have not noticed to be complete."""

    def card(comm: Communicator) -> None:
        comm.barrier()
        table, nothing = comm._engine._table, Task((np.ones(0),), ((0, 0),), np.add, 0)
        assert table is not None
        for turn in range(30):
            comm.barrier()
            if comm.rank == turn % comm.world_size:
                time.sleep(0.005)  # asleep while the others come to the last meeting
            table.call("nothing", BEYOND + turn, 10)
            for _ in range(3):
                relay(table, nothing, 0, 0)

    run_ranks(3, card, link="shm", timeout=20)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_shares_go_around_in_their_order_one_relay_after_the_other(n: int) -> None:
    """Of many lengths, none and one in a thousand laps among them, by cards of which one is late."""

    def card(comm: Communicator) -> int:
        comm.barrier()
        table, wrong, own = comm._engine._table, 0, comm.rank
        assert table is not None
        for turn, count in enumerate((0, 1, 0, n, 0, 70_001, 3, LONG, 300_007, 0) * 3):
            arrays = [np.random.default_rng([turn, rank]).standard_normal(count) * 10.0**rank for rank in range(n)]
            edges = tuple(-(-count * k // n) for k in range(n + 1))
            first, last = edges[own], edges[own + 1]
            expected = arrays[own][first:last].copy()
            for k in range(1, n):
                expected += arrays[(own - k) % n][first:last]
            before = arrays[own].copy()
            before[first:last] = expected
            if own == turn % n:
                time.sleep(0.003)
            table.call("shares", BEYOND + turn, 10)
            relay_shares(table, Task((arrays[own],), (edges,), np.add, 0), edges)
            wrong += arrays[own].tobytes() != before.tobytes()
            if turn % 4 == 3:
                comm.barrier()
        return wrong

    assert run_ranks(n, card, link="shm", timeout=20) == [0] * n


def test_of_two_operands_the_lower_ranks_is_the_first() -> None:
    """Which only an operation that is not commutative can tell."""

    def card(comm: Communicator) -> list[float]:
        comm.barrier()
        table, array = comm._engine._table, np.full(3, float(2 + comm.rank))
        assert table is not None
        table.call("shares", BEYOND, 10)
        relay_shares(table, Task((array,), ((0, 1, 2, 3),), np.subtract, 0), (0, 1, 2, 3))
        return array[comm.rank : comm.rank + 1].tolist()

    a, b, c = 2.0, 3.0, 4.0
    assert run_ranks(3, card, link="shm") == [[a - c - b], [a - b - c], [a - (b - c)]]
