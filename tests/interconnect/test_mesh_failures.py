"""How waits end that cannot be fulfilled: a peer dies or leaves, a group fails, two ranks disagree."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from cards import (
    GROUP,
    REAL,
    SOON,
    Card,
    eventually,
    exit_code,
    forked,
    start,
    within,
)

from folder_store import FolderStore
from superpod.interconnect.errors import (
    CollectiveMismatch,
    DeadlineExceeded,
    InvalidValue,
    LinkClosed,
    PeerLost,
    RemoteError,
    SuperpodError,
)
from superpod.interconnect.link import Broken
from superpod.interconnect.rendezvous import AddressBook

MIB = 1 << 20


# Death


def test_a_peer_killed_in_the_middle_of_a_message(real_kind, tmp_path):
    book = AddressBook(FolderStore(tmp_path / "store"), "test")

    def victim() -> None:
        card = Card(REAL[real_kind](1, tmp_path), book)
        card.wait(card.send(0, bytes(256 * MIB), text="large", sequence=4), seconds=60)

    with forked(victim) as pid:
        card = Card(REAL[real_kind](0, tmp_path), book)
        receive = card.expect(1, 256 * MIB, text="large", sequence=4)
        waiting = start(lambda: card.wait(receive))
        eventually(lambda: receive.got > 0)
        os.kill(pid, signal.SIGKILL)
        with (
            within(1),
            pytest.raises(PeerLost, match=r"^rank 1 died: .* without a farewell, but rank 0 needs it in large \(#4\)$"),
        ):
            waiting.result(SOON)
        assert 0 < receive.got < 256 * MIB
        with pytest.raises(PeerLost, match="rank 1 died"):  # the group is over
            card.send(1, b"x")
        card.close()


def test_a_peer_that_dies_while_nobody_looks(real_kind, tmp_path):
    """It has connected, sent and died before the first look: what it sent comes, and then the news."""
    book = AddressBook(FolderStore(tmp_path / "store"), "test")
    card = Card(REAL[real_kind](0, tmp_path), book)

    def victim() -> None:
        other = Card(REAL[real_kind](1, tmp_path), book)
        other.send(0, b"last words")
        other.mesh.link.close(SOON)  # they have left the process; there is no farewell
        os._exit(3)

    with forked(victim) as pid:
        assert exit_code(pid) == 3
        assert card.recv(1, 10) == b"last words"
        with within(1), pytest.raises(PeerLost, match="rank 1 died"):
            card.recv(1, 1)
    card.close()


def test_everybody_hears_of_a_death_from_whoever_noticed(join):
    """Rank 2 never talked to rank 0, so only rank 1 can tell it."""
    a, b, c = join(3)
    a.send(1, b"x")
    b.recv(0, 1)
    b.send(2, b"y")
    c.recv(1, 1)
    waiting = start(lambda: c.recv(1, 1))
    a.close()
    with pytest.raises(PeerLost, match=r"^rank 0 left the job, but rank 1 needs it in a call \(#0\)$"):
        b.recv(0, 1, text="a call")
    with within(1), pytest.raises(PeerLost, match=r"^rank 0 left the job, but rank 1 needs it in a call \(#0\)$"):
        waiting.result(SOON)


def test_a_broken_connection_without_a_farewell(join_memory):
    a, b = join_memory()
    receive = b.expect(0, 10)
    b.mesh.link.push(Broken(0))
    with pytest.raises(PeerLost, match=r"^rank 0 died: its connection broke without a farewell, but rank 1 needs it"):
        b.wait(receive)
    assert a.mesh.closed is False


def test_whoever_may_send_must_all_be_gone(join):
    a, b, c = join(3)
    for card in (b, c):
        card.send(0, b"x")
        a.recv(card.rank, 1)
    anyone = a.mesh.receive_any(a.group, [1, 2], 9, np.empty(1, np.uint8), "recv")
    b.close()
    a.until(lambda: 1 in a.mesh._peers.lost)
    assert not a.mesh.advance([anyone], a.group, seconds=0)
    c.close()
    with pytest.raises(PeerLost, match="rank 1 left the job, but rank 0 needs it in recv"):
        a.wait(anyone)


# Failure of a group


def test_a_failure_reaches_all_cards_that_are_connected(join):
    cards = join(4)
    for card in cards[1:]:
        card.send(0, b"x")
        cards[0].recv(card.rank, 1)
    waits = [start(lambda card=card: card.recv(0, 1)) for card in cards[1:3]]
    cards[3].mesh.fail_group(cards[3].group, SuperpodError("out of paper"))
    with within(1):
        for wait in waits:  # through rank 0, which merely looks
            cards[0].until(wait.done)
            with pytest.raises(RemoteError, match=r"^rank 3 failed with SuperpodError: out of paper$"):
                wait.result(SOON)
    with pytest.raises(RemoteError, match="out of paper"):
        cards[0].send(1, b"x")
    with pytest.raises(SuperpodError, match=r"^out of paper$"):
        cards[3].expect(0, 1)


def test_the_first_failure_counts(join):
    a, b = join()
    a.send(1, b"x")
    b.recv(0, 1)
    a.mesh.fail_group(a.group, SuperpodError("first"))
    a.mesh.fail_group(a.group, SuperpodError("second"))
    b.until(lambda: b.group.failure)
    b.mesh.fail_group(b.group, SuperpodError("third"))
    a.look()
    assert (str(a.group.failure), str(b.group.failure)) == ("first", "rank 0 failed with SuperpodError: first")


def test_a_failure_ends_only_its_own_group(join):
    a, b = join()
    others = [card.open(GROUP + 1) for card in (a, b)]
    a.send(1, b"x")
    b.recv(0, 1)
    a.mesh.fail_group(a.group, SuperpodError("no"))
    a.send(1, b"fine", group=others[0])
    assert b.recv(0, 4, group=others[1]) == b"fine"
    assert b.group.failure is not None


def test_a_failure_is_there_when_a_late_card_opens_the_group(join):
    a, b = join()
    doomed = a.open(GROUP + 1)
    a.send(1, b"x")
    b.recv(0, 1)
    a.mesh.fail_group(doomed, SuperpodError("too early"))
    a.send(1, b"y")
    b.recv(0, 1)  # so the news is there
    late = b.open(GROUP + 1)
    with pytest.raises(RemoteError, match="rank 0 failed with SuperpodError: too early"):
        b.send(0, b"x", group=late)


def test_who_has_not_heard_of_a_failure_is_told_when_it_asks(join):
    """They were not connected when rank 0 failed."""
    a, b = join()
    a.mesh.fail_group(a.group, SuperpodError("alone"))
    waiting = start(lambda: b.recv(0, 1))
    with within(2):
        a.until(waiting.done)
    with pytest.raises(RemoteError, match="rank 0 failed with SuperpodError: alone"):
        waiting.result(SOON)


def test_who_waits_in_a_group_that_is_closed_hears_of_it(join):
    a, b = join()
    waiting = start(lambda: b.recv(0, 1))
    eventually(lambda: b.mesh._turns.leading)
    b.mesh.close_group(b.group)
    with within(1), pytest.raises(LinkClosed, match="rank 1 has closed group g7; make a new communicator"):
        waiting.result(SOON)
    a.send(1, b"for nobody")
    with pytest.raises(LinkClosed, match="rank 1 has closed group g7"):
        b.send(0, b"x")
    again = b.open(GROUP)
    a.send(1, b"one more")
    del again


def test_what_comes_late_for_a_closed_group_is_dropped(join):
    a, b = join()
    other = [card.open(GROUP + 1) for card in (a, b)]
    b.mesh.close_group(b.group)
    for tag in range(50):
        a.send(1, b"x", tag=tag)
    a.mesh.fail_group(a.group, SuperpodError("no"))
    a.send(1, b"end", group=other[0])
    assert b.recv(0, 3, group=other[1]) == b"end"
    assert [key[1] for key in b.mesh.streams._inlets] == [GROUP + 1]
    assert b.open(GROUP).failure is None  # a group of the same name that is made later is another one


def test_a_group_has_one_end_on_a_card(join_memory):
    (card,) = join_memory(1)
    with pytest.raises(InvalidValue, match="group g7 exists on rank 0; give the new one another name"):
        card.open(GROUP)


# Mismatch


@pytest.mark.parametrize(
    ("sent", "expected", "message"),
    [
        (
            {"text": "all_reduce of 10", "sequence": 3},
            {"text": "all_reduce of 12", "sequence": 3},
            "in group g7: rank 0 called all_reduce of 10 (#3), but rank 1 called all_reduce of 12 (#3)",
        ),
        (
            {"text": "barrier", "sequence": 1},
            {"text": "barrier", "sequence": 2},
            "in group g7: rank 0 called barrier (#1), but rank 1 called barrier (#2)",
        ),
        (
            {"text": "send", "step": 1},
            {"text": "send", "step": 1, "into": 16},
            "in group g7: rank 0 called send (#0) with 8 B at 0 in step 1, "
            "but rank 1 called send (#0) with 16 B at 0 in step 1",
        ),
        (
            {"text": "send", "step": 1},
            {"text": "send", "step": 2},
            "in group g7: rank 0 called send (#0) with 8 B at 0 in step 1, "
            "but rank 1 called send (#0) with 8 B at 0 in step 2",
        ),
    ],
)
def test_a_mismatch_names_both_calls_on_both_sides(join, sent, expected, message):
    a, b = join()
    waiting = start(lambda: a.recv(1, 1))
    a.send(1, bytes(8), **sent)
    expected = {"into": 8} | expected
    for error in (lambda: b.recv(0, expected.pop("into"), **expected), lambda: waiting.result(SOON)):
        with within(1), pytest.raises(CollectiveMismatch) as caught:
            error()
        assert str(caught.value) == message


def test_a_sender_that_is_ahead_is_asked_once_what_it_called_before(join):
    a, b = join()
    for sequence in range(1, 20):
        a.send(1, b"x", text="all_reduce", sequence=sequence)
    waiting = start(lambda: a.recv(1, 1, text="all_reduce", sequence=1))
    for error in (lambda: b.recv(0, 1, text="barrier", sequence=0), lambda: waiting.result(SOON)):
        with (
            within(1),
            pytest.raises(CollectiveMismatch, match=r"0 called all_reduce \(#1\), but rank 1 called barrier"),
        ):
            error()
    assert [text for peer, text in a.probes if text != "barrier"] == ["barrier\n\nall_reduce"]  # what waits tells more


def test_a_sender_that_is_ahead_knows_better(join):
    a, b = join()
    better = CollectiveMismatch("rank 0 called broadcast (#0), but rank 1 called barrier (#0)")
    groups = [b.open(GROUP + 1)]
    groups.append(a.mesh.open_group(GROUP + 1, "g8", lambda peer, header: a.mesh.fail_group_locked(groups[1], better)))
    a.send(1, b"x", text="all_reduce", sequence=1, group=groups[1])
    waiting = start(lambda: b.recv(0, 1, text="barrier", sequence=0, group=groups[0]))
    with within(1):
        a.until(waiting.done)
    with pytest.raises(CollectiveMismatch, match=r"^rank 0 called broadcast \(#0\), but rank 1 called barrier \(#0\)$"):
        waiting.result(SOON)


def test_a_mismatch_found_while_posting_wakes_who_waits_in_the_group(join):
    a, b = join()
    waiting = start(lambda: b.recv(0, 1, tag=1))
    a.send(1, b"x", tag=2, text="one")
    eventually(lambda: any(inlet.early for inlet in b.mesh.streams._inlets.values()))
    b.expect(0, 1, tag=2, text="two")
    with within(0.9), pytest.raises(CollectiveMismatch, match=r"rank 0 called one \(#0\), but rank 1 called two"):
        waiting.result(SOON)


def test_a_probe_tells_the_peer_what_it_is_awaited_in(join):
    a, b = join()
    waiting = start(lambda: a.recv(1, 1, text="all_reduce", sequence=5))
    with within(2):
        b.until(lambda: b.probes)
    assert b.probes == [(0, "all_reduce")]
    b.send(0, b"!", text="all_reduce", sequence=5)
    assert waiting.result(SOON) == b"!"


def test_a_probe_handler_may_fail_the_group(join):
    a, b = join()
    group = b.mesh.open_group(
        GROUP + 1, "late", lambda peer, header: b.mesh.fail_group_locked(group, SuperpodError(f"not {header.text}"))
    )
    waiting = start(lambda: a.recv(1, 1, text="this", group=a.open(GROUP + 1)))
    with within(2):
        b.until(waiting.done)
    with pytest.raises(RemoteError, match="rank 1 failed with SuperpodError: not this"):
        waiting.result(SOON)


def test_one_probe_for_each_stream(join_memory):
    a, b = join_memory()
    receives = [a.expect(1, 1, tag=i % 3, text=f"{i}") for i in range(30)]
    with pytest.raises(DeadlineExceeded):
        a.wait(*receives, seconds=0.9)
    b.look()
    assert sorted(b.probes) == [(0, "0"), (0, "1"), (0, "2")]
