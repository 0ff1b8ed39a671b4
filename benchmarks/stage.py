"""Programs that are compared, and whose turn it is: superpod-bench's end of their lines.

Each program is a job of n ranks (see player.py), started by its own launcher. Every rank has a line to here (lines.py),
and waits there while others have their turn. A rank that finds the line closed ends; so does its job.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from superpod.benchmarks.job import JobFailed, end
from superpod.benchmarks.lines import Answer, Door, Line
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


class Stage:
    """All programs of one run on `world_size` ranks each."""

    def __init__(self, world_size: int, address: str = "") -> None:
        """`address`: of this host, for ranks on several hosts; "" where all are on this one."""
        self.world_size = world_size
        self._door = Door(address, world_size)
        self.address = self._door.address  # where ranks come in
        self._players: dict[str, tuple[Job, str]] = {}  # name → its job, and what it is called there
        self._jobs: list[Job] = []
        self._files: list[int] = []  # descriptors

    def file(self, text: str) -> str:
        """The path of a file with this text, which other programs on this host can read until the stage ends."""
        self._files.append(os.memfd_create("superpod-bench", os.MFD_CLOEXEC))
        os.write(self._files[-1], text.encode())
        return f"/proc/{os.getpid()}/fd/{self._files[-1]}"

    def start(self, name: str, command: Sequence[str], variables: Mapping[str, str], mark: str = "") -> float:
        """Start a job and wait until all ranks are there; seconds until the last one was ready, on one host.

        `mark`: behind the names of this job's players, where another one has the same. Raises JobFailed.
        """
        begun = time.monotonic()
        environment = child_environment({**variables, "SUPERPOD_BENCH": self._door.token})
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), env=environment)
        except OSError as error:
            raise JobFailed(f"{name}: {command[0]} cannot be started ({error.strerror}); make bench-peers") from error
        self._jobs.append(job := Job(name, process))
        ready, players = begun, list[str]()
        for line, hello in self._arrivals(job):
            job.lines[hello["rank"]] = line
            ready, players = max(ready, hello["ready"]), hello["players"]
        self._players |= {player + mark: (job, player) for player in players}
        return ready - begun

    def _arrivals(self, job: Job) -> Iterator[tuple[Line, Answer]]:
        """The job's ranks as they come: a line to each, and its first words."""
        count, begun = 0, time.monotonic()
        while count < self.world_size:
            arrivals = self._door.arrivals(0.2)
            count += len(arrivals)
            yield from arrivals
            waited = time.monotonic() - begun
            if not arrivals and (job.process.poll() is not None or waited > _READY):
                raise job.failed(f"{count} of {self.world_size} ranks came within {waited:.0f} s")

    def turn(self, player: str, order: Mapping[str, Any]) -> tuple[float, int]:
        """(mean seconds of a call on the slowest rank, wrong elements on all ranks). Raises JobFailed."""
        job, known_as = self._players[player]
        text = json.dumps({**order, "player": known_as}).encode() + b"\n"
        try:
            for line in job.lines.values():
                line.send(text)
        except OSError as error:
            raise job.failed(f"a rank is gone ({error.strerror})") from error
        answers = self._answers(job, set(job.lines.values()), _TURN).values()
        return max(a["seconds"] for a in answers), sum(a["wrong"] for a in answers)

    def _answers(self, job: Job, waiting: set[Line], seconds: float) -> dict[Line, Answer]:
        """One answer from each line."""
        answers: dict[Line, Answer] = {}
        deadline = time.monotonic() + seconds
        poll = select.poll()
        by_number = {line.fileno(): line for line in waiting}
        for number in by_number:
            poll.register(number, select.POLLIN)
        while len(answers) < len(waiting):
            for number, _ in poll.poll(1000):
                try:
                    answer = by_number[number].receive()
                except (EOFError, OSError, ValueError) as error:
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
        self._door.close()
        for job in self._jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(0 if exc[0] else 15)
            end(job.process)
        while self._files:
            os.close(self._files.pop())
