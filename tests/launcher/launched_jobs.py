"""Real jobs for tests: superpod-run started in a folder, with a mark by which everything of it can be found."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
import uuid
from pathlib import Path

from ended_job import COMMAND, Ended

DEADLINE = 40  # seconds for a job of these tests; the machine may be busy


class Launcher:
    """Runs superpod-run in `folder`, with a runtime directory and a mark in the environment that are this test's."""

    def __init__(self, folder):
        self.folder = folder
        self.runtime = Path(tempfile.mkdtemp(prefix="run-", dir="/tmp"))  # short: socket paths are limited
        self.mark = f"JOB_MARK={uuid.uuid4().hex}"
        self.processes = []

    def script(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def environment(self, **more):
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SUPERPOD", "OMP_", "PET_"))}
        name, value = self.mark.split("=")
        folders = {"XDG_RUNTIME_DIR": str(self.runtime), "TMPDIR": str(self.folder)}  # the latter for flight records
        return {**plain, **folders, name: value, "SUPERPOD_TUNING": "off", **more}

    def start(self, *args, env=None, command=(COMMAND,), **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        process = subprocess.Popen(
            [*map(str, command), *map(str, args)],
            cwd=self.folder,
            env=self.environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            **options,
        )
        self.processes.append(process)
        return process

    def finish(self, process):
        began = time.monotonic()
        out, err = process.communicate(timeout=DEADLINE)
        return Ended(process.returncode, out or "", err or "", time.monotonic() - began)

    def __call__(self, *args, **options):
        return self.finish(self.start(*args, **options))

    def left(self):
        """Processes with this test's mark, but for zombies, and files in its runtime directory."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(f"{entry.name}: {(entry / 'comm').read_text().strip()}")
        return found + [str(path) for path in self.runtime.rglob("*")]

    def wait_until_nothing_is_left(self, seconds):
        end = time.monotonic() + seconds
        while self.left() and time.monotonic() < end:
            time.sleep(0.02)
        return self.left()

    def pids(self, name):
        """Processes of this test's job that are called `name`."""
        return [int(line.partition(":")[0]) for line in self.left() if line.endswith(f": {name}")]

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        left = self.wait_until_nothing_is_left(3)
        for line in left:
            with contextlib.suppress(ValueError, OSError):
                os.kill(int(line.partition(":")[0]), signal.SIGKILL)
        shutil.rmtree(self.runtime, ignore_errors=True)
        return left


def wait_for_line(stream, text):
    """Read lines until one contains `text`; the test's own time limit ends a wait that is in vain."""
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the stream ended without {text!r}")
