"""What every link must do, seen through a mesh: order, sizes, flow control, farewells, foreign frames."""

from __future__ import annotations

import random
import tracemalloc

import msgpack
import numpy as np
import pytest
from cards import GROUP, SOON, Card, dictionary, make_links, start, together, within

from superpod.interconnect.errors import PeerLost
from superpod.interconnect.link import Arrival, Broken
from superpod.interconnect.streams import FRAME_COST
from superpod.interconnect.wire import MAX_HEADER, Header, Kind, encode
from superpod.interconnect.zmq_link import INLINE

KIB = 1 << 10
SEGMENT, WINDOW = 64 * KIB, 256 * KIB


def pattern(nbytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


# Order


def test_order_per_peer_and_tag(join):
    receiver, *senders = join(3)
    expected = {(s.rank, tag): [f"{s.rank} {tag} {i}".encode() for i in range(40)] for s in senders for tag in range(3)}
    for i in range(40):
        for (rank, tag), messages in expected.items():
            senders[rank - 1].send(0, messages[i], tag)
    for (rank, tag), messages in reversed(expected.items()):  # in another order than they were sent
        assert [receiver.recv(rank, len(m), tag) for m in messages] == messages


def test_receives_may_be_posted_before_anything_is_sent(join):
    a, b = join()
    receives = [b.expect(0, 4, tag=i % 2) for i in range(10)]
    for i in range(10):
        a.send(1, i.to_bytes(4, "little"), tag=i % 2)
    b.wait(*receives)
    assert [int(r.into.view(np.uint32)[0]) for r in receives] == list(range(10))


def test_from_whoever_sends_first(join):
    receiver, *senders = join(4)
    receives = [receiver.mesh.receive_any(receiver.group, range(4), 5, np.empty(1, np.uint8), "") for _ in range(3)]
    for sender in senders:
        sender.send(0, bytes([sender.rank]), tag=5)
    receiver.wait(*receives)
    assert sorted(r.peer for r in receives) == [1, 2, 3]
    assert all(r.into[0] == r.peer for r in receives)


def test_two_cards_that_connect_at_once_lose_nothing(join):
    a, b = join()
    for i in range(100):  # neither looks at what has come in
        a.send(1, bytes([i]))
        b.send(0, bytes([i]))
    for one, other in ((a, 1), (b, 0)):
        assert b"".join(one.recv(other, 1) for _ in range(100)) == bytes(range(100))


# Sizes


@pytest.mark.parametrize(
    "nbytes",
    [
        *(0, 1, 63, 64, 65, INLINE - 1, INLINE, INLINE + 1),
        *(SEGMENT - 1, SEGMENT, SEGMENT + 1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 17),
    ],
)
def test_sizes(join, nbytes):
    a, b = join(segment=SEGMENT, window=WINDOW)
    data = pattern(nbytes)
    together(
        lambda: a.wait(a.send(1, data), a.send(1, b"end")),
        lambda: (b.recv(0, nbytes) == data and b.recv(0, 3) == b"end") or pytest.fail("what arrives is not what left"),
    )
    assert a.mesh.streams.bytes_sent == nbytes + 3


@pytest.mark.parametrize("dtype", ["f4", "c16", "g", "?"])
def test_segments_fall_between_elements(join, dtype):
    a, b = join(segment=1000, window=5000)
    array = np.arange(3001).astype(dtype)
    total = np.ones(3001, dtype)
    add = np.logical_or if dtype == "?" else np.add
    together(
        lambda: a.wait(a.send(1, array.view(np.uint8).data)),
        lambda: b.wait(b.expect(0, total, reduce=add)),
    )
    np.testing.assert_array_equal(total, add(array, np.ones(3001, dtype)))


def test_256_mib(join_real):
    a, b = join_real()
    array = np.arange(32 << 20, dtype=np.int64)
    into = np.zeros_like(array)
    together(lambda: a.wait(a.send(1, array.view(np.uint8).data)), lambda: b.wait(b.expect(0, into)))
    assert (into == array).all()


# Flow control


def test_many_small_messages_in_both_directions_at_once(join):
    cards = join(segment=SEGMENT, window=SEGMENT)
    count = 10_000

    def talk(card: Card) -> None:
        peer = 1 - card.rank
        sends = [card.send(peer, i.to_bytes(4, "little")) for i in range(count)]
        got = np.empty(count, np.uint32)
        card.wait(*[card.expect(peer, got[i : i + 1]) for i in range(count)], *sends, seconds=2 * SOON)
        assert (got == np.arange(count)).all()

    together(*[lambda card=card: talk(card) for card in cards])


def test_a_slow_receiver_bounds_what_is_under_way(join):
    a, b = join(segment=SEGMENT, window=WINDOW)
    messages = [pattern(50_000, i) for i in range(40)]
    sends = [a.send(1, m) for m in messages]
    a.look()
    b.look()  # taking it in is not consuming it
    a.look()
    assert WINDOW - SEGMENT - 2 * FRAME_COST < a.mesh.streams.bytes_sent <= WINDOW
    assert not sends[-1].done
    done = start(lambda: a.wait(*sends))
    assert [b.recv(0, len(m)) for m in messages] == messages
    done.result(SOON)


def test_empty_messages_are_bounded_too(join):
    a, b = join(segment=SEGMENT, window=SEGMENT)
    sends = [a.send(1, b"") for _ in range(1000)]
    assert sum(s.done for s in sends) == SEGMENT // FRAME_COST
    done = start(lambda: a.wait(*sends))
    b.wait(*[b.expect(0, 0) for _ in sends])
    done.result(SOON)


def test_a_window_that_only_one_segment_fits_moves_on(join):
    a, b = join(segment=WINDOW, window=WINDOW)
    sizes = [100, WINDOW, 3000, 2 * WINDOW, 0, WINDOW // 2, WINDOW - 1]
    done = start(lambda: a.wait(*[a.send(1, pattern(n, n)) for n in sizes]))
    assert all(b.recv(0, n) == pattern(n, n) for n in sizes)
    done.result(SOON)


def test_large_messages_received_in_the_opposite_order(join):
    a, b = join(segment=SEGMENT, window=WINDOW)
    one, two = pattern(5 * WINDOW, 1), pattern(5 * WINDOW, 2)
    done = start(lambda: a.wait(a.send(1, one, tag=1), a.send(1, two, tag=2)))
    assert b.recv(0, len(two), tag=2) == two
    assert b.recv(0, len(one), tag=1) == one
    done.result(SOON)


def test_a_payload_may_be_changed_once_the_send_is_done(join):
    a, b = join()
    for nbytes in (10, INLINE + 1, 200_000):
        data = bytearray(pattern(nbytes))
        send = a.mesh.send(a.group, 1, 0, memoryview(data))
        a.wait(send)
        data[:] = bytes(nbytes)
        assert b.recv(0, nbytes) == pattern(nbytes)


# Farewells


def test_what_was_sent_before_the_farewell_arrives(join):
    a, b = join()
    messages = [pattern(n, n) for n in (0, 1, 5000, 300_000, 3_000_000)]
    a.wait(*[a.send(1, m) for m in messages])
    leaving = start(a.close)
    assert [b.recv(0, len(m)) for m in messages] == messages
    leaving.result(SOON)
    with pytest.raises(PeerLost, match=r"^rank 0 left the job, but rank 1 needs it in more \(#3\)$"):
        b.recv(0, 1, text="more", sequence=3)


def test_what_was_sent_before_the_farewell_arrives_though_both_had_connected(join):
    a, b = join(window=64 << 20)
    a.send(1, b"x")
    b.send(0, b"y")  # two connections, and each sends on its own
    assert (a.recv(1, 1), b.recv(0, 1)) == (b"y", b"x")
    big = pattern(1 << 20)
    a.wait(*[a.send(1, big) for _ in range(30)])
    leaving = start(a.close)
    assert all(b.recv(0, len(big)) == big for _ in range(30))
    leaving.result(SOON)
    with pytest.raises(PeerLost, match="rank 0 left the job"):
        b.recv(0, 1)


def test_a_message_that_was_not_waited_for_ends_with_the_farewell(join):
    a, b = join(segment=SEGMENT, window=WINDOW)
    a.send(1, pattern(4 * WINDOW))
    a.close()
    with pytest.raises(PeerLost, match="rank 0 left the job"):
        b.recv(0, 4 * WINDOW)


def test_who_leaves_is_missed_only_by_those_who_need_it(join):
    a, b, c = join(3)
    apart = {card.rank: card.open(GROUP + 1) for card in (b, c)}
    for card in (b, c):
        a.send(card.rank, b"hello")
        assert card.recv(0, 5) == b"hello"
    a.close()
    b.send(2, b"on", group=apart[1])
    assert c.recv(1, 2, group=apart[2]) == b"on"
    with pytest.raises(PeerLost, match="rank 0 left the job"):
        b.recv(0, 1)
    c.send(1, b"and on", group=apart[2])
    assert b.recv(2, 6, group=apart[1]) == b"and on"


def test_sending_to_who_has_left_is_an_error_once_it_needs_the_other(join):
    a, b = join(segment=SEGMENT, window=WINDOW)
    b.send(0, b"x")
    a.recv(1, 1)
    b.close()
    with pytest.raises(PeerLost, match="rank 1 left the job"):
        a.wait(a.send(1, pattern(2 * WINDOW)))


def test_a_card_that_has_gone_before_it_was_met(join):
    a, b = join()
    b.close()
    with within(3), pytest.raises(PeerLost, match="rank 1 is gone: nobody listens at its address"):
        a.recv(1, 1)


def test_closing_twice_is_closing_once(join):
    a, b = join()
    a.send(1, b"x")
    together(a.close, a.close)
    a.close()
    assert a.mesh.closed
    assert b.recv(0, 1) == b"x"


# Foreign and torn frames

GOOD = Header(Kind.DATA, GROUP, 0, nbytes=3)


def fields(**changes: object) -> bytes:
    values = {"version": 1, "kind": 1, "group": GROUP, "tag": 0, "sequence": 0, "step": 0, "nbytes": 3, "offset": 0}
    return msgpack.packb([*(values | changes).values(), ""])


TORN = {
    "garbage": (b"\xc1garbage", b"abc", "header is not msgpack"),
    "empty": (b"", b"", "header is not msgpack"),
    "truncated": (encode(GOOD)[:-1], b"abc", "header is not msgpack"),
    "more behind it": (encode(GOOD) + b"x", b"abc", "header is not msgpack"),
    "oversized": (bytes(MAX_HEADER + 1), b"abc", f"header of {MAX_HEADER + 1} B is longer than the {MAX_HEADER} B"),
    "another program's": (msgpack.packb({"a": 1}), b"abc", "header is not"),
    "wrong length": (msgpack.packb([1, 2, 3]), b"abc", "header is not a list of 9 fields"),
    "wrong version": (fields(version=2), b"abc", "header has version 2, this card speaks 1; install one superpod"),
    "unknown kind": (fields(kind=99), b"abc", "header has the unknown kind 99"),
    "wrong type": (fields(tag="0"), b"abc", "header has a field of the wrong type"),
    "negative sequence": (fields(sequence=-1), b"abc", "header has a number out of bounds: Header"),
    "offset beyond the end": (fields(offset=1), b"abc", "torn frame: payload of 3 B at offset 1 of a message of 3 B"),
    "no payload": (fields(), b"", "torn frame: payload of 0 B at offset 0 of a message of 3 B"),
    "payload of a farewell": (fields(kind=3), b"abc", "BYE frame carries a payload of 3 B"),
    "huge": (fields(nbytes=1 << 60), b"abc", "header has a number out of bounds: Header"),
    "huge array": (b"\xdd\xff\xff\xff\xff", b"abc", "header is not msgpack"),
    "huge text": (b"\xdb\xff\xff\xff\xff", b"abc", "header is not msgpack"),
}


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_frame_is_refused_and_the_others_go_on(kind, tmp_path, torn):
    header, payload, why = TORN[torn]
    raw, link = make_links(kind, 2, tmp_path)
    book = dictionary()
    book.publish(0, raw.address)
    card = Card(link, book)
    raw.connect(1, link.address)
    try:
        raw.post(1, encode(GOOD), b"one")
        assert card.recv(0, 3) == b"one"
        raw.post(1, header, payload)
        tracemalloc.start()
        card.until(lambda: card.mesh.refused)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert f"from rank 0: {why}" in str(card.mesh.refused[0])
        assert peak < 1 << 20
        raw.post(1, encode(GOOD), b"two")
        assert card.recv(0, 3) == b"two"
        assert len(card.mesh.refused) == 1
    finally:
        card.close()
        raw.close(1)


def test_only_the_first_refused_messages_are_kept(kind, tmp_path, caplog):
    raw, link = make_links(kind, 2, tmp_path)
    card = Card(link, dictionary())
    raw.connect(1, link.address)
    for _ in range(300):
        raw.post(1, b"garbage", b"")
    raw.post(1, encode(GOOD), b"end")
    assert card.recv(0, 3) == b"end"
    assert len(card.mesh.refused) == 100
    assert [record.message[:29] for record in caplog.records] == ["rank 1 refused a message: fro"]
    card.close()
    raw.close(1)


@pytest.mark.parametrize("seed", range(5))
def test_random_frames_do_no_harm(kind, tmp_path, seed):
    """Mutations of valid headers; what happens to pass as valid may fail the group, but nothing else may happen."""
    chance = random.Random(seed)
    raw, link = make_links(kind, 2, tmp_path)
    card = Card(link, dictionary())
    other = card.open(GROUP + 1)
    raw.connect(1, link.address)
    good = encode(Header(Kind.DATA, GROUP + 1, 0, nbytes=3))
    for _ in range(200):
        header = bytearray(encode(GOOD))
        for _ in range(chance.randint(1, 4)):
            header[chance.randrange(len(header))] = chance.randrange(256)
        if header[1:3] != bytes([1, Kind.BYE]):  # a farewell is a farewell
            raw.post(1, bytes(header), b"abc"[: chance.randrange(4)])
    raw.post(1, good, b"end")
    assert card.recv(0, 3, group=other) == b"end"
    card.close()
    raw.close(1)


# The link itself


def test_a_link_delivers_before_it_tells_of_a_break(kind, tmp_path):
    a, b = make_links(kind, 2, tmp_path)
    a.connect(1, b.address)
    for i in range(1000):
        a.post(1, b"%d" % i, bytes(i * 10))
    closing = start(lambda: a.close(SOON))
    events = []
    with within(SOON):
        while not any(isinstance(e, Broken) for e in events):
            b.wait(0.1)
            while (event := b.take()) is not None:
                events.append(event)
    closing.result(SOON)
    assert [(e.peer, bytes(e.header), len(e.payload)) for e in events[:-1]] == [
        (0, b"%d" % i, i * 10) for i in range(1000)
    ]
    assert isinstance(events[0], Arrival)
    assert events[-1] == Broken(0)
    b.post(0, b"late", b"dropped")
    assert b.take() is None
    b.close(0)


def test_a_wake_up_ends_the_wait_or_the_next_one(kind, tmp_path):
    (link,) = make_links(kind, 1, tmp_path)
    link.wake()
    with within(5):
        link.wait(SOON)
        waiting = start(lambda: link.wait(SOON))
        link.wake()
        waiting.result(SOON)
    link.close(0)
    link.close(0)


def test_a_link_knows_whom_it_reaches(kind, tmp_path):
    a, b, c = make_links(kind, 3, tmp_path)
    assert not a.reaches(1)
    a.connect(1, b.address)
    c.connect(0, a.address)
    c.post(0, b"h", b"")
    while a.take() is None:
        a.wait(1)
    assert a.peers() == [1, 2]
    assert a.reaches(1)
    assert a.reaches(2)
    for link in (a, b, c):
        link.close(1)
