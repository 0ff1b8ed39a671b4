"""What cards tell those who wait for them in vain: that they have closed the group, and which messages they send."""

from __future__ import annotations

import numpy as np
import pytest
from cards import GROUP, SOON, start, within

from superpod.interconnect.errors import CollectiveMismatch, PeerLost


def test_a_group_that_one_card_has_closed(join):
    a, b, c = join(3)
    b.send(0, b"x", text="early")
    c.send(0, b"y")
    waiting = start(lambda: a.recv(1, 1, tag=3, text="a call"))
    a.recv(2, 1)
    b.mesh.close_group(b.group)
    with (
        within(2),
        pytest.raises(PeerLost, match=r"^rank 1 has closed group g7, but rank 0 needs it in a call \(#0\)$"),
    ):
        waiting.result(SOON)


def test_a_card_that_connects_to_one_that_has_closed_the_group_is_told_when_it_asks(join):
    a, b = join()
    b.mesh.close_group(b.group)  # there was nobody to tell
    other = b.open(GROUP + 1)
    answering = start(lambda: b.recv(0, 1, group=other))
    with within(3), pytest.raises(PeerLost, match=r"^rank 1 has closed group g7, but rank 0 needs it in a call"):
        a.recv(1, 1, text="a call")
    a.send(1, b"x", group=a.open(GROUP + 1))
    assert answering.result(SOON) == b"x"


def test_what_was_sent_before_a_group_was_closed_comes_and_others_go_on_in_it(join):
    a, b, c = join(3, segment=1024, window=1 << 20)
    c.send(0, b"hello")
    a.recv(2, 5)
    b.send(0, bytes(100_000))
    b.mesh.close_group(b.group)
    assert a.recv(1, 100_000) == bytes(100_000)
    a.send(2, b"still")
    assert c.recv(0, 5) == b"still"
    c.send(0, b"open")
    assert a.recv(2, 4) == b"open"
    assert a.group.failure is None


def test_a_farewell_to_a_group_does_not_concern_the_next_one_of_its_name(join):
    a, b = join()
    a.send(1, b"x")
    assert b.recv(0, 1) == b"x"
    a.mesh.close_group(a.group)
    a.group = a.open(GROUP)  # before rank 1 has closed the first one
    b.mesh.close_group(b.group)
    b.group = b.open(GROUP)
    b.send(0, b"y")
    a.send(1, b"z")
    assert a.recv(1, 1) == b"y"
    assert b.recv(0, 1) == b"z"
    assert not a.group.left


def test_a_disagreement_is_a_better_error_than_a_closed_group(join_memory):
    a, b = join_memory()
    b.send(0, b"x", tag=5)
    waiting = start(lambda: a.recv(1, 1))
    b.mesh.fail_group(b.group, CollectiveMismatch("two calls"))
    b.mesh.close_group(b.group)
    with pytest.raises(CollectiveMismatch, match="two calls"):
        waiting.result(SOON)


def test_a_send_that_waits_for_credit_tells_in_which_call(join):
    a, b = join(segment=1024, window=2048)
    sending = start(lambda: a.wait(a.send(1, bytes(10_000), text="a call", sequence=3), seconds=SOON))
    b.until(lambda: b.probes)
    assert b.probes[0] == (0, "a call")
    assert b.recv(0, 10_000, text="a call", sequence=3) == bytes(10_000)
    sending.result(SOON)


def test_a_send_to_a_card_that_has_closed_the_group_ends(join):
    a, b = join(segment=1024, window=2048)
    send = a.send(1, bytes(10_000), text="a call")
    b.until(lambda: b.mesh.streams._inlets)
    b.mesh.close_group(b.group)
    with (
        within(2),
        pytest.raises(PeerLost, match=r"^rank 1 has closed group g7, but rank 0 needs it in a call \(#0\)$"),
    ):
        a.wait(send)
    assert np.array_equal(b.mesh.link.peers(), [0])
