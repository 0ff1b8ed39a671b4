"""Who may come to share memory with a card, what torn memory does, and what is left of links that are gone."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import random
import socket
import stat
import struct
from typing import Any

import pytest
from cards import SHM, Card, dictionary, exit_code, forked, together, within
from shm_cards import HEADER, MIB, descriptors, goes_on, line_to, shared_mappings, taken, token_of

from superpod.interconnect import shm_sockets
from superpod.interconnect.errors import InvalidValue, PeerLost
from superpod.interconnect.link import Broken, Refused
from superpod.interconnect.shm_link import ShmLink, possible
from superpod.interconnect.shm_memory import Memory
from superpod.interconnect.shm_ring import HEAD
from superpod.interconnect.shm_sockets import Message

pytestmark = pytest.mark.skipif(not possible(), reason="there is no such link on this machine")


# Strangers


@pytest.mark.parametrize(
    "greeting", [b"", b"!", b"ring", b"GET / HTTP/1.1\r\n\r\n", bytes(32), b"spodshm1" + bytes(24)]
)
def test_who_does_not_know_the_token_is_refused(links, shm_kind, tmp_path, greeting):
    (link,) = links(1)
    before = descriptors()
    with line_to(link) as line:
        line.send(greeting)
        if greeting:
            (event,) = taken(link, 1)
            assert "greeting " in str(event.error)
            assert line.recv(10) == b""
        goes_on(link, shm_kind, tmp_path)
    assert descriptors() == before


def test_who_brings_descriptors_without_the_token_leaves_none_behind(links):
    (link,) = links(1)
    with line_to(link) as line:
        before = descriptors()
        hello = shm_sockets.hello(bytes(16), 1, 0)
        socket.send_fds(line, [hello], [0, 1, 2])
        (event,) = taken(link, 1)
        assert "it does not know this card's token" in str(event.error)
        assert descriptors() == before


@pytest.mark.parametrize("brought", ["nothing", "pipes", "small memory", "unsealed memory", "no slot"])
def test_the_token_with_the_wrong_things(links, shm_kind, tmp_path, brought):
    (link,) = links(1)
    memory, fd = Memory.create(1 << 16)
    _, inbox = Memory.create(1 << 20)
    loose = os.memfd_create("loose")
    os.ftruncate(loose, 1 << 16)
    pipe = os.pipe()
    bell = os.eventfd(0)
    fds, slot, why = {
        "nothing": ([], 0, r"greeting of rank 5 came without its memory; raise `ulimit -n`"),
        "pipes": ([pipe[0], pipe[1], bell], 0, "descriptor is not of shared memory"),
        "small memory": ([fd, fd, bell], 0, "shared memory of 65536 B must have"),
        "unsealed memory": ([loose, inbox, bell], 0, "shared memory whose size is not sealed"),
        "no slot": ([fd, inbox, bell], 1 << 20, "slot 1048576 does not exist"),
    }[brought]
    before = descriptors()
    with line_to(link) as line:
        shm_sockets.send(line, Message(shm_sockets.hello(token_of(link), 5, slot), fds))
        (event,) = taken(link, 1)
        assert why.replace("\\", "") in str(event.error)
    goes_on(link, shm_kind, tmp_path)
    assert descriptors() == before
    for descriptor in (fd, inbox, loose, *pipe, bell):
        os.close(descriptor)
    del memory


def test_a_socket_of_another_type_gets_nowhere(links, shm_kind, tmp_path):
    (link,) = links(1)
    with pytest.raises(OSError, match=r"wrong type for socket|Connection refused"):
        line_to(link, socket.SOCK_STREAM)
    goes_on(link, shm_kind, tmp_path)


def test_a_stranger_that_stays_silent_hides_no_death(pair):
    a, b = pair
    with line_to(a):
        a.take()
        b.close(0)
        with within(1):
            assert taken(a, 1) == [Broken(1)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused():
    """At a name without a file; a file is in a directory that other users cannot enter."""
    link = ShmLink(0)

    def come() -> None:
        os.setuid(65534)
        with line_to(link) as line, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            shm_sockets.send(line, Message(shm_sockets.hello(token_of(link), 5, 0), [0, 1, 2]))
            assert line.recv(10) == b""

    with forked(come) as pid:
        (event,) = taken(link, 1)
        assert f"process {pid} belongs to user 65534, this card to user 0" in str(event.error)
        assert exit_code(pid) == 0
    link.close(0)


@pytest.mark.parametrize("seed", range(5))
def test_garbage_from_who_knows_the_token_ends_its_connection_only(pair, links, shm_kind, tmp_path, seed):
    a, b = pair
    (c,) = links(1)
    c.connect(0, a.address)
    c.post(0, HEADER, b"abc")
    assert taken(a, 1)[0].peer == 2
    b._routes[0].line.send(random.Random(seed).randbytes(40))
    event, broken = taken(a, 2)
    assert re_match(event, "from rank 1: message of 40 B is not superpod's")
    assert broken.peer == 1
    assert broken.how == "wrote into shared memory what is not superpod's, so its connection was closed"
    c.post(0, HEADER, b"on")
    assert taken(a, 1)[0].payload == b"on"


def words_of(ring: Any) -> memoryview:
    """What is written before the frames: where the sender is, where it went on, where the receiver is."""
    return ring.memory[:HEAD].cast("Q")


def re_match(event: object, text: str) -> bool:
    return isinstance(event, Refused) and text in str(event.error)


def test_a_torn_ring_ends_the_peer_after_what_was_whole(pair):
    a, b = pair
    for i in range(3):
        b.post(0, HEADER, b"%d" % i)
    ring = b._routes[0]._outgoing
    place = HEAD + words_of(ring)[0] % ring.capacity
    b.post(0, HEADER, b"torn")
    ring.memory[place : place + 4] = struct.pack("<I", 1 << 30)
    b.post(0, HEADER, b"behind it")
    events = taken(a, 5)
    assert [event.payload for event in events[:3]] == [b"0", b"1", b"2"]
    assert re_match(events[3], "from rank 1: torn ring: frame of 1073741824 + 4 B at")
    assert events[4].peer == 1
    a.post(1, HEADER, b"dropped")
    assert a.take() is None
    assert taken(b, 1) == [Broken(0)]


def test_a_mesh_says_who_tore_its_ring(links):
    a, b = links(2)
    book = dictionary()
    book.publish(1, b.address)
    card = Card(a, book)
    card.send(1, b"abc")
    taken(b, 1)
    b.post(0, HEADER, b"abc")
    card.recv(1, 3)
    words_of(b._routes[0]._outgoing)[0] = 12345
    b._routes[0]._tell()
    with within(1), pytest.raises(PeerLost, match="rank 1 wrote into shared memory what is not superpod's"):
        card.recv(1, 1)
    card.close()


def test_a_sender_notices_that_its_ring_was_torn(pair):
    a, b = pair
    words_of(a._routes[1]._incoming)[8] = 1 << 50  # the head
    for _ in range(10):
        b.post(0, HEADER, bytes(200_000))
    assert re_match(taken(b, 1)[0], "from rank 0: torn ring: it was read up to")
    assert taken(b, 1)[0].peer == 0


# Descriptors, files, other machines


def test_nothing_is_left_of_many_peers(links, shm_kind, tmp_path):
    (link,) = links(1)
    goes_on(link, shm_kind, tmp_path)

    before = (descriptors(), shared_mappings(), sorted(tmp_path.iterdir()))
    for _ in range(50):
        other = SHM[shm_kind](10, tmp_path)
        other.connect(0, link.address)
        with line_to(link):
            link.take()
        other.close(0)
    while link.take() is not None:
        pass
    del other
    assert (descriptors(), sorted(tmp_path.iterdir())) == (before[0], before[2])
    assert shared_mappings() <= before[1] + 2


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EMFILE, "Too many open files; raise `ulimit -n`"), (errno.EFBIG, "File too large; raise `ulimit -f`")],
)
def test_no_descriptors_left(links, monkeypatch, number, words):
    a, b = links(2)

    def none_left(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "memfd_create", none_left)
    with pytest.raises(InvalidValue, match=f"^rank 1 cannot connect to another card: {words}"):
        b.connect(0, a.address)
    with pytest.raises(InvalidValue, match=f"rank 2 cannot connect to another card: {words}"):
        ShmLink(2)


def test_no_memory_for_another_ring(pair, monkeypatch):
    _, b = pair

    def none_left(*_: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "memfd_create", none_left)
    with pytest.raises(InvalidValue, match=r"^no more memory can be shared with rank 0, which has yet to read \d+ B"):
        b.post(0, HEADER, bytes(2 * MIB))


def test_socket_files_are_private_and_go_with_the_link(tmp_path):
    made = [ShmLink(rank, directory=tmp_path) for rank in (0, 0)]  # the same rank in two jobs or meshes
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert all(stat.S_ISSOCK(file.stat().st_mode) for file in files)
    for link, left in zip(made, (1, 0), strict=True):
        link.close(0)
        assert len(list(tmp_path.iterdir())) == left


def test_a_directory_with_too_long_a_name(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(InvalidValue, match=r"is longer than the \d+ bytes that the system allows; set TMPDIR or XDG"):
        ShmLink(0, directory=deep)


def test_a_directory_that_does_not_exist(tmp_path):
    before = descriptors()
    with pytest.raises(InvalidValue, match=r"rank 0 cannot listen at .*/nowhere/s0-.*: No such file or directory"):
        ShmLink(0, directory=tmp_path / "nowhere")
    assert descriptors() == before


def test_a_card_of_another_host():
    link = ShmLink(0)
    with pytest.raises(InvalidValue, match=r"rank 1 is on another host .*, with which no memory can be shared"):
        link.connect(1, "@superpod-x#" + "00" * 16 + "#other")
    link.close(0)


def test_another_machine(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not possible()
    with pytest.raises(InvalidValue, match=r"needs Linux on x86-64, this is Linux on aarch64; set SUPERPOD_LINK=zmq"):
        ShmLink(0)


def test_closing_all_at_once_does_not_linger(links):
    made = links(5)
    book = dictionary()
    cards = [Card(link, book) for link in made]
    for card in cards:
        for peer in range(5):
            if peer != card.rank:
                card.send(peer, bytes(2 * MIB))
    with within(2):
        together(*[card.close for card in cards])
