"""The short way in C does on Python's objects what Express does: places, numbers, states, references."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import numpy as np
import pytest

from superpod.collectives import compiled, recorder
from superpod.collectives.communicator import Communicator
from superpod.collectives.torch_backend_coalesced import SuperpodProcessGroup
from superpod.interconnect import board
from superpod.interconnect.errors import DeadlineExceeded, InvalidValue, PeerLost, RemoteError, SuperpodError
from superpod.launcher.testing import run_ranks

express = pytest.importorskip("superpod.collectives._express", reason="superpod was installed without a C compiler")
pytestmark = pytest.mark.skipif(not board.possible(), reason="boards need x86-64, futex and memfd_create")

ENV = {"SUPERPOD_LINK": "shm"}


def lanes(comm: Communicator) -> list[Any]:
    return [way for way in comm._engine.expresses.values() if isinstance(way, express.Lane)]


def test_a_record_has_the_layout_of_the_recorders() -> None:
    assert recorder._SIZE == express.RECORD


def test_every_call_is_recorded_with_its_own_number_length_and_line() -> None:
    """Calls by turns of two lengths, from two lines, one of them through a function, in a loop and deep in calls."""

    def card(comm: Communicator) -> tuple[int, list[tuple[int, str, str]]]:
        short, long = np.ones(2, np.float32), np.ones(300, np.float32)

        def through(depth: int) -> None:
            if depth:
                through(depth - 1)
            else:
                comm.all_reduce(short)

        first = through.__code__.co_firstlineno
        for turn in range(6):
            comm.all_reduce(short)
            comm.all_reduce(long)
            through(turn % 3)
        records = comm._engine._recorder.records()
        assert all(r.state == "done" and r.ended is not None and r.ended >= r.started for r in records)
        assert len(lanes(comm)) == 2
        return first, [(r.number, r.call, r.place) for r in records]

    for first, records in run_ranks(2, card, env=ENV):
        lines = [("card()", first + 8, 2), ("card()", first + 9, 300), ("through()", first + 4, 2)]
        wanted = [
            (function, line, f"all_reduce({count} × float32, sum) by one_shot") for function, line, count in lines
        ]
        found = [(place.split(" at ")[0], int(place.rpartition(":")[2]), call) for _, call, place in records]
        assert found == wanted * 6
        assert [number for number, *_ in records] == list(range(18))


def test_a_call_that_fails_is_recorded_so_and_the_group_is_over() -> None:
    def card(comm: Communicator) -> list[str]:
        array = np.ones(4, np.float32)
        for _ in range(3):
            comm.all_reduce(array)
        if comm.rank == 1:
            return []
        assert len(lanes(comm)) == 1
        with pytest.raises((PeerLost, RemoteError)):
            comm.all_reduce(array)
        assert comm._engine.meeting == 0
        return [r.state for r in comm._engine._recorder.records()]

    states, _ = run_ranks(2, card, env=ENV)
    assert states == ["done"] * 3 + ["failed"]


def test_its_references_are_seen_by_the_collector() -> None:
    def card(comm: Communicator) -> bool:
        for _ in range(2):
            comm.all_reduce(np.ones(4, np.float32))
        (lane,) = lanes(comm)
        return gc.is_tracked(lane) and comm._engine in gc.get_referents(lane)

    assert run_ranks(2, card, env=ENV) == [True, True]


def test_an_array_that_it_cannot_take_goes_the_long_way() -> None:
    def card(comm: Communicator) -> None:
        (good, *_) = (np.ones(4, np.float32) for _ in range(2))
        for _ in range(2):
            comm.all_reduce(good)
        (lane,) = lanes(comm)
        wide = np.ones((4, 2), np.float32)
        assert lane.run(wide[:, 0]) is False
        assert lane.run() is False
        good.flags.writeable = False
        assert lane.run(good) is False
        with pytest.raises(ValueError, match="the array has 8 bytes, fewer than 16"):
            lane.run(np.ones(2, np.float32))
        assert comm._engine.agreement.next == 2
        comm.barrier()

    run_ranks(2, card, env=ENV)


@pytest.mark.parametrize("wrong", [{}, {"seat": None}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        express.Lane(**wrong)


def test_a_call_from_a_handler_while_the_place_is_looked_up_is_refused() -> None:
    """A call from a new line runs Python once more, and so may a signal's handler; a profile hook stands in for it."""

    def card(comm: Communicator) -> tuple[list[str], float]:
        array, heard = np.ones(4, np.float32), []
        for _ in range(2):
            comm.all_reduce(array)

        def hook(frame: Any, event: str, _: Any) -> None:
            if event == "call" and frame.f_code.co_name == "place_bytes" and not heard:
                with pytest.raises(SuperpodError) as raised:
                    comm.all_reduce(array)
                heard.append(str(raised.value))

        sys.setprofile(hook)
        comm.all_reduce(array)
        sys.setprofile(None)
        return heard, float(comm.all_reduce(array)[0])

    for heard, value in run_ranks(2, card, env=ENV):
        assert len(heard) == 1
        assert "was called by a signal's handler" in heard[0]
        assert value == 2.0**4


def test_a_late_wait_has_what_is_left_of_the_calls_time() -> None:
    def card(comm: Communicator) -> str:
        comm.all_reduce(np.ones(4, np.float32))
        text = ""
        if comm.rank == 0:
            table = comm._engine._table
            assert table is not None
            table.board.come(7, "a call")
            with pytest.raises(DeadlineExceeded) as raised:
                table.late("a call", 1, 60.0, time.monotonic() - 60)
            text = str(raised.value)
            comm.send(np.zeros(1), 1)
        else:
            comm.recv(np.zeros(1), 0)
        return text

    text, _ = run_ranks(2, card, env=ENV)
    assert "Timed out after 60.0 s waiting for rank 1 in a call" in text


def test_the_name_of_a_collective_is_no_operation() -> None:
    def card(comm: Communicator) -> None:
        array = np.ones(4, np.float32)
        for _ in range(2):
            comm.all_gather(array)
            comm.all_to_all(array)
        for name in ("all_gather", "all_to_all"):
            with pytest.raises(InvalidValue):
                comm.all_reduce(array, name)
        comm.barrier()

    for link in ("shm", "zmq"):
        run_ranks(2, card, env={"SUPERPOD_LINK": link})


def test_empty_arrays_between_hosts_go_the_long_way() -> None:
    """Which has one meeting less for them than for others."""
    assert compiled._leaders(2, 0, 0, 102, 4096) == compiled._leaders(2, 1, 0, 102, 4096) == ()
    assert len(compiled._leaders(2, 1, 4, 102, 4096)) == 2


def test_a_tensor_without_memory_is_refused_and_no_crash() -> None:
    def card(comm: Communicator) -> list[float]:
        torch, group = pytest.importorskip("torch"), SuperpodProcessGroup(comm._engine, None, None)
        options = torch.distributed.AllreduceOptions()
        options.asyncOp = False
        for _ in range(2):
            group.allreduce([torch.ones(10)], options)
        with pytest.raises(RuntimeError, match="ZeroTensor"):
            group.allreduce([torch._efficientzerotensor(10)], options)
        return []

    assert run_ranks(2, card, env=ENV) == [[], []]
