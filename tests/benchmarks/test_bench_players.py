"""Every player carries every case out, right; and says so when something is wrong."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from superpod.benchmarks import ddp, peers
from superpod.benchmarks.cases import Case
from superpod.benchmarks.player import IN_PLACE, CaseTurns
from superpod.benchmarks.point_to_point import EVERY
from superpod.benchmarks.superpod_player import SuperpodPlayer
from superpod.collectives.communicator import Communicator
from superpod.launcher.testing import run_ranks

BENCH = [sys.executable, "-m", "superpod.benchmarks.cli"]


def order(collective: str, count: int, **more: Any) -> dict[str, Any]:
    what = {"collective": collective, "count": count, "dtype": "int32", "op": "sum", "root": 1}
    return what | {"calls": 2, "warmup": 1, "check": True} | more


@pytest.mark.parametrize("collective", EVERY)
def test_superpod_plays_every_case(collective: str) -> None:
    def card(comm: Communicator) -> list[tuple[float, int]]:
        player = CaseTurns(comm.rank, comm.world_size, SuperpodPlayer(comm))
        counts = (0,) if collective == "barrier" else (300, 300, 5 << 20)
        return [player.turn(order(collective, count)) for count in counts]

    for of_rank in run_ranks(3, card, link="memory"):
        assert all(seconds > 0 and wrong == 0 for seconds, wrong in of_rank)


class Idle:
    """A player that does nothing when it is called."""

    def call(self, case: Case) -> Callable[[], object]:
        return lambda: None

    def meet(self) -> None:
        """Alone."""


def test_what_was_not_done_is_wrong() -> None:
    player = CaseTurns(0, 1, Idle())
    assert player.turn(order("all_gather", 100, root=0))[1] == 100
    assert player.turn(order("all_gather", 100, root=0, check=False))[1] == 0


def run(path: Path, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run([*BENCH, *arguments, "-J", str(path)], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


@pytest.mark.slow
def test_every_collective_beside_gloo(tmp_path: Path) -> None:
    csv = tmp_path / "r.csv"
    quick = ("--turns", "2", "--budget", "50ms", "--csv", str(csv))
    rows = run(tmp_path / "r.json", ",".join(EVERY), "-n", "3", "-b", "1K", "-e", "1K", "--peers", "gloo", *quick)
    assert len(rows) == 3 * len(EVERY)
    for row in rows:
        assert row["wrong"] == 0
        assert 0 < row["min_us"] <= row["median_us"] <= row["max_us"]
        assert row["turns"] == 2
    assert {row["backend"]: row["through"] for row in rows} == {
        "superpod": "numpy",
        "superpod-torch": "torch",
        "gloo": "torch",
    }
    head, *lines = csv.read_text().splitlines()
    assert head.startswith("collective,backend,through,world_size,nbytes")
    assert len(lines) == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["openmpi", "mpich"])
def test_every_collective_beside_an_mpi(tmp_path: Path, peer: str) -> None:
    if not (peers.HOME / peer).exists():
        pytest.skip(f"there is no {peer}: make bench-peers")
    quick = ("--turns", "1", "--budget", "20ms")
    rows = run(tmp_path / "r.json", ",".join(EVERY), "-n", "2", "-b", "1K", "-e", "1K", "--peers", peer, *quick)
    assert [row["backend"] for row in rows] == ["superpod", peer] * len(EVERY)
    assert not any(row["wrong"] for row in rows)


@pytest.mark.slow
def test_launch_and_ddp(tmp_path: Path) -> None:
    rows = run(tmp_path / "l.json", "launch", "-n", "2", "--turns", "1", "--peers", "gloo")
    assert [row["backend"] for row in rows] == ["superpod", "superpod-torch", "gloo"]
    assert all(row["median_us"] > 1e4 for row in rows)
    rows = run(tmp_path / "d.json", "ddp", "-n", "2", "--turns", "1", "--budget", "100ms")
    assert [(row["collective"], row["backend"]) for row in rows] == [
        (f"ddp {model}", name) for model in ddp.MODELS for name in ("superpod-torch", "gloo")
    ]
    for row in rows:
        assert row["wrong"] == 0
        assert row["steps_per_s"] == pytest.approx(1e6 / row["median_us"], rel=1e-3)


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [below for child in children for below in descendants(child)]


def gone(pid: int) -> bool:
    """Whether `pid` ends within some seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ready, _, _ = select.select([handle], [], [], 20)
    os.close(handle)
    return bool(ready)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nobody_outlives_the_command(number: int) -> None:
    there = ",".join(["gloo", *(peer for peer in ("openmpi", "mpich") if (peers.HOME / peer).exists())])
    command = [*BENCH, "barrier", "-n", "2", "--peers", there, "--iters", "1000000", "--budget", "300s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("#          size"):  # all jobs have come
            assert process.poll() is None
        below = descendants(process.pid)
        process.send_signal(number)
        process.wait(60)
    assert len(below) > 2 * len(there.split(","))
    assert all(gone(pid) for pid in below)


def test_players_need_numpy_and_no_more() -> None:
    """So that an environment of an MPI's does without what superpod needs."""
    code = "import sys; import superpod.benchmarks.player; print(*{'zmq', 'msgpack', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_in_place_is_what_torch_has_in_place() -> None:
    assert set(IN_PLACE) <= set(EVERY)
    assert np.all([EVERY[name].in_place for name in IN_PLACE])
