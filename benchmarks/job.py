"""Start the cards of a benchmark with superpod-run, and get rows of results from their rank 0.

The channel is a pipe of superpod-bench, opened by rank 0 through /proc: it needs no file, and a row arrives when it is
written. When superpod-bench dies, superpod-run is told to end the job.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any, Self

from superpod.interconnect.env import child_environment

_LAUNCHER = (
    "import signal, sys; from superpod.launcher.processes import die_with_parent; "
    "die_with_parent(int(sys.argv.pop(1)), signal.SIGTERM); from superpod.launcher.cli import main; sys.exit(main())"
)
_GRACE = 15.0  # seconds that superpod-run gets to end its cards


def superpod_run() -> list[str]:
    """The beginning of its command, for a child of this process's main thread, which it will not outlive."""
    return [sys.executable, "-c", _LAUNCHER, str(os.getpid())]


class JobFailed(RuntimeError):
    """The cards did not finish; superpod-run has said why on stderr."""


class Reporter:
    """Rank 0's end of the channel; on the other ranks (`channel` is None) it sends nothing."""

    def __init__(self, channel: str | None) -> None:
        self._pipe: IO[str] | None = open(channel, "w") if channel is not None else None  # noqa: SIM115

    def send(self, row: dict[str, Any]) -> None:
        if self._pipe is not None:
            self._pipe.write(json.dumps(row) + "\n")
            self._pipe.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pipe is not None:
            self._pipe.close()


def run(
    world_size: int, module: str, plan: str, *, preload: tuple[str, ...], variables: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """Run `module` with the arguments `plan` and the channel on `world_size` cards; yields the rows as they come.

    `preload` are the modules that the cards share, and no others; `variables` are put into their environment. The
    cards have ended when this ends, also when the caller stops early. Raises JobFailed when a card failed.
    """
    reading, writing = os.pipe()
    command = [*superpod_run(), "-n", str(world_size), "--no-preload"]
    command += [f"--preload={shared}" for shared in preload]
    command += ["-m", module, plan, f"/proc/{os.getpid()}/fd/{writing}"]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=child_environment(variables)
        )
        try:
            for line in _lines(reading, process):
                yield json.loads(line)
        finally:
            end(process)
    finally:
        os.close(reading)
        os.close(writing)
    if process.returncode:
        raise JobFailed(f"{world_size} cards: superpod-run ended with exit code {process.returncode}")


def _lines(reading: int, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What is written into the pipe until `process` has ended and the pipe is empty."""
    ended = os.pidfd_open(process.pid)
    buffer = b""
    try:
        while True:
            ready, _, _ = select.select([reading, ended], [], [])
            if reading not in ready:
                return
            buffer += os.read(reading, 1 << 16)
            *lines, buffer = buffer.split(b"\n")
            yield from lines
    finally:
        os.close(ended)


def end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a job that ends by itself; end it if it was left early."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        if process.poll() is None:
            process.terminate()
        process.wait(_GRACE)
        return
    process.kill()
    process.wait()
