"""The short way of messages between two cards of a host does what the long one does: order, records, credit, errors."""

from __future__ import annotations

import contextlib
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

from superpod.collectives.communicator import Communicator
from superpod.interconnect import passage, shm_connection, shm_ring
from superpod.interconnect.errors import (
    CollectiveMismatch,
    DeadlineExceeded,
    LinkClosed,
    PeerLost,
    RemoteError,
    SuperpodError,
)
from superpod.interconnect.streams import Receive
from superpod.launcher.testing import run_ranks

pytest.importorskip("superpod.interconnect._ring", reason="superpod was installed without a C compiler")

ENV = {"SUPERPOD_LINK": "shm"}


class Counted:
    """A passage that counts what has gone through it."""

    def __init__(self, way: Any) -> None:
        self.way, self.sent, self.received = way, 0, 0

    def send(self, array: Any) -> bool:
        done: bool = self.way.send(array)
        self.sent += done
        return done

    def recv(self, array: Any) -> bool:
        done: bool = self.way.recv(array)
        self.received += done
        return done

    def fetch(self, receive: Receive, waits: bool) -> bool:
        done: bool = self.way.fetch(receive, waits)
        self.received += done
        return done


def counted(comm: Communicator) -> list[Counted]:
    """From now on every new passage of the card counts."""
    ways: list[Counted] = []
    make = comm._engine.mesh.passage

    def counting(*form: Any) -> Any:
        way = make(*form)
        if not isinstance(way, passage.Passage):
            return way
        ways.append(Counted(way))
        return ways[-1]

    comm._engine.mesh.passage = counting  # type: ignore[method-assign]
    return ways


def without(comm: Communicator, what: str) -> None:
    """This card has no compiled messages; or not even compiled rings."""
    if what:
        comm._engine.mesh.passage = lambda *form: passage.NO_PASSAGE  # type: ignore[method-assign]
    if what == "rings":
        shm_connection.Outgoing, shm_connection.Incoming = shm_ring.Outgoing, shm_ring.Incoming  # type: ignore[misc]


def back_and_forth(comm: Communicator, turns: int = 20, nbytes: int = 8) -> None:
    """Until both ways have their short ones."""
    other, array = 1 - comm.rank, np.full(nbytes, comm.rank, np.uint8)
    for turn in range(turns):
        if comm.rank == turn % 2:
            comm.send(array, other)
        else:
            comm.recv(array, other)


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
            assert m.place.endswith(f"test_passage.py:{line}")
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


# Where the short way must not be taken, or not as usual


def test_cards_that_connect_to_each_other_at_once_take_it_too(tmp_path: Path) -> None:
    """They have two connections, and each sends through its own."""

    def card(comm: Communicator) -> tuple[int, int, bool]:
        ways, other, array = counted(comm), 1 - comm.rank, np.zeros(8, np.uint8)
        mesh, connect = comm._engine.mesh, comm._engine.mesh.link.connect

        def connect_with_the_other(peer: int, address: str) -> None:
            (tmp_path / str(comm.rank)).touch()
            while not (tmp_path / str(other)).exists():  # neither has heard of the other one's connection then
                time.sleep(0.001)
            connect(peer, address)

        mesh.link.connect = connect_with_the_other  # type: ignore[method-assign]
        comm.barrier()
        work = comm.send(array, other, async_op=True)
        comm.recv(array, other)
        work.wait()
        back_and_forth(comm, 200)
        comm.barrier()
        patient = mesh.link._patience > 1e-9  # type: ignore[attr-defined]
        assert len(mesh.link._slots) == 2  # type: ignore[attr-defined]
        return sum(way.sent for way in ways), sum(way.received for way in ways), patient

    for sent, received, patient in run_ranks(2, card, env=ENV):
        assert sent > 80
        assert received > 0
        assert patient


def test_a_child_that_was_forked_while_a_thread_held_the_lock_is_told() -> None:
    def card(comm: Communicator) -> list[int]:
        back_and_forth(comm)
        comm.barrier()
        other, array, codes = 1 - comm.rank, np.zeros(8, np.uint8), []
        posted = comm.recv(np.zeros(8, np.uint8), other, 5, async_op=True)
        calls: list[Callable[[], Any]] = [lambda: comm.send(array, other), lambda: comm.recv(array, other), posted.wait]
        for call in calls:
            held, go_on = threading.Event(), threading.Event()

            def hold(held: threading.Event = held, go_on: threading.Event = go_on) -> None:
                with comm._engine.mesh._lock:
                    held.set()
                    go_on.wait(30)

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait(30)
            if (pid := os.fork()) == 0:
                signal.alarm(20)
                try:
                    call()
                except LinkClosed:
                    os._exit(7)
                finally:
                    os._exit(1)
            go_on.set()
            thread.join()
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        comm.send(array, other, 5)
        posted.wait()
        comm.barrier()
        return codes

    assert run_ranks(2, card, env=ENV) == [[7, 7, 7]] * 2


def test_an_interrupt_while_credit_is_given_loses_no_message_in_silence() -> None:
    """Whoever goes on gets the next message, or is told that there is no going on."""

    class Interrupt(BaseException):
        pass

    def card(comm: Communicator) -> list[int]:
        back_and_forth(comm)
        comm.barrier()
        got: list[int] = []
        if comm.rank:
            with contextlib.suppress(SuperpodError):  # the other one may be told that it cannot go on
                for number in range(12):
                    comm.send(np.full(1024, number, np.uint8), 0, 3)
            return got
        streams, interrupts = comm._engine.mesh.streams, iter([True])
        give = streams._give_credit

        def interrupted(key: Any, inlet: Any) -> None:
            if key[2] == 3 and next(interrupts, False):
                raise Interrupt
            give(key, inlet)

        streams._give_credit = interrupted  # type: ignore[method-assign]
        with contextlib.suppress(SuperpodError):
            while len(got) < 12:
                with contextlib.suppress(Interrupt):
                    got.append(int(comm.recv(np.zeros(1024, np.uint8), 1, 3)[0]))
        assert not next(interrupts, False)
        return got

    got = run_ranks(2, card, env={**ENV, "SUPERPOD_SEGMENT": "1024", "SUPERPOD_WINDOW": "4096"})[0]
    assert got == list(range(len(got)))


def test_a_signals_handler_may_ask_whether_what_it_interrupted_has_ended() -> None:
    def card(comm: Communicator) -> list[object]:
        if comm.rank:
            comm.send(np.zeros(8, np.uint8), 0)
            comm.barrier()
            return []
        work = comm.recv(np.zeros(8, np.uint8), 1, async_op=True)
        finish, said = work._finish, list[object]()

        def handler(*_: object) -> None:
            said.append(work.is_completed())
            with pytest.raises(SuperpodError, match=r"interrupted .* at its end, and cannot wait for it"):
                work.wait()

        def interrupted() -> Any:
            signal.raise_signal(signal.SIGUSR1)
            return finish()

        work._finish = interrupted
        signal.signal(signal.SIGUSR1, handler)
        work.wait()
        said.append(work.is_completed())
        comm.barrier()
        return said

    assert run_ranks(2, card, env=ENV)[0] == [False, True]


def test_a_signals_handler_that_asks_while_the_lock_is_held_leaves_the_receive_alone() -> None:
    def card(comm: Communicator) -> list[object]:
        if comm.rank:
            comm.barrier()
            comm.send(np.full(8, 5, np.uint8), 0)
            return []
        array, said = np.zeros(8, np.uint8), list[object]()
        work = comm.recv(array, 1, async_op=True)

        def handler(*_: object) -> None:
            said.append(work.is_completed())
            for seconds in (None, 0.1):
                with pytest.raises(SuperpodError, match="interrupted rank 0 while it moved messages"):
                    work.wait(seconds)

        signal.signal(signal.SIGUSR1, handler)
        with comm._engine.mesh._lock:
            signal.raise_signal(signal.SIGUSR1)
        comm.barrier()
        assert work.wait() is array
        return [*said, int(array[0])]

    assert run_ranks(2, card, env=ENV)[0] == [False, 5]


def test_a_receive_whose_call_raised_takes_no_message() -> None:
    def card(comm: Communicator) -> list[int]:
        other, lost, kept = 1 - comm.rank, np.zeros(8, np.uint8), np.zeros(8, np.uint8)
        if comm.rank == 0:
            messages = comm._engine.messages
            messages._passage, find = lambda form: 1 / 0, messages._passage  # type: ignore[assignment,method-assign]
            with pytest.raises(ZeroDivisionError):
                comm.recv(lost, other)
            messages._passage = find  # type: ignore[method-assign]
        comm.barrier()
        if comm.rank:
            comm.send(np.full(8, 5, np.uint8), other)
        else:
            comm.recv(kept, other)
        return [int(lost[0]), int(kept[0])]

    assert run_ranks(2, card, env=ENV)[0] == [0, 5]
