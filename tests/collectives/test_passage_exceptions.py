"""Where the short way of messages must not be taken, or not as usual: interrupts, forks, two connections."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from passages import ENV, back_and_forth, counted

from superpod.collectives.communicator import Communicator
from superpod.interconnect.errors import (
    LinkClosed,
    SuperpodError,
)
from superpod.launcher.testing import run_ranks

pytest.importorskip("superpod.interconnect._ring", reason="superpod was installed without a C compiler")


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
