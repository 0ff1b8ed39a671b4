"""Programs that are compared, and whose turn it is: superpod-bench's end of their sockets.

Each program is a job of n ranks (see player.py), started by its own launcher. Every rank connects to one Unix socket,
and waits there while others have their turn. A rank that finds the socket closed ends; so does its job.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from superpod.benchmarks.job import JobFailed, end
from superpod.interconnect.env import child_environment

_READY = 240.0  # seconds that a job may take to start; torchrun with 64 ranks took 92 on two cores
_TURN = 600.0  # seconds that a turn may take


class Job:
    """One started program: its process, and a line to each rank."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name, self.process = name, process
        self.lines: dict[int, Line] = {}

    def failed(self, what: str) -> JobFailed:
        code = self.process.poll()
        return JobFailed(f"{self.name}: {what}" + (f"; it ended with exit code {code}" if code is not None else ""))


class Line:
    """One rank: sends orders, reads answers."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._rest = connection, b""

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, order: bytes) -> None:
        self._connection.sendall(order)

    def receive(self) -> dict[str, Any] | None:
        """An answer, if a whole one has come. Raises EOFError when the rank is gone."""
        more = self._connection.recv(1 << 16)
        if not more:
            raise EOFError
        self._rest += more
        if not self._rest.endswith(b"\n"):
            return None
        answer: dict[str, Any] = json.loads(self._rest)
        self._rest = b""
        return answer

    def close(self) -> None:
        self._connection.close()


class Stage:
    """All programs of one run on `world_size` ranks each."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._folder = tempfile.TemporaryDirectory(prefix="superpod-bench-")
        self.path = str(Path(self._folder.name) / "turns")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(world_size)
        self._job_of: dict[str, Job] = {}  # by the names of their players
        self._jobs: list[Job] = []

    def start(self, name: str, command: Sequence[str], variables: Mapping[str, str]) -> float:
        """Start a job and wait until all ranks are there; seconds until the last one was ready. Raises JobFailed."""
        begun = time.monotonic()
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=child_environment(dict(variables))
            )
        except OSError as error:
            raise JobFailed(f"{name}: {command[0]} cannot be started ({error.strerror}); make bench-peers") from error
        self._jobs.append(job := Job(name, process))
        ready, players = begun, []
        for line in self._arrivals(job):
            hello = self._answers(job, {line}, _READY)[line]
            job.lines[hello["rank"]] = line
            ready, players = max(ready, hello["ready"]), hello["players"]
        self._job_of |= dict.fromkeys(players, job)
        return ready - begun

    def _arrivals(self, job: Job) -> list[Line]:
        """A line to each of the job's ranks, as they come."""
        lines: list[Line] = []
        begun = time.monotonic()
        deadline = begun + _READY
        while len(lines) < self.world_size:
            ready, _, _ = select.select([self._listener], [], [], 0.2)
            if ready:
                lines.append(Line(self._listener.accept()[0]))
            elif job.process.poll() is not None or time.monotonic() > deadline:
                raise job.failed(
                    f"{len(lines)} of {self.world_size} ranks came within {time.monotonic() - begun:.0f} s"
                )
        return lines

    def turn(self, player: str, order: Mapping[str, Any]) -> tuple[float, int]:
        """(mean seconds of a call on the slowest rank, wrong elements on all ranks). Raises JobFailed."""
        job = self._job_of[player]
        text = json.dumps({**order, "player": player}).encode() + b"\n"
        try:
            for line in job.lines.values():
                line.send(text)
        except OSError as error:
            raise job.failed(f"a rank is gone ({error.strerror})") from error
        answers = self._answers(job, set(job.lines.values()), _TURN).values()
        return max(a["seconds"] for a in answers), sum(a["wrong"] for a in answers)

    def _answers(self, job: Job, waiting: set[Line], seconds: float) -> dict[Line, dict[str, Any]]:
        """One answer from each line."""
        answers: dict[Line, dict[str, Any]] = {}
        deadline = time.monotonic() + seconds
        poll = select.poll()
        by_number = {line.fileno(): line for line in waiting}
        for number in by_number:
            poll.register(number, select.POLLIN)
        while len(answers) < len(waiting):
            for number, _ in poll.poll(1000):
                try:
                    answer = by_number[number].receive()
                except (EOFError, OSError) as error:
                    raise job.failed("a rank has ended in the middle of a turn") from error
                if answer is not None:
                    answers[by_number[number]] = answer
                    poll.unregister(number)
            if time.monotonic() > deadline:
                late = len(waiting) - len(answers)
                raise job.failed(f"{late} of {self.world_size} ranks have not answered within {seconds:.0f} s")
        return answers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Everybody's socket is closed, so they end; whoever does not is ended."""
        for job in self._jobs:
            for line in job.lines.values():
                line.close()
        self._listener.close()
        for job in self._jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(0 if exc[0] else 15)
            end(job.process)
        self._folder.cleanup()
