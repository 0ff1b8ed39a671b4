"""superpod-run on hosts that are network namespaces: started on one of them, ended, and what it left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import textwrap
import time
from pathlib import Path

from ended_job import COMMAND, Ended

DEADLINE = 90  # seconds for a job of these tests; the machine may be busy


class HostLauncher:
    """Runs commands on the hosts of a cluster, by default superpod-run on the first, in `folder`."""

    def __init__(self, hosts, folder):
        self.hosts, self.folder = hosts, folder
        self.runtime = Path(tempfile.mkdtemp(prefix="run-", dir="/tmp"))  # short: socket paths are limited
        self._processes = []

    def script(self, name, text):
        path = self.folder / name
        path.write_text(textwrap.dedent(text))
        return path

    def host(self, name):
        return next(host for host in self.hosts.hosts if host.name == name)

    def environment(self, **more):
        plain = {
            k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SUPERPOD", "OMP_", "PET_", "SLURM"))
        }
        folders = {"XDG_RUNTIME_DIR": str(self.runtime), "TMPDIR": str(self.folder)}
        return {**plain, **folders, "SUPERPOD_SSH": self.hosts.ssh, "NO_COLOR": "1", "SUPERPOD_TUNING": "off", **more}

    def start(self, *args, on="a", env=None, command=(COMMAND,), enter=None):
        """`enter(host, *words, folder)`: what runs words on a host, if not the host itself says it."""
        host, words = self.host(on), (*command, *args)
        process = subprocess.Popen(
            enter(host, *words, folder=self.folder) if enter else host.command(*words, folder=self.folder),
            env=self.environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def finish(self, process):
        began = time.monotonic()
        out, err = process.communicate(timeout=DEADLINE)
        return Ended(process.returncode, out, err, time.monotonic() - began)

    def __call__(self, *args, **options):
        return self.finish(self.start(*args, **options))

    def close(self):
        """Ends what still runs; returns what was left on the hosts, and of files."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        left = self.hosts.wait_until_nothing_is_left(3)
        for host in self.hosts.hosts:
            host.signal(signal.SIGKILL)
            host.link("up")
        folders = [path for path in self.folder.glob("superpod-*") if path.is_dir()]
        if files := [str(path) for path in (*self.runtime.glob("*"), *folders)]:
            left["files"] = files
        with contextlib.suppress(OSError):
            shutil.rmtree(self.runtime)
        return left


def wait_for_lines(stream, texts):
    """Read until each of `texts` has stood in some line; the test's own time limit ends a wait that is in vain."""
    missing = set(texts)
    for line in stream:
        missing -= {text for text in missing if text in line}
        if not missing:
            return
    raise AssertionError(f"the stream ended without {missing}")
