"""What the ZeroMQ link assumes of ZeroMQ, and what strangers can do to it."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import struct

import pytest
import zmq
from cards import GROUP, SOON, ZMQ, Card, dictionary, eventually, forked, start, together, within

from folder_store import FolderStore
from superpod.interconnect.errors import InvalidValue, PeerLost
from superpod.interconnect.link import Arrival, Broken, Refused
from superpod.interconnect.rendezvous import AddressBook
from superpod.interconnect.wire import MAX_HEADER, Header, Kind, encode
from superpod.interconnect.zmq_link import ZmqLink

HEADER = encode(Header(Kind.DATA, GROUP, 0, nbytes=3))


def parts_of(address: str) -> tuple[str, bytes]:
    endpoint, token, _ = address.rsplit("#", 2)
    return endpoint, bytes.fromhex(token)


@pytest.fixture
def links(zmq_kind, tmp_path):
    """`links(n)`: n more links; closed after the test."""
    made: list[ZmqLink] = []

    def make(n: int) -> list[ZmqLink]:
        made.extend(ZMQ[zmq_kind](len(made), tmp_path) for _ in range(n))
        return made[-n:]

    yield make
    for link in made:
        link.close(0)


@pytest.fixture
def card(zmq_kind, tmp_path):
    card = Card(ZMQ[zmq_kind](0, tmp_path), dictionary())
    yield card
    card.close()


@contextlib.contextmanager
def stranger(address: str, socket_type: int, routing_id: bytes = b""):
    """A ZeroMQ socket of another program, connected to a card."""
    context = zmq.Context()
    client = context.socket(socket_type)
    client.setsockopt(zmq.LINGER, 0)
    client.setsockopt(zmq.IPV6, 1)
    if routing_id:
        client.setsockopt(zmq.ROUTING_ID, routing_id)
    client.connect(parts_of(address)[0])
    try:
        yield client
    finally:
        context.destroy()


def raw_socket(address: str) -> socket.socket:
    endpoint = parts_of(address)[0]
    kind, _, place = endpoint.partition("://")
    if kind == "tcp":
        return socket.create_connection(("127.0.0.1", int(place.rpartition(":")[2])), SOON)
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(SOON)
    line.connect("\0" + place[1:] if place.startswith("@") else place)
    return line


def taken(link: ZmqLink, count: int) -> list[Arrival | Refused | Broken]:
    """The next `count` things that happen."""
    events: list[Arrival | Refused | Broken] = []
    with within(SOON):
        while len(events) < count:
            if (event := link.take()) is not None:
                events.append(event)
            else:
                link.wait(1)
    return events


def nothing_more(link: ZmqLink) -> None:
    link.wait(0.02)
    assert link.take() is None


def traffic_goes_on(card: Card, links_or_kind: str, tmp_path) -> None:
    other = ZMQ[links_or_kind](3, tmp_path)
    other.connect(0, card.mesh.link.address)
    other.post(0, HEADER, b"abc")
    assert card.recv(3, 3) == b"abc"
    other.close(1)


# Strangers


@pytest.mark.parametrize("socket_type", [zmq.DEALER, zmq.REQ])
def test_a_program_without_the_token_is_refused(card, zmq_kind, tmp_path, socket_type):
    with stranger(card.mesh.link.address, socket_type) as client:
        client.send_multipart([HEADER, b"abc"])
        card.until(lambda: card.mesh.refused)
        assert "it does not know this card's token" in str(card.mesh.refused[0])
        traffic_goes_on(card, zmq_kind, tmp_path)
    assert len(card.mesh.refused) == 1


@pytest.mark.parametrize("routing_id", [b"i1", b"o1", b"i" + bytes(8) + b"1", b"x" * 255])
def test_a_false_name_is_refused(card, zmq_kind, tmp_path, routing_id):
    with stranger(card.mesh.link.address, zmq.DEALER, routing_id) as client:
        client.send(HEADER)
        card.until(lambda: card.mesh.refused)
        assert "from an unknown sender" in str(card.mesh.refused[0])
        (other,) = [ZMQ[zmq_kind](1, tmp_path)]
        card.mesh.link.connect(1, other.address)  # which gives the connection a name
        card.mesh.link.post(1, HEADER, b"abc")
        assert taken(other, 1)[0].payload == b"abc"
        other.close(0)


def test_a_socket_of_another_type_gets_nowhere(card, zmq_kind, tmp_path):
    with stranger(card.mesh.link.address, zmq.PUSH) as client:
        client.send(HEADER, zmq.NOBLOCK) if client.poll(50, zmq.POLLOUT) else None
        traffic_goes_on(card, zmq_kind, tmp_path)
    assert card.mesh.refused == []


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([b""], "message of 1 parts from rank 5 is not superpod's"),
        ([b"\1"], "message of 1 parts from rank 5 is not superpod's"),
        ([b"\3\0abc", b"p", b"q"], "message of 3 parts from rank 5 is not superpod's"),
        ([b"\4\0abc"], "torn message from rank 5: header of 4 B in 5 B"),
        ([b"\2\0abc", b"payload"], "torn message from rank 5: header of 2 B in 5 B"),
        ([b"\0\0"], "header is not msgpack"),
        (
            [struct.pack("<H", len(HEADER)) + HEADER, b"four"],
            "torn frame: payload of 4 B at offset 0 of a message of 3",
        ),
        ([struct.pack("<H", MAX_HEADER + 1) + bytes(MAX_HEADER + 1)], f"header of {MAX_HEADER + 1} B is longer"),
    ],
)
def test_the_right_token_with_a_wrong_message(card, zmq_kind, tmp_path, parts, why):
    name = b"i" + parts_of(card.mesh.link.address)[1] + b"5"
    with stranger(card.mesh.link.address, zmq.DEALER, name) as client:
        client.send_multipart(parts)
        card.until(lambda: card.mesh.refused)
        assert why in str(card.mesh.refused[0])
        client.send(struct.pack("<H", len(HEADER)) + HEADER + b"abc")
        assert card.recv(5, 3) == b"abc"
        traffic_goes_on(card, zmq_kind, tmp_path)


@pytest.mark.parametrize("garbage", ["http", "ones", "zeros", "greeting", "version 1", *range(4)])
def test_garbage_on_the_line(card, zmq_kind, tmp_path, garbage):
    greeting = b"\xff" + bytes(8) + b"\x7f\3\0NULL"
    known = {"http": b"GET / HTTP/1.1\r\n\r\n" * 9, "ones": b"\xff" * 200, "zeros": bytes(200)}
    known["greeting"] = greeting + bytes(64 - len(greeting)) + b"\4\xff" * 50
    known["version 1"] = b"\6\0stale" + b"\4\0abc" * 100  # frames of ZeroMQ 2, which say nothing of their connection
    data = known.get(garbage) or random.Random(garbage).randbytes(500)
    with raw_socket(card.mesh.link.address) as line, contextlib.suppress(OSError):  # hung up on in the middle
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        while line.recv(4096):
            card.look()
    traffic_goes_on(card, zmq_kind, tmp_path)


def test_a_frame_longer_than_any_segment_is_not_taken_in(card, zmq_kind, tmp_path):
    """A right handshake, then the announcement of a gibibyte."""
    ready = b"\5READY\x0bSocket-Type\0\0\0\6DEALER"
    with raw_socket(card.mesh.link.address) as line:
        line.sendall(b"\xff" + bytes(8) + b"\x7f\3\0NULL" + bytes(48) + b"\4" + bytes([len(ready)]) + ready)
        line.sendall(b"\2" + (1 << 30).to_bytes(8, "big") + b"x")
        while line.recv(4096):  # until ZeroMQ hangs up
            pass
    traffic_goes_on(card, zmq_kind, tmp_path)


def test_a_stranger_that_stays_silent_does_not_hide_a_death(card, zmq_kind, tmp_path):
    with raw_socket(card.mesh.link.address):
        other = ZMQ[zmq_kind](1, tmp_path)
        card.mesh.link.connect(1, other.address)
        other.close(0)
        with within(3), pytest.raises(PeerLost, match="rank 1"):
            card.recv(1, 1)


def test_a_stranger_that_has_spoken_does_not_delay_the_news_of_a_death(card, zmq_kind, tmp_path):
    other = ZMQ[zmq_kind](1, tmp_path)
    other.connect(0, card.mesh.link.address)
    other.post(0, HEADER, b"abc")
    assert card.recv(1, 3) == b"abc"
    with stranger(card.mesh.link.address, zmq.DEALER) as client:
        client.send(b"x")
        card.until(lambda: card.mesh.refused)
        other.close(0)
        with within(2), pytest.raises(PeerLost, match="rank 1 died"):
            card.recv(1, 1)


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
    assert a.peers() == [1, 2, 3]
    with stranger(a.address, zmq.DEALER) as client:
        client.send(b"x")
        assert isinstance(taken(a, 1)[0], Refused)
    for link in (both, incoming, outgoing):
        link.close(0)
        assert taken(a, 1) == [Broken(link.rank)]
        nothing_more(a)


def test_what_comes_in_just_before_a_break_is_heard_of_is_taken_first(links, monkeypatch):
    a, b = links(2)
    b.connect(0, a.address)
    b.post(0, b"h", b"x")
    assert taken(a, 1)[0].payload == b"x"
    b.post(0, b"h", b"y")
    b.close(SOON)
    poll = zmq.zmq_poll
    eventually(lambda: len(poll(a._sources, 0)) == 2)
    looks = [[(a._monitor, zmq.POLLIN)]]  # the first look at the socket finds nothing yet
    monkeypatch.setattr(
        zmq, "zmq_poll", lambda what, *how: looks.pop() if looks and what is a._sources else poll(what, *how)
    )
    first = a.take()
    assert (first.payload, taken(a, 1)) == (b"y", [Broken(1)])


def test_a_descriptor_that_a_stranger_had_before_is_not_taken_for_its(zmq_kind, tmp_path):
    """The stranger and rank 1 come from another process, so that the kernel gives both the same number here."""
    link = ZMQ[zmq_kind](0, tmp_path)
    book = AddressBook(FolderStore(tmp_path / "store"), "test")

    def come() -> None:
        other = ZMQ[zmq_kind](1, tmp_path)
        for _ in range(3):
            with raw_socket(link_address) as line:
                line.sendall(b"GET / HTTP/1.1\r\n\r\n" * 9)
                line.shutdown(socket.SHUT_WR)
                while line.recv(4096):
                    pass
        other.connect(0, link_address)
        other.post(0, b"h", b"x")
        other._settle()
        book.publish(1, "posted")
        book.find(2, SOON)
        other.post(0, b"h", b"y")
        other._settle()
        os._exit(0)

    link_address = link.address
    with forked(come):
        book.find(1, SOON)
        assert [event.payload for event in taken(link, 1)] == [b"x"]
        nothing_more(link)
        book.publish(2, "go on")
        assert [getattr(event, "payload", event) for event in taken(link, 2)] == [b"y", Broken(1)]
    link.close(0)


def test_what_is_posted_before_the_peer_listens_is_kept(zmq_kind, tmp_path):
    link = ZMQ[zmq_kind](0, tmp_path)
    host = link.address.rpartition("#")[2]
    endpoint = {"zmq-ipc": f"ipc://{tmp_path}/late", "zmq-abstract": f"ipc://@late-{os.getpid()}"}.get(zmq_kind)
    if endpoint is None:  # a port that was free a moment ago
        with socket.create_server(("127.0.0.1", 0)) as server:
            endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    link.connect(1, f"{endpoint}#{'00' * 8}#{host}")
    for i in range(5000):  # more than ZeroMQ would keep with its marks
        link.post(1, b"h", i.to_bytes(2, "little"))
    eventually(lambda: link.take() or link._connections.refusals)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as late:
        late.bind(endpoint)
        assert late.poll(SOON * 1000)
        got = [late.recv_multipart()[1] for _ in range(5000)]
    assert got == [b"\1\0h" + i.to_bytes(2, "little") for i in range(5000)]
    link.close(0)


def test_many_connections_come_and_go_unseen(links):
    """More than ZeroMQ keeps news of, were they limited: then its thread would stand still until somebody looks."""
    a, b = links(2)
    for _ in range(1500):
        raw_socket(a.address).close()
    b.connect(0, a.address)
    b.post(0, b"h", b"x")
    with within(5):
        b.close(SOON)  # returns when ZeroMQ's thread on the other side has taken it
    events = taken(a, 2)
    assert (events[0].payload, events[1]) == (b"x", Broken(1))


# Closing


def test_closing_all_at_once_does_not_linger(join_zmq):
    """A farewell to somebody who has just gone must not be waited for."""
    cards = join_zmq(5)
    for card in cards:
        for peer in range(5):
            if peer != card.rank:
                card.send(peer, b"x")
    for card in cards:
        for peer in range(5):
            if peer != card.rank:
                card.recv(peer, 1)
    with within(2):
        together(*[card.close for card in cards])


def test_closing_one_after_the_other_does_not_linger(join_zmq):
    cards = join_zmq(4)
    for card in cards[1:]:
        card.send(0, b"x")
        cards[0].recv(card.rank, 1)
        cards[0].send(card.rank, b"x")
    with within(2):
        for card in cards:
            card.close()


def test_socket_files_are_private_and_go_with_the_link(tmp_path):
    links = [ZmqLink(rank, directory=tmp_path) for rank in (0, 0)]  # the same rank in two jobs or meshes
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert all(stat.S_ISSOCK(file.stat().st_mode) for file in files)
    links[0].close(0)
    assert len(list(tmp_path.iterdir())) == 1
    links[1].close(0)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_too_long_a_name(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with pytest.raises(InvalidValue, match=r"is longer than the \d+ bytes that the system allows; set TMPDIR or XDG"):
        ZmqLink(0, directory=deep)


def test_a_directory_that_does_not_exist(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(InvalidValue, match=r"cannot listen at ipc://.*/nowhere/r0-.*: No such file or directory"):
            ZmqLink(0, directory=tmp_path / "nowhere")
    eventually(lambda: len(os.listdir("/proc/self/fd")) == before)


def test_a_card_of_another_host(tmp_path):
    link = ZmqLink(0)
    with pytest.raises(
        InvalidValue,
        match=r"rank 1 is on another host .*, and this card was not told .* LOCAL_WORLD_SIZE",
    ):
        link.connect(1, "tcp://10.0.0.1:5#" + "00" * 8 + "#other")
    link.close(0)


def test_waking_a_closed_link_is_no_error(links):
    (link,) = links(1)
    waiting = start(lambda: link.wait(SOON))
    link.wake()
    waiting.result(SOON)
    link.close(0)
    link.wake()
