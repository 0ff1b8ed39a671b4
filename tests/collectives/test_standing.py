"""What the cards are doing, in words: grouped, and with the late ones named."""

from __future__ import annotations

import pytest

from superpod.collectives.places import Frame
from superpod.collectives.recorder import Record
from superpod.collectives.standing import Standing, describe, records_from, standing_from

CALL = "all_reduce(10 × float32, sum) by ring"
IN_COMPUTE = (Frame("train.py", 88, "compute", True), Frame("train.py", 120, "<module>", True))


def call(number, state="waiting", *, group="world", text=CALL, place="step() at train.py:40", kind="collective"):
    ended = None if state == "waiting" else 2.0
    return Record(group, kind, number, text, 40, 1.0, ended, state, place)


def card(rank, *calls, n=64, **more):
    return Standing(rank, calls, {"world": list(range(n))}, **more)


def test_63_cards_that_wait_for_one():
    cards = {r: card(r, call(11, "done"), call(12)) for r in range(64) if r != 31}
    cards[31] = card(31, call(11, "done"), stack=IN_COMPUTE)
    assert describe(cards) == [
        f"ranks 0-30, 32-63 wait in {CALL} (#12) of group world, called in step() at train.py:40 for rank 31",
        f"rank 31 is in compute() at train.py:88; it did last {CALL} (#11), called in step() at train.py:40",
        "  train.py:88 compute",
        "  train.py:120 <module>",
    ]


def test_two_in_one_place_stand_in_one_line_with_one_stack():
    cards = {0: card(0, call(0), n=3), 1: card(1, stack=IN_COMPUTE, n=3), 2: card(2, stack=IN_COMPUTE, n=3)}
    assert describe(cards)[1:] == [
        "ranks 1-2 are in compute() at train.py:88; they have made no collective of group world yet",
        "  train.py:88 compute",
        "  train.py:120 <module>",
    ]


def test_when_all_have_arrived_those_are_named_who_are_awaited():
    cards = {r: card(r, call(3), n=2, awaited={"world": [1 - r]}) for r in range(2)}
    assert describe(cards) == [
        f"ranks 0-1 wait in {CALL} (#3) of group world, called in step() at train.py:40 for ranks 0-1"
    ]


def test_cards_in_different_calls_of_one_number_stand_apart():
    other = call(3, text="barrier() by direct", place="")
    cards = {0: card(0, call(3), n=2), 1: card(1, other, n=2)}
    assert describe(cards) == [
        f"rank 0 waits in {CALL} (#3) of group world, called in step() at train.py:40",
        "rank 1 waits in barrier() by direct (#3) of group world",
    ]


def test_a_message_that_is_awaited():
    message = call(0, kind="recv", text="send/recv(10 × float32, tag 4) from rank 1")
    cards = {0: card(0, message, n=2), 1: card(1, stack=IN_COMPUTE, n=2)}
    assert describe(cards) == [
        "rank 0 waits in send/recv(10 × float32, tag 4) from rank 1, called in step() at train.py:40",
        "rank 1 is in compute() at train.py:88; it has made no collective yet",
        "  train.py:88 compute",
        "  train.py:120 <module>",
    ]


def test_a_silent_card_is_said_to_be_silent():
    cards = {
        0: card(0, call(1), n=3),
        1: card(1, call(0, "done"), n=3, silent="does not answer: it is stopped by a signal (pid 7)"),
        2: Standing(2, silent="was killed by SIGKILL"),
    }
    assert describe(cards) == [
        f"rank 0 waits in {CALL} (#1) of group world, called in step() at train.py:40 for ranks 1-2",
        "rank 1 does not answer: it is stopped by a signal (pid 7); "
        f"it did last {CALL} (#0), called in step() at train.py:40",
        "rank 2 was killed by SIGKILL; it has left no record",
    ]


def test_a_silent_card_whose_stack_is_known_all_the_same():
    silent = "does not answer: it is computing"
    standing = Standing(1, silent=silent, stack=IN_COMPUTE)
    assert standing.whereabouts() == "does not answer: it is computing, in compute() at train.py:88"


def test_a_late_card_that_waits_elsewhere_is_in_both_lines():
    pair = call(5, group="pair", place="")
    cards = {0: card(0, call(1), n=2), 1: Standing(1, (call(0, "done"), pair), {"world": [0, 1], "pair": [1, 2]})}
    assert describe(cards)[:2] == [
        f"rank 0 waits in {CALL} (#1) of group world, called in step() at train.py:40 for rank 1",
        f"rank 1 waits in {CALL} (#5) of group pair",
    ]


def test_a_failed_call_counts_when_it_is_asked_for():
    cards = {0: card(0, call(1, "failed"), n=1)}
    assert describe(cards) == [
        f"rank 0 does not say where it is; it failed in {CALL} (#1), called in step() at train.py:40"
    ]
    line = f"rank 0 was in {CALL} (#1) of group world, called in step() at train.py:40, which failed"
    assert describe(cards, states=("waiting", "failed")) == [line]


def test_a_library_that_the_users_code_is_inside_of():
    stack = (Frame("torch/nn/conv.py", 4, "forward", False), *IN_COMPUTE)
    assert (
        Standing(0, stack=stack).whereabouts() == "is in compute() at train.py:88 (inside torch/nn/conv.py:4 forward)"
    )
    assert Standing(0, stack=stack[:1]).whereabouts() == "is in forward() at torch/nn/conv.py:4"
    lines = describe({0: card(0, call(0), n=2), 1: card(1, stack=stack, n=2)})
    assert lines[2:] == ["  train.py:88 compute", "  train.py:120 <module>", "  inside: torch/nn/conv.py:4 forward"]


def test_a_thousand_states_fit_on_a_screen():
    cards = {r: card(r, call(0, place=f"f() at train.py:{r}"), n=1000) for r in range(1000)}
    lines = describe(cards)
    assert len(lines) == 25
    assert lines[-1] == "... and 976 lines more"


def test_nobody_waits():
    cards = {r: card(r, call(9, "done"), n=2, stack=IN_COMPUTE) for r in range(2)}
    assert describe(cards) == [
        f"ranks 0-1 are in compute() at train.py:88; they did last {CALL} (#9), called in step() at train.py:40"
    ]


def test_a_standing_survives_a_wire():
    standing = card(3, call(1, "done"), call(2), awaited={"world": [4]}, stack=IN_COMPUTE)
    answer = {
        "calls": [c.to_json() for c in standing.calls],
        "groups": standing.groups,
        "awaited": standing.awaited,
        "stack": [list(frame) for frame in standing.stack],
    }
    assert standing_from(3, answer) == standing


@pytest.mark.parametrize("nonsense", [None, 3, "x", [3], [{}], [{"group": 1}], {"world": 3}])
def test_what_makes_no_sense_in_an_answer_is_left_out(nonsense):
    answer = dict.fromkeys(("calls", "groups", "awaited", "stack"), nonsense)
    assert standing_from(0, answer) == Standing(0)
    assert records_from(nonsense) == []
