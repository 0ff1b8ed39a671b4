"""Which core a card runs on: --bind-to, and what follows from where the cards are."""

from __future__ import annotations

import os
import sys

import pytest

from superpod.interconnect.cores import bind, cores
from superpod.launcher.binding import core_for

CORES = sorted(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(CORES) < 2, reason="on one core there is nothing to choose")
WHERE = """
import os, sys
import superpod
from superpod.interconnect.cores import cores
comm = superpod.init()
assert cores() == int(sys.argv[1]), cores()
forked = os.fork()
if forked == 0:
    print(comm.rank, "forked", *sorted(os.sched_getaffinity(0)), flush=True)
    os._exit(0)
os.waitpid(forked, 0)
print(comm.rank, "card", *sorted(os.sched_getaffinity(0)), flush=True)
comm.close()
"""


def cores_of(launch, *options, n, **variables):
    """Of every rank: (the card's cores, those of what it forks)."""
    done = launch("-n", n, *options, launch.script("where.py", WHERE), len(CORES), env=variables)
    assert done.code == 0, done.err
    found = {}
    for line in done.out.splitlines():
        _, rank, who, *cores = line.split()
        found[int(rank), who] = [int(core) for core in cores]
    return [(found[rank, "card"], found[rank, "forked"]) for rank in range(n)]


@several
def test_neighbours_are_on_different_cores_and_what_they_fork_is_not_bound(launch):
    n = 2 * len(CORES)
    assert cores_of(launch, n=n) == [([CORES[r % len(CORES)]], CORES) for r in range(n)]


@several
@pytest.mark.parametrize(
    ("options", "n", "variables"),
    [
        (("--bind-to", "none"), len(CORES), {}),
        ((), len(CORES) + 1, {}),  # the cores would not get as many each
        ((), 1, {}),
        ((), len(CORES), {"SUPERPOD_LINK": "zmq"}),
    ],
    ids=["none", "uneven", "few", "zmq"],
)
def test_cards_that_are_not_bound(launch, options, n, variables):
    assert cores_of(launch, *options, n=n, **variables) == [(CORES, CORES)] * n


@several
def test_binding_that_was_asked_for(launch):
    n = len(CORES) + 1
    found = cores_of(launch, "--bind-to", "core", n=n, SUPERPOD_LINK="zmq")
    assert [card for card, _ in found] == [[CORES[r % len(CORES)]] for r in range(n)]


@several
@pytest.mark.parametrize("start", [("--start-method", "exec"), ("--no-python",)], ids=["exec", "program"])
def test_every_way_to_start_binds(launch, start):
    shown = "import os; print('cores', *sorted(os.sched_getaffinity(0)))"
    script = launch.script("shown.py", shown)
    target = [sys.executable, script] if start == ("--no-python",) else [script]
    done = launch("-n", len(CORES), *start, *target)
    assert done.code == 0, done.err
    assert sorted(done.out.splitlines()) == [f"[{r}] cores {core}" for r, core in enumerate(CORES)]


def test_only_cores_that_the_launcher_has(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 9})
    assert [core_for("auto", card, 6, in_memory=True) for card in range(6)] == [3, 5, 9, 3, 5, 9]
    assert core_for("auto", 0, 4, in_memory=True) is None
    assert core_for("auto", 0, 6, in_memory=False) is None
    assert core_for("core", 4, 5, in_memory=False) == 5
    assert core_for("none", 0, 3, in_memory=True) is None


def test_one_core_needs_no_binding(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7})
    assert core_for("core", 0, 4, in_memory=True) is None


def test_a_core_that_is_gone_by_now_binds_nobody():
    before = os.sched_getaffinity(0)
    bind(4095)
    assert os.sched_getaffinity(0) == before
    assert cores() == len(before)
