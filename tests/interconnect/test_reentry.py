"""Signal handlers that use the mesh of the very thread that they have interrupted, wherever that was."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from cards import GROUP, SOON, eventually, start, within

from superpod.interconnect.errors import LinkClosed, PeerLost, SuperpodError


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], None]], None]]:
    """`on_signal(action)`: the main thread does this when it is sent SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda action: signal.signal(signal.SIGUSR1, lambda *_: action())
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(autouse=True)
def at_exit(monkeypatch):
    """What is put off until the interpreter ends is done at the end of the test."""
    later: list[Callable[[], None]] = []
    monkeypatch.setattr("superpod.interconnect.leaving.atexit", SimpleNamespace(register=later.append))
    yield later
    for action in later:
        action()


def interrupt_post(card, monkeypatch) -> None:
    """The card's next post is interrupted by a signal: the mesh's lock is held then."""
    link, original = card.mesh.link, card.mesh.link.post

    def post(peer, header, payload):
        monkeypatch.setattr(link, "post", original)
        original(peer, header, payload)
        assert card.mesh._held()
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(link, "post", post)


def interrupt_sleep(card) -> None:
    """A signal comes as soon as this thread sleeps in the link."""
    main = threading.main_thread().ident

    def interrupt() -> None:
        eventually(lambda: card.mesh._turns.leading)
        signal.pthread_kill(main, signal.SIGUSR1)

    start(interrupt)


def meet(a, b) -> None:
    for card in (a, b):
        card.send(1 - card.rank, b"x")
    for card in (a, b):
        card.recv(1 - card.rank, 1)


def test_a_handler_closes_the_mesh_while_its_thread_holds_the_lock(join, monkeypatch, on_signal, at_exit):
    a, b = join()
    meet(a, b)
    on_signal(a.close)
    interrupt_post(a, monkeypatch)
    with within(1):
        a.send(1, b"y")
        with pytest.raises(LinkClosed, match="rank 0 has closed its mesh"):
            a.recv(1, 1)
    assert b.recv(0, 1) == b"y"
    assert at_exit == [a.mesh.close]
    at_exit.pop()()
    with within(2), pytest.raises(PeerLost, match="rank 0 left the job"):
        b.recv(0, 1)


def test_a_handler_closes_the_mesh_while_its_thread_sleeps(join, on_signal, at_exit):
    a, b = join()
    meet(a, b)
    on_signal(a.close)
    interrupt_sleep(a)
    with within(1), pytest.raises(LinkClosed, match="rank 0 has closed its mesh"):
        a.recv(1, 1)
    with within(2), pytest.raises(PeerLost, match="rank 0 left the job"):  # it has heard of it already
        b.recv(0, 1)
    assert at_exit == [a.mesh._release]


def test_a_handler_that_closes_and_exits(join, on_signal):
    a, b = join()
    meet(a, b)

    def leave() -> None:
        a.close()
        sys.exit(3)

    on_signal(leave)
    interrupt_sleep(a)
    with within(1), pytest.raises(SystemExit):
        a.recv(1, 1)


def test_a_handler_closes_the_mesh_while_its_thread_follows_another(join, on_signal):
    a, b = join()
    meet(a, b)
    on_signal(a.close)
    leader = start(lambda: a.recv(1, 1, tag=1))
    eventually(lambda: a.mesh._turns.leading)
    main = threading.main_thread().ident

    def interrupt() -> None:
        eventually(lambda: a.mesh._turns._followers)
        signal.pthread_kill(main, signal.SIGUSR1)

    start(interrupt)
    with within(2), pytest.raises(LinkClosed, match="rank 0 has closed its mesh"):
        a.recv(1, 1)
    with pytest.raises(LinkClosed):
        leader.result(SOON)


@pytest.mark.parametrize("asleep", [False, True])
def test_a_handler_closes_a_group(join, monkeypatch, on_signal, asleep):
    a, b = join()
    meet(a, b)
    other = a.open(GROUP + 1)
    on_signal(lambda: a.mesh.close_group(a.group))
    if asleep:
        interrupt_sleep(a)
    else:
        interrupt_post(a, monkeypatch)
        a.send(1, b"y")
        assert b.recv(0, 1) == b"y"
    with within(1), pytest.raises(LinkClosed, match="rank 0 has closed group g7"):
        a.recv(1, 1)
    b.send(0, b"z", group=b.open(GROUP + 1))
    assert a.recv(1, 1, group=other) == b"z"
    a.mesh.close_group(other)
    assert not a.mesh.streams._inlets
    with within(2), pytest.raises(PeerLost, match="rank 0 has closed group g7"):
        b.recv(0, 1)


def test_a_handler_cannot_exchange_messages_while_its_thread_does(join, monkeypatch, on_signal):
    a, b = join()
    meet(a, b)
    errors: list[str] = []

    def use() -> None:
        calls = (lambda: a.send(1, b"n"), lambda: a.expect(1, 1, tag=9), lambda: a.wait(), lambda: a.open(9))
        for call in calls:
            with pytest.raises(
                SuperpodError, match="a signal's handler interrupted rank 0 while it moved messages"
            ) as e:
                call()
            errors.append(str(e.value))
        a.mesh.fail_group(a.group, SuperpodError("not now"))

    on_signal(use)
    interrupt_post(a, monkeypatch)
    a.send(1, b"y")
    assert len(errors) == 4
    b.send(0, b"z")
    assert a.recv(1, 1) == b"z"
    assert b.recv(0, 1) == b"y"


def test_a_handler_may_exchange_messages_while_its_thread_sleeps(join, on_signal):
    a, b = join()
    meet(a, b)
    answers: list[bytes] = []

    def answer() -> None:
        b.recv(0, 1, tag=2)
        b.send(0, b"nested", tag=1)
        b.send(0, b"outer")

    def ask() -> None:
        a.send(1, b"!", tag=2)
        answers.append(a.recv(1, 6, tag=1))

    on_signal(ask)
    answering = start(answer)
    interrupt_sleep(a)
    with within(0.8):  # below the longest sleep
        assert a.recv(1, 5) == b"outer"
    assert answers == [b"nested"]
    answering.result(SOON)
    assert not a.mesh._turns.leading


SCRIPT = """
import signal, sys
import numpy as np
from superpod.collectives.communicator import in_memory
comm, other = in_memory(2)
subs = [comm.group([0]) for _ in range(200)]
def handler(*_):
    if subs:
        subs.pop().close()
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
    else:
        comm.close()
        sys.exit(7)
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.0005)
while True:
    comm.send(np.ones(1), 1)
    other.recv(np.ones(1), 0)
"""


def test_handlers_at_any_moment():
    """Hundreds of groups are closed wherever the signal finds the thread, and then the communicator."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (7, b"")
