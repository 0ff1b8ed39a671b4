"""The torch backend as scripts use it: whole programs, started in every way that torch knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "torch_programs"
COMMAND = Path(sys.executable).with_name("superpod-run")
DONE = "all as it should be"


def started(*command: str, **env: str) -> list[str]:
    """What a command prints; it must end well within a minute and a half."""
    done = subprocess.run(
        command, env=os.environ | env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


def superpod_run(n: int, program: str, *args: str, **env: str) -> list[str]:
    return started(str(COMMAND), "-n", str(n), str(PROGRAMS / program), *args, **env)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_collective_and_dtype(n):
    assert sorted(superpod_run(n, "surface.py")) == [f"[{rank}] {DONE}" for rank in range(n)]


def test_tcp_between_the_cards():
    assert len(superpod_run(3, "surface.py", SUPERPOD_ZMQ_TRANSPORT="tcp")) == 3


def test_small_segments_and_windows():
    assert len(superpod_run(3, "surface.py", SUPERPOD_SEGMENT="1K", SUPERPOD_WINDOW="2K")) == 3


def test_ranks_meet_in_a_file(tmp_path):
    assert len(superpod_run(2, "surface.py", f"file://{tmp_path}/store")) == 2


def test_ddp_trains_as_on_gloo():
    assert len(superpod_run(4, "ddp.py")) == 4


def test_an_error_reaches_future_and_wait():
    assert len(superpod_run(2, "failing_future.py")) == 2


def test_under_multiprocessing_spawn(tmp_path):
    assert started(sys.executable, str(PROGRAMS / "spawned.py"), str(tmp_path / "store")) == [DONE]


@pytest.mark.slow
def test_under_torchrun():
    lines = started(
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        str(PROGRAMS / "surface.py"),
    )
    assert "".join(lines).count(DONE) == 2  # a line of one rank may stand in the middle of another's
