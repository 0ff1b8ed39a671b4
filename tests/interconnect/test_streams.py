from __future__ import annotations

import random
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpod.interconnect.streams import ANYONE, FRAME_COST, Receive, Send, Streams
from superpod.interconnect.wire import Header, Kind, decode

KEY = (1, 7, 0)  # a stream to and from rank 1, as rank 0 calls it


class Line:
    """A link to rank 1 that keeps what is posted."""

    fleeting = False

    def __init__(self) -> None:
        self.frames: deque[tuple[Header, bytes]] = deque()

    def post(self, peer: int, header: bytes, payload: bytes) -> None:
        self.frames.append((decode(header, len(payload)), bytes(payload)))

    def bytes_of(self, kind: Kind) -> int:
        return sum(len(payload) for header, payload in self.frames if header.kind is kind)


class End:
    """The streams of one card, and what they put on the line."""

    def __init__(self, segment: int = 1024, window: int = 4096) -> None:
        self.line = Line()
        self.mismatches: list[tuple[Receive, Header]] = []
        self.early: list[tuple[int, Header]] = []
        hears = [lambda *what: self.mismatches.append(what), lambda *what: self.early.append(what)]
        self.streams = Streams(self.line, segment, window, *hears)

    def send(self, data: bytes, tag: int = 0, text: str = "") -> Send:
        send = Send((1, 7, tag), Header(Kind.DATA, 7, tag, nbytes=len(data), text=text), memoryview(data))
        self.streams.send(send)
        return send

    def expect(self, nbytes: int, tag: int = 0, text: str = "", **how) -> Receive:
        receive = Receive((1, 7, tag), np.zeros(nbytes, np.uint8), None, 0, 0, text, **how)
        self.streams.receive(receive)
        return receive

    def get(self, header: Header, payload: bytes) -> None:
        """A frame from rank 1."""
        if header.kind is Kind.CREDIT:
            self.streams.credit((1, header.group, header.tag), header.nbytes)
        else:
            self.streams.arrive((1, header.group, header.tag), header, payload)


def carry(one: End, other: End) -> int:
    """Deliver everything that lies on the line from `one`; returns how many frames."""
    count = len(one.line.frames)
    for _ in range(count):
        other.get(*one.line.frames.popleft())
    return count


def settle(one: End, other: End) -> None:
    while carry(one, other) or carry(other, one):
        pass


# Window and credits


def test_a_window_is_never_exceeded_and_opens_with_credit():
    end = End(segment=1000, window=4000)  # 960 B in whole elements
    sends = [end.send(bytes(900)) for _ in range(10)]
    assert [s.done for s in sends].count(True) == 4000 // (900 + FRAME_COST)
    end.streams.credit(KEY, 900 + FRAME_COST)
    assert [s.done for s in sends].count(True) == 4
    end.streams.credit(KEY, 1)
    assert [s.done for s in sends].count(True) == 4
    end.streams.credit(KEY, 1 << 40)  # more than there can be is no more than all
    assert [s.done for s in sends].count(True) == 7


def test_one_frame_leaves_whatever_the_window():
    end = End(segment=4096, window=4096)
    assert end.send(bytes(4096)).done
    assert not end.send(b"").done


def test_streams_have_windows_of_their_own():
    end = End()
    for tag in range(5):
        end.send(bytes(10_000), tag)
    assert end.line.bytes_of(Kind.DATA) == end.streams.bytes_sent == 5 * 3 * 1024


def test_credit_goes_back_half_a_window_at_a_time():
    a, b = End(window=8192), End(window=8192)
    for _ in range(13):
        a.send(bytes(256))
        b.expect(256)
    carry(a, b)
    (credit,) = b.line.frames
    assert credit == (Header(Kind.CREDIT, 7, 0, nbytes=8 * (256 + FRAME_COST)), b"")


def test_what_nobody_has_asked_for_earns_no_credit():
    a, b = End(), End()
    a.send(bytes(100_000))
    carry(a, b)
    assert not b.line.frames


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 63, 64, 1000, 1024, 2048, 3000, 4096, 4097, 9000]), min_size=1, max_size=25),
    segment=st.sampled_from([64, 1000, 1024, 2048, 3000, 4096]),
    seed=st.integers(0, 1 << 32),
)
def test_everything_arrives_in_order_and_the_window_holds(sizes, segment, seed):
    chance, window = random.Random(seed), 4096
    a, b = End(segment, window), End(segment, window)
    messages = [chance.randbytes(size) for size in sizes]
    to_send, to_expect = deque(messages), deque(messages)
    receives: list[Receive] = []
    moves = {
        "send": lambda: to_send and a.send(to_send.popleft()),
        "expect": lambda: to_expect and receives.append(b.expect(len(to_expect.popleft()))),
        "there": lambda: a.line.frames and b.get(*a.line.frames.popleft()),
        "back": lambda: b.line.frames and a.get(*b.line.frames.popleft()),
    }
    while to_send or to_expect:
        moves[chance.choice(list(moves))]()
        for outlet in a.streams._outlets.values():
            assert outlet.outstanding <= max(window, segment + FRAME_COST)
    settle(a, b)
    assert all(receive.done for receive in receives)
    assert [receive.into.tobytes() for receive in receives] == messages
    assert a.streams.bytes_sent == sum(sizes)
    assert not a.mismatches + b.mismatches


# Matching


def test_a_message_goes_to_the_receive_that_was_posted_first():
    a, b = End(), End()
    a.send(b"abc")
    first, second = b.expect(3), b.expect(3)
    a.send(b"def")
    carry(a, b)
    assert (first.into.tobytes(), second.into.tobytes()) == (b"abc", b"def")


@pytest.mark.parametrize(
    "change", [{"text": "y"}, {"sequence": 1}, {"step": 1}, {"nbytes": 4}, {"offset": 1, "nbytes": 4}, {"nbytes": 2}]
)
def test_a_message_that_is_not_the_awaited_one(change):
    end = End()
    receive = end.expect(3, text="x")
    header = Header(Kind.DATA, 7, 0, nbytes=3, text="x")._replace(**change)
    end.get(header, b"abc")
    assert end.mismatches == [(receive, header)]
    assert (receive.got, receive.into.tobytes()) == (0, bytes(3))


@pytest.mark.parametrize("change", [{"nbytes": 20}, {"offset": 0}, {"offset": 8}, {"sequence": 1}, {"step": 2}])
def test_a_segment_that_is_not_the_awaited_one(change):
    end = End()
    receive = end.expect(10)
    first = Header(Kind.DATA, 7, 0, nbytes=10)
    end.get(first, b"01234")
    end.get(first._replace(offset=5)._replace(**change), b"56789")
    assert [who for who, _ in end.mismatches] == [receive]
    assert receive.into.tobytes() == b"01234" + bytes(5)


def test_half_an_element_is_not_awaited():
    end = End()
    receive = Receive(KEY, np.zeros(4, np.float64), np.add, 0, 0, "")
    end.streams.receive(receive)
    end.get(Header(Kind.DATA, 7, 0, nbytes=32), b"12345")
    assert [who for who, _ in end.mismatches] == [receive]


def test_a_reduction_adds_segment_by_segment():
    a, b = End(segment=64), End(segment=64)
    receive = Receive(KEY, np.ones(100, np.int64), np.add, 0, 0, "")
    b.streams.receive(receive)
    a.send(np.arange(100).tobytes())
    settle(a, b)
    assert (receive.into == np.arange(100) + 1).all()


def test_whoever_sends_first_is_taken_in_the_order_of_the_receives():
    end = End()
    receives = [end_receive(end, {1, 2}), end_receive(end, {2}), end_receive(end, {1, 3})]
    end.streams.arrive((3, 7, 0), Header(Kind.DATA, 7, 0, nbytes=1), b"3")
    end.streams.arrive((1, 7, 0), Header(Kind.DATA, 7, 0, nbytes=1), b"1")
    end.streams.arrive((1, 7, 0), Header(Kind.DATA, 7, 0, nbytes=1), b"x")
    assert [r.peer for r in receives] == [1, ANYONE, 3]
    assert receives[1].awaited == {2}
    late = end_receive(end, {1, 2, 3})
    assert (late.peer, late.into.tobytes()) == (1, b"x")


def end_receive(end: End, candidates: set[int]) -> Receive:
    receive = Receive((ANYONE, 7, 0), np.zeros(1, np.uint8), None, 0, 0, "", frozenset(candidates))
    end.streams.receive(receive)
    return receive


# Giving up


def test_a_receive_that_is_given_up_leaves_the_message_to_the_next():
    end = End()
    receive = end.expect(3)
    end.streams.cancel([receive])
    end.get(Header(Kind.DATA, 7, 0, nbytes=3), b"abc")
    assert receive.into.tobytes() == bytes(3)
    assert end.expect(3).into.tobytes() == b"abc"


def test_a_receive_that_is_given_up_half_way_takes_its_message_with_it():
    a, b = End(), End()
    receive, after = b.expect(10_000), b.expect(3)
    a.send(b"\1" * 10_000)
    a.send(b"abc")
    b.get(*a.line.frames.popleft())
    b.streams.cancel([receive])
    settle(a, b)
    assert (receive.got, receive.into.sum()) == (1024, 1024)
    assert after.into.tobytes() == b"abc"
    assert not b.mismatches


def test_a_receive_that_is_not_at_the_front_is_just_taken_out():
    a, b = End(), End()
    first, second, third = b.expect(2000), b.expect(3), b.expect(3)
    a.send(b"\1" * 2000)
    b.get(*a.line.frames.popleft())
    b.streams.cancel([second])
    a.send(b"abc")
    settle(a, b)
    assert (first.done, second.done, third.into.tobytes()) == (True, False, b"abc")


def test_a_send_that_is_given_up_leaves_if_it_has_not_begun():
    a, b = End(), End()
    first, second, third = a.send(bytes(5000)), a.send(b"x" * 7), a.send(b"y" * 7)
    a.streams.cancel([second])
    receives = [b.expect(5000), b.expect(7)]
    settle(a, b)
    assert (first.done, second.done, third.done) == (True, False, True)
    assert receives[1].into.tobytes() == b"y" * 7


def test_giving_up_what_is_done_or_unknown_is_no_error():
    a, b = End(), End()
    a.send(b"abc")
    receive, anyone = b.expect(3), end_receive(b, {2})
    settle(a, b)
    b.streams.cancel([receive, anyone, anyone, a.send(b"x"), Send((9, 9, 9), Header(Kind.DATA, 9, 9), memoryview(b""))])
    assert (9, 9, 9) not in b.streams._inlets


def test_an_error_while_a_message_is_put_in_its_place_is_that_receives_alone():
    a, b = End(), End()
    receive = Receive(KEY, np.zeros(1000, np.float64), np.bitwise_and, 0, 0, "all_reduce")
    b.streams.receive(receive)
    after = b.expect(3)
    a.send(bytes(8000), text="all_reduce")
    a.send(b"abc")
    settle(a, b)
    assert "TypeError in all_reduce (#0) with what rank 1 sent: ufunc 'bitwise_and' not supp" in str(receive.error)
    assert not receive.done
    assert after.into.tobytes() == b"abc"


# Memory


def test_a_group_is_forgotten_whole():
    end = End()
    end.send(bytes(10_000))
    end.expect(3, tag=1)
    end_receive(end, {1})
    other = Send((1, 8, 0), Header(Kind.DATA, 8, 0, nbytes=9000), memoryview(bytes(9000)))
    end.streams.send(other)
    end.streams.forget(7)
    assert (list(end.streams._outlets), list(end.streams._inlets), end.streams._open) == ([(1, 8, 0)], [], [])
    end.streams.credit(KEY, 100)  # on its way when the group was closed
    assert KEY not in end.streams._outlets
    end.streams.credit((1, 8, 0), 1 << 20)
    end.streams.credit((1, 8, 0), 1 << 20)
    assert other.done


def test_a_tag_for_every_message_costs_no_memory():
    a, b = End(), End()
    for tag in range(10_000):
        a.send(b"abc", tag)
        carry(a, b)
        assert b.expect(3, tag).done
        carry(b, a)
    assert len(b.streams._inlets) <= 1024
    assert len(a.streams._outlets) <= 1024


def test_streams_in_use_are_not_swept_away():
    a, b = End(), End()
    early, late = range(1500), range(1500, 3000)
    for tag in early:
        a.send(tag.to_bytes(2, "little") * 2000, tag)  # more than the window: half of it is still here
    settle(a, b)
    waiting = [b.expect(2, tag) for tag in late]
    receives = [b.expect(4000, tag) for tag in early]
    for tag in late:
        a.send(tag.to_bytes(2, "little"), tag)
    settle(a, b)
    assert all(r.into.tobytes() == tag.to_bytes(2, "little") * 2000 for tag, r in zip(early, receives, strict=True))
    assert all(r.into.tobytes() == tag.to_bytes(2, "little") for tag, r in zip(late, waiting, strict=True))
