"""What a card knows of the others: those whom it looks for in vain, and those who have gone."""

from __future__ import annotations

import pytest
from cards import SOON, dictionary, within

from superpod.interconnect.errors import DeadlineExceeded, LinkClosed, PeerLost
from superpod.interconnect.peers import Peers
from superpod.interconnect.rendezvous import AddressBook, DictStore

HOW = "exited with code 0"
LONG = 30.0  # seconds that nothing here takes


def peers(*gone: int) -> tuple[Peers, AddressBook]:
    book = AddressBook(DictStore(), "mesh")
    return Peers(book, lambda rank: HOW if rank in gone else None), book


def check() -> None:
    """Nothing has happened."""


@pytest.mark.timeout(10)
def test_nobody_waits_for_a_peer_that_has_ended_without_an_address():
    known, _ = peers(1)
    with pytest.raises(PeerLost, match=r"^rank 1 exited with code 0 before it joined$"):
        known.find(1, LONG, check)
    assert known.lost == {1: "exited with code 0 before it joined"}


def test_a_peer_that_has_joined_and_ended_is_found_but_not_what_it_has_not_published():
    known, book = peers(1)
    book.publish(1, "there")
    assert known.find(1, LONG, check) == "there"
    with pytest.raises(PeerLost, match=r"^rank 1 exited with code 0$"):
        known.find(1, LONG, check, "board")


def test_a_peer_that_has_not_ended_may_be_late():
    known, _ = peers(2)
    with pytest.raises(DeadlineExceeded, match=r"rank 1 has not joined within 0\.0 s"):
        known.find(1, 0.01, check)
    assert known.lost == {}


def test_a_peer_is_looked_for_in_the_latest_book_that_has_it():
    world, group = dictionary(), AddressBook(DictStore(), "group")
    peers = Peers(world)
    world.publish(1, "world 1")
    world.publish(2, "world 2")
    group.publish(2, "group 2")
    peers.learn({2, 3}, group)
    assert [peers.find(rank, SOON, lambda: None) for rank in (1, 2)] == ["world 1", "group 2"]
    with pytest.raises(
        DeadlineExceeded, match=r"rank 3 has not joined within 0\.0 s: it was not started, or it is dead"
    ):
        peers.find(3, 0.01, lambda: None)


def test_while_a_peer_is_looked_for_somebody_checks():
    def check() -> None:
        raise LinkClosed("enough")

    with within(3), pytest.raises(LinkClosed, match="enough"):
        Peers(dictionary()).find(3, SOON, check)
