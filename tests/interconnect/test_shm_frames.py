"""Frames over shared memory: rings that are full, peers that leave or are killed, cards that sleep."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import socket
import time

import numpy as np
import pytest
from cards import SHM, SOON, Card, eventually, exit_code, forked, start, together, within
from shm_cards import HEADER, MIB, shared_mappings, taken

from folder_store import FolderStore
from superpod.interconnect import shm_sockets
from superpod.interconnect.errors import PeerLost
from superpod.interconnect.link import Broken
from superpod.interconnect.rendezvous import AddressBook
from superpod.interconnect.shm_link import ShmLink, possible
from superpod.interconnect.shm_sockets import Message

pytestmark = pytest.mark.skipif(not possible(), reason="there is no such link on this machine")

LOST = 15.0  # seconds that a lost wake-up costs where it must not happen


# Full rings


def test_what_nobody_reads_waits_in_larger_rings(pair):
    a, b = pair
    frames = [bytes([i]) * (i * 40_000) for i in range(60)]  # 70 MiB
    for frame in frames:
        b.post(0, HEADER, frame)
    assert [event.payload for event in taken(a, 60)] == frames
    b.post(0, HEADER, b"on")
    assert taken(a, 1)[0].payload == b"on"
    assert b.take() is None


def test_a_frame_that_is_larger_than_the_ring(pair):
    a, b = pair
    big = np.random.default_rng(0).bytes(20 * MIB)
    for _ in range(3):
        b.post(0, HEADER, big)
        assert taken(a, 1)[0].payload == big


def test_who_leaves_at_once_leaves_what_it_sent(links):
    """Nobody has looked yet; neither at the connection nor at the rings that followed."""
    a, b = links(2)
    b.connect(0, a.address)
    frames = [bytes([i]) * 300_000 for i in range(30)]
    for frame in frames:
        b.post(0, HEADER, frame)
    with within(1):
        b.close(SOON)
    events = taken(a, 31)
    assert [event.payload for event in events[:30]] == frames
    assert events[30] == Broken(1)


def test_who_leaves_without_having_heard_the_answer_leaves_what_it_sent(links):
    """Linux then says first that the connection was reset, and only then what it had carried."""
    a, b = links(2)
    b.connect(0, a.address)
    b.post(0, HEADER, b"first")
    assert taken(a, 1)[0].payload == b"first"
    a.post(1, HEADER, b"never read")
    frames = [bytes([i]) * 300_000 for i in range(30)]
    for frame in frames:
        b.post(0, HEADER, frame)
    b.close(SOON)
    events = taken(a, 31)
    assert [event.payload for event in events[:30]] == frames
    assert events[30] == Broken(1)


def test_a_ring_that_was_outgrown_is_given_back(pair):
    a, b = pair
    before = shared_mappings()
    for _ in range(20):
        b.post(0, HEADER, bytes(MIB))
    taken(a, 20)
    b.post(0, HEADER, b"on")
    taken(a, 1)
    assert shared_mappings() <= before + 2  # both ends of the latest one


@pytest.mark.parametrize("code", [errno.ETOOMANYREFS, errno.EAGAIN])
def test_what_cannot_be_said_now_is_said_later(links, monkeypatch, code):
    """A user may have so many descriptors on their way as one process may have open."""
    a, b = links(2)
    refusals = 5
    send = shm_sockets.send

    def refusing(line: socket.socket, message: Message) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            raise OSError(code, os.strerror(code))
        send(line, message)

    monkeypatch.setattr(shm_sockets, "send", refusing)
    b.connect(0, a.address)
    for i in range(20):
        b.post(0, HEADER, bytes([i]) * 200_000)
    waiting = start(lambda: [event.payload[:1] for event in taken(a, 20)])
    with within(SOON):
        while not waiting.done():
            b.take()
            b.wait(0.1)
    assert waiting.result() == [bytes([i]) for i in range(20)]


def test_closing_says_what_is_yet_to_be_said(links, monkeypatch):
    a, b = links(2)
    refusals = [0] * 5
    send = shm_sockets.send

    def refusing(line: socket.socket, message: Message) -> None:
        if refusals:
            refusals.pop()
            raise OSError(errno.ETOOMANYREFS, "too many")
        send(line, message)

    monkeypatch.setattr(shm_sockets, "send", refusing)
    b.connect(0, a.address)
    b.post(0, HEADER, b"abc")
    b.close(SOON)
    assert [getattr(event, "payload", event) for event in taken(a, 2)] == [b"abc", Broken(1)]


def test_more_connections_than_a_queue_takes(links, monkeypatch):
    monkeypatch.setattr(shm_sockets, "BACKLOG", 1)
    (a,) = links(1)
    others = links(8)
    for link in others:
        link.connect(0, a.address)
        link.post(0, HEADER, b"abc")
    waiting = start(lambda: {event.peer for event in taken(a, 8)})
    with within(SOON):
        while not waiting.done():
            for link in others:
                link.take()
            time.sleep(0.001)
    assert waiting.result() == set(range(1, 9))


# Breaks


def test_breaks_are_told_of_the_right_peer(links):
    a, outgoing, incoming, both = links(4)
    a.connect(1, outgoing.address)
    a.connect(3, both.address)
    incoming.connect(0, a.address)
    both.connect(0, a.address)
    for peer, link in ((1, outgoing), (3, both)):
        a.post(peer, b"h", b"")
        assert taken(link, 1)[0].peer == 0
    incoming.post(0, b"h", b"")
    both.post(0, b"h", b"")
    assert sorted(event.peer for event in taken(a, 2)) == [2, 3]
    for link in (both, incoming, outgoing):
        link.close(0)
        assert taken(a, 1) == [Broken(link.rank)]
        a.wait(0.01)
        assert a.take() is None


def test_a_connection_in_the_queue_keeps_its_peer_from_being_lost_too_early(links):
    """Both have connected, and rank 1 sends on its own connection, which rank 0 has not taken in when it hears of the
    end of the other one."""
    a, b = links(2)
    a.connect(1, b.address)
    b.connect(0, a.address)
    b.post(0, HEADER, b"abc")
    a._sockets.unregister(a._listener)  # so that rank 0 hears of the end first
    b.close(SOON)
    assert [getattr(event, "payload", event) for event in taken(a, 2)] == [b"abc", Broken(1)]


def test_a_card_that_dies_is_missed_though_its_child_lives(links, shm_kind, tmp_path):
    """A forked child has all descriptors of its parent, until it is told to let go of them."""
    (link,) = links(1)

    def victim() -> None:
        other = SHM[shm_kind](1, tmp_path)
        other.connect(0, link.address)
        other.post(0, HEADER, b"abc")
        if os.fork() == 0:
            signal.pause()
        signal.pause()

    with forked(victim) as pid:
        assert taken(link, 1)[0].payload == b"abc"
        eventually(lambda: children(pid))
        (child,) = children(pid)
        try:
            os.kill(pid, signal.SIGKILL)
            with within(2):
                assert taken(link, 1) == [Broken(1)]
        finally:
            os.kill(child, signal.SIGKILL)


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as text:
        return [int(word) for word in text.read().split()]


# Killed


def run_until_killed(rank: int, n: int, kind: str, folder) -> None:
    """A ring of messages, round and round."""
    book = AddressBook(FolderStore(folder / "store"), "test")
    (folder / "job").mkdir(exist_ok=True)
    card = Card(SHM[kind](rank, folder / "job"), book)
    for i in range(1 << 30):
        send = card.send((rank + 1) % n, bytes(1 << (i % 22)))
        card.wait(send, card.expect((rank - 1) % n, 1 << (i % 22)))
        if i == 100:
            (folder / f"runs{rank}").touch()


def addresses(folder) -> list[str]:
    return [file.read_text() for file in (folder / "store").iterdir()]


def listening() -> str:
    with open("/proc/net/unix") as lines:
        return lines.read()


def test_nothing_is_left_when_all_are_killed(shm_kind, tmp_path):
    before, n = sorted(os.listdir("/dev/shm")), 4
    with contextlib.ExitStack() as stack:
        pids = [
            stack.enter_context(forked(lambda rank=rank: run_until_killed(rank, n, shm_kind, tmp_path)))
            for rank in range(n)
        ]
        eventually(lambda: all((tmp_path / f"runs{rank}").exists() for rank in range(n)))
        names = [name.rsplit("#", 2)[0] for name in addresses(tmp_path)]
        assert all(name in listening() for name in names)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    left = [file.name for file in (tmp_path / "job").iterdir()]
    assert len(left) == (n if shm_kind == "shm-file" else 0)  # their names, which go with the job's directory
    assert sorted(os.listdir("/dev/shm")) == before
    assert not any(name in listening() for name in names)


@pytest.mark.parametrize("nbytes", [8, 3 * MIB])
def test_a_killed_peer_is_named_and_what_it_sent_is_whole(shm_kind, tmp_path, nbytes):
    book = AddressBook(FolderStore(tmp_path / "store"), "test")

    def victim() -> None:
        card = Card(SHM[shm_kind](1, tmp_path), book)
        i = 0
        while True:
            card.wait(card.send(0, bytes([i % 256]) * nbytes))
            i += 1

    with forked(victim) as pid:
        card = Card(SHM[shm_kind](0, tmp_path), book)
        got: list[bytes] = []

        def receive() -> None:
            while True:
                got.append(card.recv(1, nbytes))
                if len(got) == 20:
                    os.kill(pid, signal.SIGKILL)

        with within(SOON), pytest.raises(PeerLost, match="rank 1 died: its connection broke without a farewell"):
            receive()
        assert len(got) >= 20
        assert all(message == bytes([i % 256]) * nbytes for i, message in enumerate(got))
        card.close()


# Sleeping


def test_no_wake_up_is_lost_between_processes(shm_kind, tmp_path, monkeypatch):
    """Both sleep after every message; a lost wake-up would cost a second each."""
    count = 5000
    book = AddressBook(FolderStore(tmp_path / "store"), "test")
    monkeypatch.setattr("superpod.interconnect.shm_link.YIELDING", 0.0)

    def answer() -> None:
        link = SHM[shm_kind](1, tmp_path)
        book.publish(1, link.address)
        link._patience = 0.0
        for _ in range(count):
            (event,) = taken(link, 1)
            link.post(0, event.header, event.payload)
        link.close(1)

    with forked(answer) as pid:
        link = SHM[shm_kind](0, tmp_path)
        link._patience = 0.0
        link.connect(1, book.find(1, SOON))
        slow = 0
        for i in range(count):
            begin = time.monotonic()
            link.post(1, b"%d" % i, b"x")
            assert taken(link, 1)[0].header == b"%d" % i
            slow += time.monotonic() - begin > 0.9
        assert slow == 0
        assert exit_code(pid) == 0
        link.close(0)


def test_threads_of_several_cards_talk_across_each_other(shm_kind, tmp_path, monkeypatch):
    """Rings are replaced on the way, and a lost wake-up would cost LOST seconds."""
    monkeypatch.setattr("superpod.interconnect.mesh.PROBE_AFTER", LOST)
    monkeypatch.setattr("superpod.interconnect.mesh._SLICE", LOST)
    monkeypatch.setattr("superpod.interconnect.shm_link.YIELDING", 0.0)
    n, book = 3, AddressBook(FolderStore(tmp_path / "store"), "test")

    def talk(card: Card, tag: int) -> None:
        chance = random.Random(tag)  # the same on every card
        for i in range(500):
            size, shift = chance.choice((0, 8, 100, 5000, 40_000)), chance.randrange(1, n)
            send = card.send((card.rank + shift) % n, bytes([i % 256]) * size, tag)
            receive = card.expect((card.rank - shift) % n, size, tag)
            card.wait(send, receive)
            assert receive.into.tobytes() == bytes([i % 256]) * size

    def run(rank: int) -> None:
        link = ShmLink(rank, directory=tmp_path if shm_kind == "shm-file" else None, ring=8192)
        link._patience = 0.0
        card = Card(link, book, segment=4096, window=16384)
        together(*[lambda tag=tag: talk(card, tag) for tag in range(3)])
        card.close()

    with contextlib.ExitStack() as stack, within(LOST):
        pids = [stack.enter_context(forked(lambda rank=rank: run(rank))) for rank in range(n)]
        assert [exit_code(pid) for pid in pids] == [0] * n


def test_who_sleeps_uses_no_processor(links):
    (link,) = links(1)
    link.wait(0.01)
    before = time.process_time()
    link.wait(0.3)
    assert time.process_time() - before < 0.1
