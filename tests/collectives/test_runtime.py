"""What a process sets up once: settings, the choice of algorithms made visible, the end of the process."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from superpod.collectives.agreement import _HISTORY
from superpod.collectives.communicator import Communicator, connect, in_memory
from superpod.collectives.engine import _PREPARED
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.testing import run_ranks

ALONE = Place(0, 1, 0, 1)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The code in a fresh interpreter, with these variables and few others."""
    env = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)


# What the user sees of the choice


def test_debug_says_which_algorithm_was_chosen_and_why() -> None:
    """Once for each kind of call, on the group's first rank only."""
    code = """
import numpy, superpod
def card(comm):
    for _ in range(3):
        comm.all_reduce(numpy.ones(3))
    comm.broadcast(numpy.ones(5000), 1)
    comm.barrier(algorithm="tree")
    group = comm.group([2, 1])
    if group: group.barrier()
superpod.run_ranks(3, card)
"""
    run = python(code, SUPERPOD_DEBUG="info", SUPERPOD_ALL_REDUCE="ring:0-64K;two_shot", SUPERPOD_BROADCAST="tree")
    assert (run.returncode, run.stdout) == (1, "")
    assert "SUPERPOD_ALL_REDUCE='ring:0-64K;two_shot': ring and two_shot both cover size 0" in run.stderr

    run = python(code, SUPERPOD_DEBUG="info", SUPERPOD_ALL_REDUCE="ring:0-64K", SUPERPOD_BROADCAST="tree")
    said = sorted(line.partition(": ")[2] for line in run.stderr.splitlines())
    world, override = "of group world, 3 ranks", "says so for"
    assert said[0] == f"all_reduce(3 × float64, sum) {world}: ring, SUPERPOD_ALL_REDUCE {override} up to 64 KiB"
    assert said[1] == f"barrier() {world}: tree, asked for in the call"
    assert said[2].startswith("barrier() of group world.1, 2 ranks: dissemination, built-in table, ")
    assert said[3] == f"broadcast(5000 × float64, root 1) {world}: tree, SUPERPOD_BROADCAST {override} any size"
    assert run.stderr.count("superpod: ") == len(said) == 4


def test_without_debug_nothing_is_said() -> None:
    run = python("import numpy, superpod; superpod.init().all_reduce(numpy.ones(3))")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_the_last_choice_can_be_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "superpod")

    def card(comm: Communicator) -> str:
        assert comm.last is None
        comm.all_reduce(np.ones(3), algorithm="tree")
        assert comm.last is not None
        return f"{comm.last.algorithm}, {comm.last.reason}"

    assert run_ranks(2, card, link="memory") == ["tree, asked for in the call"] * 2
    assert caplog.messages == ["all_reduce(3 × float64, sum) of group world, 2 ranks: tree, asked for in the call"]


@pytest.mark.parametrize("name", ["rong", "ring:5", "ring:9-3", "ring:0-64K;tree:64K-max"])
def test_a_wrong_override_is_told_before_anything_is_opened(name: str) -> None:
    with pytest.raises(InvalidValue, match=f"^SUPERPOD_ALL_REDUCE='{name}': "):
        connect(Settings(overrides={"all_reduce": name}), ALONE)


def test_a_wrong_algorithm_lists_the_right_ones() -> None:
    with pytest.raises(InvalidValue, match=r"'rong' does not exist for all_reduce; there are ring, tree, .*one_shot"):
        connect(Settings(overrides={"all_reduce": "rong"}), ALONE)


def test_an_override_for_equal_blocks_only_is_passed_over_for_others() -> None:
    settings = Settings(overrides={"all_to_all": "bruck"})
    for comm in in_memory(1, settings):
        comm.all_to_all(np.ones(3))
        assert comm.last is not None
        assert comm.last.algorithm == "bruck"
        comm.close()


# Where the cards meet


def test_several_cards_without_a_store_are_told_the_way_out() -> None:
    with pytest.raises(
        InvalidValue, match=r"WORLD_SIZE=2 but there is no SUPERPOD_STORE to meet .* start with superpod"
    ):
        connect(Settings(), Place(0, 2, 0, 2))


def test_a_directory_without_a_job_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"SUPERPOD_DIR=.* is not the directory of a running job"):
        connect(Settings(directory=tmp_path), ALONE)
    assert list(tmp_path.iterdir()) == []  # the socket that was bound already is gone


# The end of the process


@pytest.mark.parametrize(
    "end",
    ["", "sys.exit(0)", "comm.close()", "work = comm.barrier(async_op=True)", "comm.group([0]).barrier(async_op=True)"],
)
def test_a_process_ends_by_itself(end: str) -> None:
    run = python(f"import sys, numpy, superpod; comm = superpod.init(); comm.barrier(); {end}")
    assert (run.returncode, run.stderr) == (0, "")


def test_a_forked_child_ends_by_itself_too_and_its_parent_goes_on() -> None:
    """Its interpreter runs the handlers that it has inherited from its parent."""
    code = """
import os, sys, numpy, superpod
comm = superpod.init()
comm.barrier(async_op=True).wait()
pid = os.fork()
if pid:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    comm.barrier(async_op=True).wait()
    comm.barrier()
    print("parent")
else:
    print("child")
"""
    run = python(code)
    assert (run.returncode, run.stdout.split(), run.stderr) == (0, ["child", "parent"], "")


def test_a_forked_child_may_make_a_communicator_of_its_own() -> None:
    code = """
import os, superpod
comm = superpod.init()
comm.barrier(async_op=True).wait()
if (pid := os.fork()) == 0:
    with superpod.init() as own:
        own.barrier(async_op=True).wait()
else:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
comm.close()
"""
    run = python(code)
    assert (run.returncode, run.stderr) == (0, "")


# What is kept


def test_plans_and_histories_are_bounded() -> None:
    def card(comm: Communicator) -> tuple[int, int]:
        for count in range(max(_PREPARED, _HISTORY) + 100):
            comm.all_reduce(np.ones(count, np.uint8))
        return len(comm._engine._prepared), len(comm._engine.agreement._history)

    assert run_ranks(2, card, link="memory") == [(_PREPARED, _HISTORY)] * 2
