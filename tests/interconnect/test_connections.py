from __future__ import annotations

from math import inf

import pytest

from superpod.interconnect.connections import FAREWELL, REFUSED, UNKNOWN, Connections
from superpod.interconnect.link import Broken

OWN = "ipc://@own"  # the endpoint that breaks of accepted connections are told with
GONE = Broken(1, "is gone: nobody listens at its address")


@pytest.fixture
def connections() -> Connections:
    return Connections()


def test_a_peer_with_one_connection_is_lost_with_it(connections):
    connections.opened("e1", 1)
    connections.accepted(9)
    connections.identified(9, 2, 0)
    assert connections.lost(0) is None
    assert not connections.broke(OWN, 9, 2)
    assert connections.lost(2) == Broken(2)
    assert connections.broke("e1", 33, 3)
    assert (connections.lost(3), connections.look_at) == (None, 3 + UNKNOWN)  # one of its own may be on its way
    assert connections.lost(3 + UNKNOWN) == Broken(1)
    assert (connections.lost(9), connections.look_at) == (None, inf)


def test_a_peer_whose_own_connection_comes_in_after_the_unused_one_broke(connections):
    connections.opened("e1", 1)
    connections.broke("e1", 33, 1)
    assert connections.lost(1) is None
    connections.accepted(9)
    connections.identified(9, 1, 1)
    assert connections.lost(1 + UNKNOWN) is None
    connections.broke(OWN, 9, 3)
    assert connections.lost(3) == Broken(1)


def test_a_peer_with_two_connections_is_lost_with_the_last(connections):
    connections.opened("e1", 1)
    connections.accepted(9)
    connections.identified(9, 1, 0)
    connections.broke("e1", 33, 1)
    assert (connections.lost(1), connections.look_at) == (None, 1 + FAREWELL)
    connections.broke(OWN, 9, 3)
    assert connections.lost(3) == Broken(1)


def test_a_peer_whose_other_connection_stays_is_lost_in_the_end(connections):
    """What was sent to it on the broken one has not arrived."""
    connections.opened("e1", 1)
    connections.accepted(9)
    connections.identified(9, 1, 0)
    connections.broke("e1", 33, 1)
    assert connections.lost(1 + FAREWELL) == Broken(1)


def test_a_connection_that_has_not_said_whose_it_is_may_be_the_peers(connections):
    connections.opened("e1", 1)
    connections.accepted(9)
    connections.broke("e1", 33, 1)
    assert (connections.lost(1), connections.look_at) == (None, 1 + UNKNOWN)
    connections.identified(9, 1, 1.1)
    assert (connections.lost(1.1), connections.look_at) == (None, 1 + FAREWELL)
    connections.broke(OWN, 9, 1.2)
    assert connections.lost(1.2) == Broken(1)


@pytest.mark.parametrize("says", ["another's", "no card's", "nothing"])
def test_a_connection_that_is_not_the_peers_does_not_hold_up_for_long(connections, says):
    connections.opened("e1", 1)
    connections.accepted(9)
    connections.broke("e1", 33, 1)
    assert connections.lost(1) is None
    if says == "another's":
        connections.identified(9, 2, 1)
    elif says == "no card's":
        connections.foreign(9)
    assert connections.lost(1) is None
    assert connections.lost(1 + UNKNOWN) == Broken(1)


def test_a_connection_that_is_gone_before_its_message_is_read(connections):
    connections.accepted(9)
    connections.broke(OWN, 9, 1)
    assert connections.lost(1) is None
    connections.identified(9, 1, 2)
    assert connections.lost(2) == Broken(1)


def test_a_descriptor_that_is_used_again_is_the_new_ones(connections):
    connections.accepted(9)  # a stranger comes and goes, then rank 1 gets its number
    connections.foreign(9)
    connections.broke(OWN, 9, 1)
    connections.accepted(9)
    connections.identified(9, 1, 2)
    assert connections.lost(9) is None
    connections.accepted(10)  # and so it goes between two cards
    connections.identified(10, 2, 3)
    connections.broke(OWN, 10, 4)
    connections.accepted(10)
    connections.identified(10, 3, 5)
    assert connections.lost(5) == Broken(2)
    assert connections.lost(99) is None
    connections.broke(OWN, 10, 100)
    assert connections.lost(100) == Broken(3)


def test_a_descriptor_that_changed_hands_unseen_tells_of_the_first_owners_end(connections):
    """1 connects, sends and goes; 2 gets its number; only then the message of 1 is read, and taken for the second's."""
    for _ in range(2):
        connections.accepted(9)
    connections.identified(9, 1, 1)
    connections.identified(9, 2, 2)
    assert connections.lost(2) == Broken(1)
    connections.broke(OWN, 9, 3)
    assert connections.lost(3) == Broken(2)


def test_an_address_where_nobody_listens(connections):
    connections.opened("e1", 1)
    assert not connections.refused("e1", 1)  # it may be about to
    assert not connections.refused("e1", 1 + REFUSED / 2)
    assert connections.lost(1 + REFUSED / 2) is None
    assert connections.refused("e1", 1 + REFUSED)
    assert connections.lost(1 + REFUSED) == GONE
    assert not connections.refused("e1", 9)


def test_a_peer_whose_connection_broke_is_not_waited_for_at_its_address(connections):
    connections.opened("e1", 1)
    connections.accepted(9)
    connections.identified(9, 1, 0)
    connections.broke(OWN, 9, 1)
    assert connections.lost(1) is None
    assert connections.refused("e1", 1.1)
    assert connections.lost(1.1) == GONE


def test_a_lost_peer_is_lost_once(connections):
    connections.opened("e1", 1)
    connections.accepted(9)
    connections.identified(9, 1, 0)
    connections.broke("e1", 33, 1)
    assert connections.lost(1 + FAREWELL) == Broken(1)
    connections.broke(OWN, 9, 9)
    assert not connections.broke("e1", 33, 9)
    assert connections.lost(99) is None


def test_a_break_is_told_of_the_connection_that_was_opened_even_if_the_number_is_an_accepted_ones(connections):
    connections.opened("e1", 1)
    connections.accepted(9)
    connections.identified(9, 2, 0)
    connections.broke("e1", 9, 1)
    assert connections.lost(1 + UNKNOWN) == Broken(1)
    connections.broke("e1", 9, 2)  # told again: it had tried once more
    assert connections.lost(99) is None
