"""What the cards' clocks say together: sums, steps, other scales, and the table."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from superpod.collectives.clock_log import STEP, Kind, Log
from superpod.collectives.clock_price import Pricer
from superpod.collectives.simulate import Machine, suited
from superpod.interconnect import topology_file
from superpod.launcher.clock_books import books
from superpod.launcher.clock_news import ClockNews
from superpod.launcher.clock_table import clock_table
from superpod.launcher.machine import MachineSpec, WhatIf

ATLAS = MachineSpec("atlas-950")
WORLD = ("world", (0, 1, 2, 3))
BIG, SMALL = Kind("all_reduce", "ring", 1 << 20, 0, 0), Kind("all_reduce", "tree", 8, 0, 0)
GATHER = Kind("gather", "direct", 1 << 10, 3, 0)


def log(kinds, order, groups=(WORLD,)):
    return Log(list(groups), list(kinds), Counter(n for n in order if n), np.array(order, np.int64))


def sim(kind, n, topology="atlas-950", algorithm=None):
    machine = Machine(topology_file.load(topology))
    return machine.predict(
        suited(machine, kind.operation, algorithm or kind.algorithm, n, kind.root), kind.nbytes
    ).seconds


def same(n=4, kinds=(BIG, SMALL), order=(1, 2, 2, STEP, 1, 2, STEP)):
    return {rank: log(kinds, order) for rank in range(n)}


WALLS = [{"operation": "all_reduce", "algorithm": "ring", "seconds": 0.5}]


def test_a_groups_call_counts_once():
    found = books(ATLAS, same(), WALLS, 4)
    ring, tree = found["operations"]
    assert (ring["calls"], ring["bytes"], ring["wall"]) == (2, 2 << 20, 0.5)
    assert ring["modelled"] == 2 * sim(BIG, 4)
    assert (tree["calls"], tree["wall"], tree["bottleneck"]) == (3, 0.0, "board")
    assert found["seconds"] == pytest.approx(2 * sim(BIG, 4) + 3 * sim(SMALL, 4), rel=1e-14)
    assert found["virtual"] == pytest.approx(found["seconds"], rel=1e-14)
    assert (found["mark"], found["placement"], found["slowest"]) == ("assumed", "packed", 0)


def test_a_step_is_what_lies_between_two_marks():
    step = books(ATLAS, same(), [], 4)["step"]
    assert step["steps"] == 2
    assert step["median"] == pytest.approx(sim(BIG, 4) + sim(SMALL, 4), rel=1e-12)
    only = books(ATLAS, same(order=(1, 2, STEP, 2)), [], 4)["step"]
    assert only["median"] == pytest.approx(sim(BIG, 4) + sim(SMALL, 4), rel=1e-12)
    assert books(ATLAS, same(order=(1, 2)), [], 4)["step"] is None


def test_groups_side_by_side_do_not_add_up():
    left, right = ("left", (0, 1)), ("right", (2, 3))
    logs = {
        rank: log([replace_group(BIG, 0)], [1, 1] if rank < 2 else [1], [left if rank < 2 else right])
        for rank in range(4)
    }
    found = books(ATLAS, logs, [], 4)
    pair = Pricer.of("atlas-950", "packed", 4).price(*BIG[:4], (0, 1)).seconds
    assert found["operations"][0]["calls"] == 2
    assert found["seconds"] == found["virtual"] == pytest.approx(2 * pair)


def replace_group(kind, group):
    return kind._replace(group=group)


def what_if(*texts, logs=None, machine=ATLAS, n=4):
    return books(replace(machine, what_if=tuple(map(WhatIf.parse, texts))), logs or same(), [], n)["what_if"]


def test_the_same_calls_at_another_scale():
    larger, other, best, spread = what_if("cards=1024", "topology=mi300x", "algorithm=best", "placement=spread")
    assert larger["operations"][0]["modelled"] == 2 * sim(BIG, 1024)
    assert (larger["topology"], larger["cards"]) == ("atlas-950", 1024)
    assert other["operations"][0]["modelled"] == 2 * sim(BIG, 4, "mi300x")
    assert best["operations"][0]["modelled"] < 2 * sim(BIG, 4)
    assert spread["operations"][0]["bottleneck"] == "spine"


def test_an_algorithm_is_for_the_collectives_that_have_it():
    (found,) = what_if("algorithm=per_dimension,cards=64", logs=same(kinds=(BIG, GATHER), order=(1, 2)))
    reduce, gather = found["operations"]
    assert reduce["modelled"] == sim(BIG, 64, algorithm="per_dimension")
    assert gather["modelled"] == sim(GATHER, 64)


def test_a_root_that_is_left_out_is_the_last_card():
    (found,) = what_if("cards=2", logs=same(kinds=(GATHER,), order=(1,)))
    assert found["operations"][0]["modelled"] == sim(GATHER._replace(root=1), 2)


def test_one_card_does_not_communicate():
    (found,) = what_if("cards=1")
    assert found["operations"][1]["calls"] == 3
    assert found["operations"][0]["modelled"] <= 2 * 5e-6  # what the calls themselves cost on that machine


def test_smaller_groups_do_not_say_how_they_grow():
    logs = {rank: log([BIG._replace(group=1)], [1], [WORLD, ("pair", (0, 1))]) for rank in (0, 1)}
    refused, kept = what_if("cards=64", "topology=nvl72", logs=logs)
    assert "cards=64 must not be asked of a run with groups of 2, such as ranks 0-1: only a group" in refused["refused"]
    assert "refused" not in kept
    found = books(replace(ATLAS, what_if=(WhatIf.parse("cards=64"),)), logs, [], 4)
    assert "--what-if cards=64 is left out: cards=64 must not be asked" in clock_table(found)


def test_messages_stay_between_their_ranks():
    logs = {0: log([Kind("send", "direct", 8, 3, 0)], [1]), 3: log([Kind("recv", "direct", 8, 0, 0)], [1])}
    larger, smaller = what_if("cards=64", "cards=2", logs=logs)
    assert larger["operations"] == books(ATLAS, logs, [], 4)["operations"] or larger["seconds"] > 0
    assert "cards=2 leaves out rank 3, with which messages were exchanged; ask for more cards" in smaller["refused"]


def test_faults_cost_and_stay_with_their_machine():
    slow = replace(ATLAS, faults="straggler 1:4")
    found = books(replace(slow, what_if=(WhatIf.parse("topology=mi300x"),)), same(), [], 4)
    assert found["operations"][0]["modelled"] > 2 * sim(BIG, 4)
    assert found["what_if"][0]["operations"][0]["modelled"] == 2 * sim(BIG, 4, "mi300x")
    assert "placement packed, faults: straggler 1:4" in clock_table(found)


# The table


def test_the_table():
    spec = replace(ATLAS, what_if=(WhatIf.parse("cards=1024"), WhatIf.parse("topology=cloudmatrix384,cards=384")))
    lines = clock_table(books(spec, same(), WALLS, 4)).splitlines()
    assert lines[0].startswith("superpod-run: as if on atlas-950: Atlas 950 SuperPoD")
    assert "modelled, not measured; its least sure figure is assumed; placement packed, faults: none" in lines[1]
    titles = lines[2].split()
    assert titles[:7] == ["operation", "algorithm", "calls", "bytes", "wall", "modelled", "cards=1024"]
    assert lines[2].endswith("what if 2  waits for")
    assert lines[3].split()[:3] == ["all_reduce", "ring", "2"]
    assert lines[5].split()[:2] == ["in", "all"]
    assert lines[7].split()[:2] == ["a", "step"]
    assert lines[-1] == "  what if 2: topology=cloudmatrix384,cards=384"


def test_the_table_says_what_is_missing():
    empty = books(ATLAS, {}, [], 4)
    assert "no card has communicated" in clock_table(empty)
    some = {0: log((BIG,), (1,)), 1: log((BIG,), (1,))}
    some[1].unknown = 7
    text = clock_table(books(ATLAS, some, [], 4))
    assert "2 of 4 cards have told nothing" in text
    assert "no step was marked: a torch optimizer does it, and superpod.clock().step()" in text
    assert "7 calls of more kinds than a card remembers are left out" in text
    assert "waiting" not in text


@pytest.mark.parametrize(
    ("frames", "on_time", "took", "words"),
    [
        (0, 0, 0.0, "no card has waited for a frame"),
        (
            1000,
            990,
            10.2,
            "of 1,000 frames that were waited for 99 % came within 10 % of their time, all together 2.0 % late",
        ),
        (
            10,
            1,
            15.0,
            "all together 50.0 % late; this host does not keep up: take a larger --time-scale, or fewer cards",
        ),
    ],
)
def test_the_table_says_how_well_shaped_links_kept_their_times(frames, on_time, took, words):
    shape = {"time_scale": 1000.0, "frames": frames, "on_time": on_time, "asked": 10.0 if frames else 0.0, "took": took}
    text = clock_table({**books(ATLAS, same(), [], 4), "shape": shape})
    assert "links shaped, 1000 times as long: " in text
    assert words in text
    assert ("this host does not keep up" in text) == (took > 11)


# The news


def parts(data, size):
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return [{"part": i, "parts": len(pieces), "data": piece} for i, piece in enumerate(pieces)]


def test_logs_come_in_pieces_and_one_after_the_other():
    news = ClockNews()
    for item in parts(log((BIG,), (1, STEP)).packed(), 20) + parts(log((BIG, SMALL), (2, 1)).packed(), 1000):
        news.hear(3, item)
    (found,) = news.logs().values()
    assert found.order.tolist() == [1, STEP, 2, 1]
    assert found.kinds == [BIG, SMALL]


def test_nonsense_is_left_out():
    news = ClockNews()
    lost = parts(log((BIG,), (1,)).packed(), 20)
    for item in (*lost[1:], {"part": 0, "parts": 1, "data": b"no log"}, {"part": "x"}, {}):
        news.hear(0, item)
    assert news.logs() == {}


def test_shaped_links_are_added_up():
    news = ClockNews()
    for _ in range(2):
        news.hear(0, {"frames": 3, "on_time": 2, "asked": 1.5, "took": 2.0})
    assert news.shape == {"frames": 6, "on_time": 4, "asked": 3.0, "took": 4.0}
