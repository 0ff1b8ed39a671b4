"""What a card counts and tells its launcher."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from superpod.collectives.communicator import Communicator
from superpod.collectives.statistics import Statistics
from superpod.interconnect.control import NewsDesk
from superpod.interconnect.errors import DeadlineExceeded, InvalidValue
from superpod.launcher.testing import run_ranks


def test_calls_bytes_and_seconds_add_up_by_operation_and_algorithm() -> None:
    statistics = Statistics(0, None)
    for nbytes, seconds in ((8, 0.5), (16, 0.25)):
        statistics.count("all_reduce", "ring", nbytes, seconds)
    statistics.count("all_reduce", "tree", 4, 1.0)
    assert statistics.rows() == [
        {"operation": "all_reduce", "algorithm": "ring", "calls": 2, "bytes": 24, "seconds": 0.75},
        {"operation": "all_reduce", "algorithm": "tree", "calls": 1, "bytes": 4, "seconds": 1.0},
    ]


def test_the_launcher_hears_of_the_first_call_and_of_the_sums(tmp_path: Path) -> None:
    with contextlib.closing(NewsDesk(tmp_path)) as desk:
        statistics = Statistics(5, tmp_path)
        statistics.tell()
        assert desk.read() == []  # nothing was done
        statistics.count("barrier", "tree", 1, 0.5)
        statistics.count("barrier", "tree", 1, 0.5)
        statistics.tell()
        first, summary = desk.read()
        assert (first["event"], first["rank"]) == ("first_collective", 5)
        assert (summary["event"], summary["rank"], summary["operations"]) == ("summary", 5, statistics.rows())


def test_threads_may_count_at_once() -> None:
    statistics = Statistics(0, None)
    threads = [
        threading.Thread(target=lambda: [statistics.count("a", "b", 1, 0.0) for _ in range(2000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statistics.rows()[0]["calls"] == 8000


def test_sizes_are_those_of_nccl_tests() -> None:
    """S is the whole array: for all_gather what is gathered, for gather and scatter what the root has."""

    def card(comm: Communicator) -> dict[str, tuple[int, int]]:
        array = np.ones(12, np.float32)  # 48 B
        comm.all_reduce(array, algorithm="ring")
        comm.all_gather(array)
        comm.reduce_scatter(array)
        comm.all_to_all(array)
        comm.gather(array, 1)
        comm.scatter(array if comm.rank == 1 else None, 1, np.ones(4, np.float32))
        comm.barrier()
        comm.send(array, (comm.rank + 1) % 3)
        comm.recv(array, (comm.rank - 1) % 3)
        with pytest.raises(InvalidValue):
            comm.all_reduce(array, "none")  # no call
        return {row["operation"]: (row["calls"], row["bytes"]) for row in comm._runtime.statistics.rows()}

    expected = {"all_reduce": 48, "all_gather": 144, "reduce_scatter": 48, "all_to_all": 48, "gather": 144}
    expected |= {"scatter": 48, "barrier": 1, "send": 48, "recv": 48}
    assert run_ranks(3, card, link="memory") == [{name: (1, nbytes) for name, nbytes in expected.items()}] * 3


def test_the_algorithm_that_ran_is_counted() -> None:
    def card(comm: Communicator) -> list[str]:
        for name in ("ring", "tree", "ring"):
            comm.all_reduce(np.ones(3), algorithm=name)
        return [f"{row['algorithm']} {row['calls']}" for row in comm._runtime.statistics.rows()]

    assert run_ranks(2, card, link="memory") == [["ring 2", "tree 1"]] * 2


def test_a_message_counts_with_its_time_and_is_no_collective(tmp_path: Path) -> None:
    with contextlib.closing(NewsDesk(tmp_path)) as desk:
        statistics = Statistics(0, tmp_path)
        statistics.message_ended("send", 8, 2.0)
        (row,) = statistics.rows()
        assert (row["operation"], row["calls"], row["bytes"], row["seconds"]) == ("send", 1, 8, 2.0)
        assert desk.read() == []


def test_a_message_counts_once_when_it_is_done_and_not_when_it_fails() -> None:
    def card(comm: Communicator) -> list[tuple[str, int]]:
        other, array = 1 - comm.rank, np.ones(1)
        done = comm.recv(array, other, async_op=True)
        comm.send(array, other)
        for _ in range(2):
            done.wait()
        if comm.rank == 0:  # one that nobody answers
            with pytest.raises(DeadlineExceeded):
                comm.recv(array, other, tag=7, timeout=0.01)
        return [(row["operation"], row["calls"]) for row in comm._runtime.statistics.rows()]

    assert [sorted(rows) for rows in run_ranks(2, card, link="memory")] == [[("recv", 1), ("send", 1)]] * 2


def test_received_messages_have_taken_time() -> None:
    def card(comm: Communicator) -> list[tuple[str, int, bool]]:
        array = np.ones(12, np.float32)
        work = comm.recv(array, 1 - comm.rank, async_op=True)
        comm.send(array, 1 - comm.rank)
        work.wait()
        return [(row["operation"], row["calls"], row["seconds"] > 0) for row in comm._runtime.statistics.rows()]

    assert [sorted(rows) for rows in run_ranks(2, card, link="memory")] == [[("recv", 1, True), ("send", 1, True)]] * 2


def test_a_forked_child_finds_the_counters_free() -> None:
    statistics = Statistics(0, None)
    with statistics._lock:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if statistics._lock.acquire(timeout=1) else 1)
    assert os.waitpid(pid, 0)[1] == 0
