"""examples/ray_train.py: Ray Train's workers meet through superpod. Needs Ray, which is an extra."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "ray_train.py"
WITHIN = 250  # seconds; Ray starts some ten processes, which takes half a minute on two free processors


@pytest.fixture
def folder():
    """A folder with a short path: Ray's sockets lie in it."""
    path = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)


def network_of_its_own() -> list[str]:
    """What runs a command where there is only a loopback interface: Ray and torch listen everywhere. [] if it can't be.

    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 keeps at least Ray's own services on loopback.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        return command if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0 else []
    except OSError:
        return []


class Watched:
    """A process and all that it starts."""

    def __init__(self, *command: object, env: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )
        self._family = {psutil.Process(self._process.pid)}

    def _look(self) -> None:
        with contextlib.suppress(psutil.Error):
            self._family |= set(psutil.Process(self._process.pid).children(recursive=True))

    def finish(self) -> tuple[int, str]:
        """Exit code and output; whatever of it still runs after that is ended, and an error."""
        end = time.monotonic() + WITHIN
        try:
            while True:
                self._look()
                try:
                    output, _ = self._process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    assert time.monotonic() < end, f"still running: {self._family}"
            _, left = psutil.wait_procs(self._family, timeout=20)
            assert not left
        finally:
            for process in self._family:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        return self._process.returncode, output


@pytest.mark.slow
@pytest.mark.timeout(WITHIN + 40)
def test_workers_of_ray_train_through_superpod(folder):
    pytest.importorskip("ray", reason='Ray is not installed: pip install "superpod[ray]"')
    own = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = (*network_of_its_own(), sys.executable, SCRIPT, "--workers", 3, "--storage", f"{folder}/results")
    job = Watched(*command, env={**os.environ, **own, "HOME": folder})
    code, output = job.finish()
    assert code == 0, output
    assert "3 workers over superpod: loss 0.0" in output
    assert "the same weights on all: True" in output
