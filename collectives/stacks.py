"""The stack of a card that cannot answer: it has not called superpod yet, or native code keeps the interpreter's lock.

Python's faulthandler writes it from a signal handler, which needs neither, into a file in the job's directory. The
signal is one of the last real-time ones, which nobody else uses, and goes only to processes that have a handler for it:
others it would kill.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

from superpod.collectives.places import Frame, is_foreign, shortened

SIGNAL = signal.SIGRTMAX - 1
ANSWER_WITHIN = 0.2  # seconds; the handler runs as soon as the process does
_LINE = re.compile(r'  File "(.*)", line (\d+) in (.*)')
_MOST_FRAMES = 12
_PREFIX = "stack"

_own_files: list[int] = []  # faulthandler wants them to stay open


def answer_the_signal(directory: Path, rank: int) -> None:
    """In a card: write the main thread's stack into a file in the job's directory whenever the signal comes."""
    fd = os.open(
        _file(directory, rank, os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600
    )
    _own_files.append(fd)
    faulthandler.register(SIGNAL, file=fd, all_threads=False)


def writers(directory: Path) -> dict[int, int]:
    """The cards of a job that answer the signal: rank → process id."""
    names = (path.name.removeprefix(_PREFIX).partition("-") for path in directory.glob(f"{_PREFIX}*-*"))
    return {int(rank): int(pid) for rank, _, pid in names if rank.isdecimal() and pid.isdecimal()}


class Question(NamedTuple):
    """What a card was asked. Attributes: file: where it answers; older: bytes there that it wrote before."""

    file: Path
    older: int

    def answer(self) -> tuple[Frame, ...]:
        """The latest stack that the card wrote since, the innermost frame first; () if none: it may be stopped."""
        with contextlib.suppress(OSError):
            text = self.file.read_bytes()[self.older :].decode(errors="replace")
            latest = text.rpartition("most recent call first")[2]
            found = [match.groups() for match in map(_LINE.fullmatch, latest.splitlines()) if match is not None]
            frames = [Frame(shortened(file), int(line), name, not is_foreign(file)) for file, line, name in found]
            while frames and not frames[-1].users:
                frames.pop()  # how the launcher came to run the user's program
            return tuple(frames[:_MOST_FRAMES])
        return ()


def ask(directory: Path, rank: int, pid: int) -> Question | None:
    """Send the signal to a card, which answers as soon as it runs; None if it will not."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(line for line in status if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) & 1 << (SIGNAL - 1):
            file = _file(directory, rank, pid)
            question = Question(file, file.stat().st_size)
            os.kill(pid, SIGNAL)
            return question
    return None


def _file(directory: Path, rank: int, pid: int) -> Path:
    return directory / f"{_PREFIX}{rank}-{pid}"
