"""How waits end early, and what is left then: deadlines, closing, abort, errors and interrupts, forked processes."""

from __future__ import annotations

import os
import signal
import socket
import threading

import numpy as np
import pytest
from cards import (
    GROUP,
    REAL,
    SOON,
    Card,
    dictionary,
    eventually,
    exit_code,
    forked,
    make_links,
    start,
    within,
)

from folder_store import FolderStore
from superpod.interconnect.control import AbortFlag, AbortSwitch, Failure
from superpod.interconnect.errors import (
    DeadlineExceeded,
    InvalidValue,
    LinkClosed,
    PeerLost,
    RemoteError,
    SuperpodError,
)
from superpod.interconnect.host import Address, host_id
from superpod.interconnect.rendezvous import AddressBook

# Deadlines


def test_a_deadline_names_the_ranks_that_are_late(join):
    a, b, c, _ = join(4, segment=1024, window=2048)
    c.send(0, b"x")
    pendings = [a.send(1, bytes(10_000)), *(a.expect(peer, 1) for peer in (1, 2, 3))]
    with pytest.raises(
        DeadlineExceeded, match=r"^rank 0: Timed out after 0\.3 s waiting for ranks 1, 3 in all_gather of 1$"
    ):
        a.wait(*pendings, seconds=0.3, what="all_gather of 1")
    assert not b.mesh.closed


def test_after_a_deadline_the_buffer_is_left_alone(join):
    a, b = join(segment=1024, window=1 << 20)
    array = np.full(4, 7, np.uint8)
    with pytest.raises(DeadlineExceeded):
        b.wait(b.expect(0, array), seconds=0)
    a.send(1, b"late")
    assert b.recv(0, 4) == b"late"  # the next receive gets it
    assert (array == 7).all()


def test_after_a_deadline_in_the_middle_of_a_message_the_rest_is_dropped(join):
    a, b = join(segment=1024, window=2048)
    array = np.zeros(10_000, np.uint8)
    send = a.send(1, b"\1" * 10_000)
    receive = b.expect(0, array)
    b.until(lambda: receive.got)
    with pytest.raises(DeadlineExceeded):
        b.wait(receive, seconds=0)
    before = array.copy()
    a.send(1, b"next")
    done = start(lambda: a.wait(send))
    assert b.recv(0, 4) == b"next"
    done.result(SOON)
    assert (array == before).all()
    assert not array.all()


def test_a_stranger_that_never_joins(join):
    (card,) = join(1, patience=0.3)
    with pytest.raises(DeadlineExceeded, match=r"^rank 5 has not joined within 0\.3 s: it was not started, or it is"):
        card.send(5, b"x")
    with pytest.raises(DeadlineExceeded, match=r"^rank 5 has not joined within 0\.1 s"):
        card.send(5, b"x", seconds=0.1)
    with pytest.raises(DeadlineExceeded, match=r"waiting for rank 5 in a test"):
        card.wait(card.expect(5, 1), seconds=0.4)


def test_waiting_for_a_stranger_ends_with_the_group(join_memory):
    a, b = join_memory()
    b.send(0, b"x")
    a.recv(1, 1)
    meeting = start(lambda: a.send(9, b"x"))
    b.mesh.fail_group(b.group, SuperpodError("no more"))
    with within(2.5), pytest.raises(RemoteError, match="no more"):
        meeting.result(SOON)


def test_many_strangers_do_not_hold_up_a_wait(join):
    (card,) = join(1)
    receives = [card.expect(peer, 1) for peer in range(1, 200)]
    with within(2), pytest.raises(DeadlineExceeded, match="waiting for ranks 1-199 in a test"):
        card.wait(*receives, seconds=0.5)


def test_a_card_does_not_talk_to_itself(join):
    (card,) = join(1)
    for call in (lambda: card.send(0, b"x"), lambda: card.expect(0, 1)):
        with pytest.raises(InvalidValue, match="rank 0 cannot exchange messages with itself; copy the array instead"):
            call()


# Close and abort


def test_closing_ends_the_waits_of_other_threads(join):
    a, b = join()
    waits = [start(lambda tag=tag: a.recv(1, 1, tag)) for tag in range(3)]
    eventually(lambda: len(a.mesh._turns._followers) == 2)
    with within(1):
        a.close()
        for wait in waits:
            with pytest.raises(LinkClosed, match="rank 0 has closed its mesh; make a new communicator"):
                wait.result(SOON)
    for call in (
        lambda: a.send(1, b"x"),
        lambda: a.recv(1, 1),
        lambda: a.wait(b.expect(0, 1)),
        lambda: a.mesh.advance([b.expect(0, 1)], a.group, seconds=0),
        lambda: a.open(9),
    ):
        with pytest.raises(LinkClosed, match="rank 0 has closed its mesh"):
            call()
    a.mesh.fail_group(a.group, SuperpodError("after the end"))
    a.mesh.close_group(a.group)


@pytest.fixture
def job(kind, tmp_path):
    """An abort switch, and a card that heeds it."""
    switch = AbortSwitch(tmp_path)
    link = make_links(kind, 1, tmp_path)[0]
    card = Card(link, dictionary(), abort=AbortFlag(tmp_path))
    yield switch, card
    card.close()
    switch.close()


def test_the_abort_flag_ends_every_wait_with_the_cause(job):
    switch, card = job
    other = card.open(GROUP + 1)
    waits = [start(lambda: card.recv(1, 1)), start(lambda: card.recv(2, 1, group=other))]
    eventually(lambda: card.mesh._turns._followers)
    switch.pull(Failure(5, "host", 4711, "was killed by SIGKILL"))
    with within(1):
        for wait in waits:
            with pytest.raises(PeerLost, match=r"^rank 5 \(host host, pid 4711\) was killed by SIGKILL$"):
                wait.result(SOON)
    with pytest.raises(PeerLost, match="was killed by SIGKILL"):
        card.expect(1, 1)


def test_the_end_of_the_launcher_ends_every_wait(job):
    switch, card = job
    waiting = start(lambda: card.recv(1, 1))
    eventually(lambda: card.mesh._turns.leading)
    switch.close()
    with within(1), pytest.raises(PeerLost, match=r"^the launcher has ended$"):
        waiting.result(SOON)


def test_the_abort_flag_is_seen_by_who_only_looks(job):
    switch, card = job
    receive = card.expect(1, 1)
    assert not card.mesh.advance([receive], card.group, seconds=0)
    switch.pull(Failure(5, "host", 4711, "was killed by SIGKILL"))
    card.mesh.advance([receive], card.group, seconds=0)
    with pytest.raises(PeerLost, match="was killed by SIGKILL"):
        card.mesh.advance([receive], card.group, seconds=0)


@pytest.mark.parametrize("kind", ["zmq-tcp"], indirect=True)
def test_after_the_abort_nobody_lingers_for_a_card_that_takes_nothing(job):
    switch, card = job
    with socket.create_server(("127.0.0.1", 0)) as mute:
        endpoint = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        card.mesh.link.connect(1, Address(endpoint, "00" * 8, host_id()).text())
        card.send(1, b"x")
        switch.pull(Failure(5, "host", 4711, "was killed by SIGKILL"))
        with within(2):
            card.close()


@pytest.mark.parametrize("kind", ["zmq-ipc"], indirect=True)
def test_the_abort_flag_ends_the_search_for_a_stranger(job):
    switch, card = job
    meeting = start(lambda: card.send(1, b"x"))
    switch.pull(Failure(5, "host", 4711, "was killed by SIGKILL"))
    with within(2.5), pytest.raises(PeerLost, match="was killed by SIGKILL"):
        meeting.result(SOON)


# Errors in the middle


def test_an_error_in_a_reduction_is_the_receivers(join):
    a, b = join(segment=1024, window=1 << 20)
    a.send(1, bytes(8000), text="sum")
    a.send(1, b"next")
    receive = b.expect(0, np.zeros(1000), reduce=np.bitwise_or, text="sum")  # there is no such thing for floats
    after = b.expect(0, 4)
    b.wait(after)  # another receive on the stream is not concerned
    assert after.into.tobytes() == b"next"
    with pytest.raises(SuperpodError, match=r"^TypeError in sum \(#0\) with what rank 0 sent: ufunc 'bitwise_or'"):
        b.wait(receive)


def test_an_interrupt_leaves_the_mesh_usable(join):
    a, b = join()
    main = threading.get_ident()
    other = start(lambda: b.recv(0, 1, tag=1))

    def interrupt() -> None:
        eventually(lambda: b.mesh._turns._followers)
        signal.pthread_kill(main, signal.SIGINT)

    interrupted = start(interrupt)
    with pytest.raises(KeyboardInterrupt):
        b.recv(0, 1)
    interrupted.result(SOON)
    assert not b.mesh._held()
    a.send(1, b"x")
    a.send(1, b"y", tag=1)
    assert b.recv(0, 1) == b"x"
    assert other.result(SOON) == b"y"


def test_an_interrupt_in_the_middle_of_a_message_ends_the_mesh(join_memory):
    a, b = join_memory()

    class Interrupting:
        def __call__(self, *args, **kwargs):
            raise KeyboardInterrupt

    a.send(1, b"x")
    with pytest.raises(KeyboardInterrupt):
        b.wait(b.expect(0, 1, reduce=Interrupting()))
    with pytest.raises(SuperpodError, match=r"^KeyboardInterrupt stopped rank 1 in the middle of a message"):
        b.recv(0, 1)
    with pytest.raises(SuperpodError, match="in the middle of a message"):
        b.send(0, b"x", group=b.open(GROUP + 1))


# Processes


def test_a_forked_child_does_not_disturb_its_parents_mesh(join_real, tmp_path):
    a, b = join_real()
    a.send(1, b"x")
    b.recv(0, 1)
    files = sorted(tmp_path.iterdir())
    held = start(lambda: b.recv(0, 1))  # another thread is in the mesh while the process forks
    eventually(lambda: b.mesh._turns.leading)

    def child() -> None:
        for card in (a, b):
            assert card.mesh.closed
            with pytest.raises(LinkClosed, match=f"this process was forked from rank {card.rank}, whose connections"):
                card.send(1 - card.rank, b"x")
            with pytest.raises(LinkClosed, match="forked"):
                card.recv(1 - card.rank, 1)
            card.close()
            card.mesh.link.close(1)

    with forked(child) as pid:
        assert exit_code(pid) == 0
    assert sorted(tmp_path.iterdir()) == files
    a.send(1, b"y")
    assert held.result(SOON) == b"y"
    b.send(0, b"z")
    assert a.recv(1, 1) == b"z"


def test_a_forked_child_can_have_a_mesh_of_its_own(real_kind, tmp_path):
    book = AddressBook(FolderStore(tmp_path / "store"), "test")
    card = Card(REAL[real_kind](0, tmp_path), book)

    def child() -> None:
        other = Card(REAL[real_kind](1, tmp_path), book)
        other.send(0, other.recv(0, 5)[::-1])
        other.close()

    with forked(child) as pid:
        card.send(1, b"hello")
        assert card.recv(1, 5) == b"olleh"
        assert exit_code(pid) == 0
    card.close()


def test_nothing_is_left_after_closing(kind, tmp_path):
    def cycle() -> None:
        cards = [Card(link, book) for book in [dictionary()] for link in make_links(kind, 3, tmp_path)]
        for card in cards:
            card.send((card.rank + 1) % 3, b"x")
        for card in cards:
            card.recv((card.rank - 1) % 3, 1)
            card.close()

    def held() -> tuple[int, int, list[str]]:
        return (
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
            [p.name for p in tmp_path.iterdir()],
        )

    cycle()
    before = held()
    with within(15):
        for _ in range(20):
            cycle()
    eventually(lambda: held() == before)  # threads of ZeroMQ end a moment later
