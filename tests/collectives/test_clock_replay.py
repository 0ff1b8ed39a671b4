"""Runs in virtual time: who waits for whom, and that nothing gets stuck that did not in reality."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from superpod.collectives import clock_replay
from superpod.collectives.clock_log import STEP, Kind, Log
from superpod.collectives.clock_replay import replay

GROUPS = {"w": ("world", (0, 1, 2, 3)), "a": ("a", (0, 1)), "b": ("b", (2, 3)), "c": ("c", (1, 2))}


def log(rank, *calls):
    """A card's log from (group, seconds) for collectives, ("send"/"recv", other end, seconds), "step"."""
    names = list(GROUPS)
    kinds, order = [], []
    for call in calls:
        if call == "step":
            order.append(STEP)
            continue
        if call[0] in ("send", "recv"):
            kind = Kind(call[0], "direct", call[2], call[1], 0)
        else:
            kind = Kind("all_reduce", "ring", call[1], 0, names.index(call[0]))
        if kind not in kinds:
            kinds.append(kind)
        order.append(kinds.index(kind) + 1)
    counts = Counter(number for number in order if number)
    return Log(list(GROUPS.values()), kinds, counts, np.array(order, np.int64))


def run(*cards):
    """A run of cards whose calls take as many seconds as their `nbytes` say."""
    return replay({rank: log(rank, *calls) for rank, calls in enumerate(cards)}, lambda kind, rank: float(kind.nbytes))


def ends(*cards):
    return [run(*cards).ends[rank] for rank in range(len(cards))]


def test_calls_of_all_follow_one_another():
    assert ends(*[[("w", 2), ("w", 3)]] * 4) == [5] * 4


def test_groups_side_by_side_do_not_add_up():
    assert ends([("a", 2), ("w", 1)], [("a", 2), ("w", 1)], [("b", 5), ("w", 1)], [("b", 5), ("w", 1)]) == [6] * 4


def test_who_comes_late_holds_the_others_up():
    assert ends([("a", 7)], [("a", 7), ("c", 1)], [("c", 1), ("b", 1)], [("b", 1)]) == [7, 8, 9, 9]


def test_uneven_calls_end_with_the_longest():
    assert ends([("a", 2)], [("a", 9)], [], []) == [9, 9, 0, 0]


def test_a_pipeline_fills_and_empties():
    micro = [("send", 1, 1)] * 3
    middle = [("recv", 0, 1), ("send", 2, 1)] * 3
    assert ends(micro, middle, [("recv", 1, 1)] * 3, []) == [3, 4, 4, 0]


def test_a_message_takes_its_sender_its_time_and_is_there_then():
    assert ends([("send", 1, 4)], [("recv", 0, 4)], [], []) == [4, 4, 0, 0]
    assert ends([("send", 1, 4)], [("c", 9), ("recv", 0, 4)], [("c", 9)], []) == [4, 9, 9, 0]


def test_receives_posted_first_hold_nothing_up():
    swap = [("recv", 1, 2), ("send", 1, 2)], [("recv", 0, 2), ("send", 0, 2)]
    assert ends(*swap, [], []) == [2, 2, 0, 0]
    assert ends([("recv", 1, 2), ("a", 5)], [("a", 5), ("send", 0, 2)], [], []) == [7, 7, 0, 0]


def test_asynchronous_calls_in_different_orders_do_not_get_stuck():
    assert ends([("a", 2)], [("c", 3), ("a", 2)], [("c", 3)], []) == [5, 5, 3, 0]
    one, other = [("w", 1), ("a", 2)], [("a", 2), ("w", 1)]
    assert ends(one, other, [("w", 1)], [("w", 1)]) == [3, 3, 3, 3]


def test_steps_are_marked_where_the_card_is():
    found = run([("a", 2), "step", ("a", 3), "step"], [("a", 2), ("a", 3)], [], [])
    assert found.steps[0] == [2, 5]
    assert found.steps[1] == []


def test_what_only_some_have_made_is_left_out():
    assert ends([("a", 2), ("w", 9), ("a", 1)], [("a", 2)], [], []) == [2, 2, 0, 0]
    assert ends([("recv", 1, 3), ("recv", 1, 3)], [("send", 0, 3)], [], []) == [3, 3, 0, 0]


def test_two_groups_of_one_name_are_two():
    twice = Log([("a", (0, 1)), ("a", (0, 1))], [], Counter(), np.zeros(0, np.int64))
    first, second = Kind("barrier", "tree", 1, 0, 0), Kind("barrier", "tree", 1, 0, 1)
    logs = {
        rank: Log(twice.groups, kinds, Counter({1: 1, 2: 1}), np.array([1, 2]))
        for rank, kinds in enumerate(([first, second], [first, second]))
    }
    assert replay(logs, lambda kind, rank: 1.0).ends == {0: 2.0, 1: 2.0}


def test_the_same_logs_have_the_same_times_to_the_last_bit():
    def price(kind, rank):
        return kind.nbytes / 7

    logs = {rank: log(rank, *[("w", k) for k in range(1, 50)]) for rank in range(4)}
    first = replay(logs, price)
    assert replay(dict(reversed(logs.items())), price).ends == first.ends


def test_without_every_call_there_is_no_replay(monkeypatch):
    short = log(0, ("a", 1))
    short.counts[1] += 1
    assert replay({0: short}, lambda kind, rank: 1.0) is None
    monkeypatch.setattr(clock_replay, "MOST_CALLS", 3)
    assert replay({0: log(0, *[("a", 1)] * 4)}, lambda kind, rank: 1.0) is None


@pytest.mark.parametrize("n", [4])
def test_long_runs_take_seconds_not_minutes(n):
    import time

    start = time.process_time()
    assert ends(*[[("w", 1)] * 20_000] * n) == [20_000.0] * n
    assert time.process_time() - start < 5
