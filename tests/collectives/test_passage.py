"""The short way of messages between two cards of a host does what the long one does: order, records, credit, errors."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from passages import ENV, back_and_forth, counted, without

from superpod.collectives.communicator import Communicator
from superpod.interconnect import passage
from superpod.interconnect.errors import (
    CollectiveMismatch,
    DeadlineExceeded,
    LinkClosed,
    PeerLost,
    RemoteError,
    SuperpodError,
)
from superpod.launcher.testing import run_ranks

pytest.importorskip("superpod.interconnect._ring", reason="superpod was installed without a C compiler")


@pytest.mark.parametrize("nbytes", [0, 1, 8, 4096, 65_536, 262_144])
def test_nearly_all_messages_take_it(nbytes: int) -> None:
    def card(comm: Communicator) -> tuple[int, int]:
        ways, other = counted(comm), 1 - comm.rank
        array = np.arange(nbytes, dtype=np.uint8)
        for turn in range(100):
            if comm.rank == turn % 2:
                comm.send(array + turn, other)
            else:
                assert np.array_equal(comm.recv(np.empty_like(array), other), array + turn)
        comm.barrier()
        return sum(way.sent for way in ways), sum(way.received for way in ways)

    for sent, received in run_ranks(2, card, env=ENV):
        assert sent > 40
        assert received > 0, "a receive that waits longer than its patience goes the long way, but not all do"


@pytest.mark.parametrize("other", ["", "messages", "rings"])
def test_whatever_is_mixed_keeps_its_order(other: str) -> None:
    """Two streams each way, short and long calls in any mixture, more than the window and the ring hold, and a card of
    another make."""

    def card(comm: Communicator) -> None:
        if comm.rank:
            without(comm, other)
        peer, rng = 1 - comm.rank, random.Random(7)
        plan = [
            (rng.randrange(2), rng.randrange(2), rng.choice((0, 1, 1, 1, 2, 500, 1024, 1025, 60_000, 300_000)))
            for _ in range(400)
        ]
        mine = random.Random(comm.rank)
        works: list[Any] = []
        expected: list[tuple[Any, np.ndarray, int, int]] = []
        for number, (sender, tag, count) in enumerate(plan):
            later = mine.random() < 0.4
            if sender == comm.rank:
                array = np.full(count, number, np.float32)
                work = comm.send(array, peer, tag, async_op=later)
                works.append((work, array))
            else:
                into = np.zeros(count, np.float32)
                earlier = any(t == tag and not w.is_completed() for w, _, t, _ in expected if w is not None)
                work = comm.recv(into, peer, tag, async_op=later or earlier)
                expected.append((work if later or earlier else None, into, tag, number))
        mine.shuffle(expected)
        for work, into, _, number in expected:
            if work is not None:
                work.wait(60)
            assert (into == number).all()
        for work, _ in works:
            if work is not None:
                work.wait(60)
        comm.barrier()

    run_ranks(2, card, env={**ENV, "SUPERPOD_SEGMENT": "65536", "SUPERPOD_WINDOW": "262144"})


def test_receives_that_were_posted_take_it_too() -> None:
    """By whoever waits, in whatever order, and when somebody only asks whether it is there."""

    def card(comm: Communicator) -> int:
        ways, other = counted(comm), 1 - comm.rank
        back_and_forth(comm)
        for turn in range(60):
            arrays = [np.zeros(8, np.uint8) for _ in range(3)]
            works = [comm.recv(array, other, async_op=True) for array in arrays]
            for number in range(3):
                comm.send(np.full(8, turn + number, np.uint8), other)
            if turn % 3 == 0:
                works[2].wait(30)
            if turn % 3 == 1:
                threads = [threading.Thread(target=work.wait) for work in works for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(30)
            for work in works:
                while turn % 3 == 2 and not work.is_completed():
                    time.sleep(0)
                work.wait(30)
            assert [int(array[0]) for array in arrays] == [turn, turn + 1, turn + 2]
            assert all((array == array[0]).all() for array in arrays)
        comm.barrier()
        return sum(way.received for way in ways)

    assert min(run_ranks(2, card, env=ENV)) > 20


def test_a_sender_that_is_far_ahead_gets_credit() -> None:
    """Ten times the window one way: the sender must not run ahead of it, and must not get stuck."""

    def card(comm: Communicator) -> int:
        ways, array = counted(comm), np.zeros(8192, np.uint8)
        most = 0
        for number in range(4000):
            if comm.rank == 0:
                array[:] = number % 251
                comm.send(array, 1)
                most = max(
                    most, max((out.outstanding for out in comm._engine.mesh.streams._outlets.values()), default=0)
                )
            else:
                if number % 500 == 0:
                    time.sleep(0.02)
                assert (comm.recv(array, 0) == number % 251).all()
        comm.barrier()
        assert sum(way.sent + way.received for way in ways) > 1000
        return most

    assert 0 < run_ranks(2, card, env={**ENV, "SUPERPOD_WINDOW": "4194304"})[0] <= 4 << 20


def test_every_message_is_recorded_and_counted() -> None:
    def card(comm: Communicator) -> tuple[int, list[Any], list[Any]]:
        back_and_forth(comm, 60)
        first = back_and_forth.__code__.co_firstlineno
        return first, comm._engine._recorder.records(), comm._engine.statistics.rows()

    for rank, (first, records, rows) in enumerate(run_ranks(2, card, env=ENV)):
        messages = [record for record in records if record.kind != "collective"]
        assert [(m.kind, m.state, m.number) for m in messages] == [
            ("send" if rank == turn % 2 else "recv", "done", turn) for turn in range(60)
        ]
        for m in messages:
            way = f"to rank {1 - rank}" if m.kind == "send" else f"from rank {1 - rank}"
            assert m.call == f"send/recv(8 × uint8, tag 0) {way}"
            assert m.nbytes == 8
            assert m.ended is not None
            assert m.started <= m.ended
            line = first + (5 if m.kind == "send" else 7)
            assert m.place.startswith("back_and_forth() at ")
            assert m.place.endswith(f"passages.py:{line}")
        assert sorted((row["operation"], row["calls"], row["bytes"]) for row in rows) == [
            ("recv", 30, 240),
            ("send", 30, 240),
        ]


def test_a_call_that_disagrees_is_named_on_both_sides() -> None:
    def card(comm: Communicator) -> str:
        back_and_forth(comm)
        if comm.rank == 0:
            comm.send(np.zeros(16, np.uint8), 1)
        with pytest.raises(CollectiveMismatch) as caught:
            comm.recv(np.zeros(8, np.uint8), 1 - comm.rank)
        return str(caught.value)

    for text in run_ranks(2, card, env=ENV):
        assert "rank 0 called send/recv(16 × uint8, tag 0)" in text
        assert "rank 1 called send/recv(8 × uint8, tag 0)" in text


@pytest.mark.parametrize("waits", [True, False])
def test_a_peer_that_dies_is_named_after_what_it_had_sent(tmp_path: Path, waits: bool) -> None:
    def card(comm: Communicator) -> None:
        back_and_forth(comm)
        if comm.rank:
            comm.send(np.full(8, 77, np.uint8), 0)
            if waits:
                time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        if not waits:
            time.sleep(0.2)
        assert comm.recv(np.zeros(8, np.uint8), 1).tolist() == [77] * 8
        with pytest.raises(PeerLost, match="rank 1"):
            comm.recv(np.zeros(8, np.uint8), 1)
        with pytest.raises(SuperpodError):
            comm.send(np.zeros(8, np.uint8), 1)
        (tmp_path / "seen").touch()

    with pytest.raises(PeerLost, match=r"rank 1 .* was killed by SIGKILL"):
        run_ranks(2, card, env=ENV)
    assert (tmp_path / "seen").exists()


def test_what_does_not_come_is_late_and_ends_the_group() -> None:
    def card(comm: Communicator) -> str:
        back_and_forth(comm)
        if comm.rank == 0:
            comm._engine.timeout = 0.3
        with pytest.raises((DeadlineExceeded, RemoteError)) as caught:
            comm.recv(np.zeros(8, np.uint8), 1 - comm.rank)
        with pytest.raises(SuperpodError):
            comm.send(np.zeros(8, np.uint8), 1 - comm.rank)
        return str(caught.value)

    texts = run_ranks(2, card, env=ENV)
    assert "rank 0: Timed out after 0.3 s waiting for rank 1 in send/recv(8 × uint8, tag 0)" in texts[0]
    assert "rank 0 failed with DeadlineExceeded" in texts[1]


def test_after_the_close_nothing_goes() -> None:
    def card(comm: Communicator) -> None:
        back_and_forth(comm)
        comm.barrier()
        comm.close()
        for length in (8, 9):  # of a form with a passage, and of a new one
            for call in (comm.send, comm.recv):
                for _ in range(2):
                    with pytest.raises(LinkClosed):
                        call(np.zeros(length, np.uint8), 1 - comm.rank)

    run_ranks(2, card, env=ENV)


def test_threads_with_tags_of_their_own() -> None:
    def card(comm: Communicator) -> None:
        other, failed = 1 - comm.rank, []

        def talk(tag: int) -> None:
            try:
                for turn in range(150):
                    array = np.full(8, turn + tag, np.int32)
                    if comm.rank == turn % 2:
                        comm.send(array, other, tag)
                    else:
                        assert (comm.recv(np.zeros(8, np.int32), other, tag) == array).all()
            except BaseException as error:
                failed.append(error)
                raise

        threads = [threading.Thread(target=talk, args=(tag,)) for tag in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert not failed
        comm.barrier()

    run_ranks(2, card, env=ENV)


def test_a_signals_handler_in_between_gets_an_answer() -> None:
    """A handler that interrupts messages may exchange some of its own, or is told that it cannot; nothing hangs."""

    def card(comm: Communicator) -> int:
        other, calls = 1 - comm.rank, []

        def handler(*_: object) -> None:
            try:
                comm.send(np.zeros(4, np.uint8), other, 9)
                calls.append(True)
            except SuperpodError as error:
                calls.append(False)
                if "interrupted" not in str(error):
                    raise

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
        back_and_forth(comm, 3000)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sent = sum(calls)
        arrived = int(comm.all_gather(np.array([sent]))[other, 0])
        for _ in range(arrived):
            comm.recv(np.zeros(4, np.uint8), other, 9)
        comm.barrier()
        return len(calls)

    assert sum(run_ranks(2, card, env=ENV)) > 0


def test_arrays_that_it_cannot_use_go_the_long_way() -> None:
    def card(comm: Communicator) -> None:
        other = 1 - comm.rank
        arrays: list[Callable[[], np.ndarray]] = [
            lambda: np.arange(12).reshape(3, 4).T,
            lambda: np.arange(24)[::2],
            lambda: np.arange(12).astype("datetime64[s]"),
            lambda: np.arange(12).astype(">i4"),
            lambda: np.asfortranarray(np.arange(12).reshape(3, 4)),
        ]
        for make in arrays:
            for turn in range(6):
                if comm.rank == turn % 2:
                    comm.send(make(), other)
                else:
                    given = make()
                    into = np.zeros(given.shape, given.dtype)
                    assert np.array_equal(comm.recv(into, other), given)
            frozen = np.zeros(12, int)
            frozen.flags.writeable = False
            with pytest.raises(SuperpodError, match="read-only"):
                comm.recv(frozen, other)
            comm.barrier()

    run_ranks(2, card, env=ENV)


def test_it_goes_with_its_communicator() -> None:
    def card(comm: Communicator) -> None:
        pair = comm.group([0, 1])
        assert pair is not None
        back_and_forth(pair)
        (form,) = {id(form): form for form in pair._engine.messages._forms.values()}.values()
        assert isinstance(form.passage, passage.Passage)
        group = weakref.ref(pair._engine.group)
        comm.barrier()
        pair.close()
        del pair, form
        gc.collect()
        assert group() is None

    run_ranks(2, card, env=ENV)
