"""Communicators of some of the cards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from communicator_cards import cards

from superpod.collectives.communicator import Communicator
from superpod.interconnect.errors import LinkClosed
from superpod.launcher.testing import run_ranks


def test_groups_number_their_ranks_in_the_order_given() -> None:
    def card(comm: Communicator) -> Any:
        group = comm.group([3, 0, 2])
        if group is None:
            return None
        assert (group.world_size, group.all_gather(np.array(comm.rank)).tolist()) == (3, [3, 0, 2])
        return group.rank, group.broadcast(np.array(comm.rank), 1).item(), repr(group)

    results = cards(4, card)
    assert results[1] is None
    assert [result[:2] for result in results if result] == [(1, 0), (2, 0), (0, 0)]
    assert results[3][2] == "<Communicator world.1: rank 0 of 3, link memory>"


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
def test_groups_of_groups_and_overlapping_groups(link: str) -> None:
    def card(comm: Communicator) -> list[int]:
        halves = [comm.group([0, 1, 2]), comm.group([2, 3, 4])]
        seen = []
        for group in halves if comm.rank % 2 else reversed(halves):  # in another order on each rank
            if group is not None:
                seen.append(int(group.all_reduce(np.array(comm.rank))))
                inner = group.group([2, 1])
                if inner is not None:
                    seen.append(int(inner.all_reduce(np.array(comm.rank))))
        seen.append(int(comm.all_reduce(np.array(1))))
        return seen

    assert run_ranks(5, card, link=link) == [[3, 5], [3, 3, 5], [9, 3, 3, 5], [9, 7, 5], [9, 7, 5]]


def test_a_group_may_end_while_its_parent_goes_on() -> None:
    def card(comm: Communicator) -> int:
        for _ in range(3):
            with comm.group(range(2)) as group:
                assert group.all_reduce(np.array(1)) == 2
            with pytest.raises(LinkClosed, match=r"rank \d has closed group world\.\d; make a new communicator"):
                group.all_reduce(np.array(1))
            with pytest.raises(LinkClosed, match="has closed group"):
                group.send(np.array(1), 1 - comm.rank)
        return int(comm.all_reduce(np.array(1)))

    assert cards(2, card) == [2, 2]
