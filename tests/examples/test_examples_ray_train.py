"""examples/ray_train.py: Ray Train's workers meet through superpod. Needs Ray, which is an extra."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "ray_train.py"


@pytest.fixture
def folder():
    """A folder with a short path: Ray's sockets lie in it."""
    path = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_of_ray_train_through_superpod(workers, folder):
    pytest.importorskip("ray", reason='Ray is not installed: pip install "superpod[ray]"')
    env = {**os.environ, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "HOME": folder}
    command = [sys.executable, SCRIPT, "--workers", str(workers), "--storage", f"{folder}/results"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{workers} workers over superpod: loss 0.0" in done.stdout
    assert "the same weights on all: True" in done.stdout
