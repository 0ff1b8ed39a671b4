"""Runs programs in a process that has imported torch once and forks the ranks, with the launcher's part around them.

    with Pool() as pool:
        ends = pool.run(program)

What a rank came to is an `End`. The process is one of its own, because pytest's has threads.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from chaos_programs import Program

_LENGTH = struct.Struct("<Q")
LIMIT = 60.0  # seconds of a program


@dataclass(frozen=True)
class End:
    """How a rank ended: with a number of compared results, with an error, or (neither) not in time.

    `time` is that of the error [s]; `killed`: it said nothing any more.
    """

    rank: int
    compared: int | None
    error: str
    text: str
    time: float
    killed: bool


class Pool:
    """The testing process's end."""

    def __init__(self) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def run(self, program: Program) -> list[End]:
        """Run a program; by rank, what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _write(self._process.stdin, program)
        return [End(*end) for end in _read(self._process.stdout)]


def _write(stream: BinaryIO, value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: BinaryIO) -> Any:
    head = stream.read(_LENGTH.size)
    return pickle.loads(stream.read(_LENGTH.unpack(head)[0])) if head else None


# The process that forks


def main() -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # torch renames its functions
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what ranks print must not get between the answers
    while (request := _read(requests)) is not None:
        _write(answers, _serve(request))
    os._exit(0)  # taking torch apart takes a second


def _serve(program: Program) -> list[tuple[Any, ...]]:
    from superpod.interconnect.env import LauncherSettings, Place, worker_environment
    from superpod.launcher import testing
    from superpod.launcher.directory import job_directory
    from superpod.launcher.zygote_process import store_endpoint

    testing._AFTER_FAILURE = LIMIT  # the survivors are to end by themselves

    class Job(testing._Job):
        """Whose cards connect by themselves."""

        def _live(self, place: Place, call: Callable[[Any], Any]) -> Any:
            store = store_endpoint(self._directory)
            os.environ.update(worker_environment(place, directory=self._directory, store=store, master_port=0))
            os.environ.update(self._env)
            return call(place)

    env = {"SUPERPOD_LINK": program.link, "SUPERPOD_TIMEOUT": "30s", **program.env}
    with job_directory(LauncherSettings.read().runtime_directory) as directory, Job(program.n, directory, env) as job:
        for rank in range(program.n):
            job.start(rank, lambda place: _card(program, place, str(directory)))
        return [_end(result) for result in job.collect(time.monotonic() + LIMIT)]


def _card(program: Program, place: Any, directory: str) -> int:
    import chaos_cards

    return chaos_cards.live(program, place, directory)


def _end(result: Any) -> tuple[Any, ...]:
    """An End's fields: the class itself has another name here."""
    error = result.error
    kind, text = ("", "") if error is None else (type(error).__name__, str(error))
    killed = error is not None and not result.traceback
    if kind not in ("PeerLost", "CollectiveMismatch", "RemoteError", "Wrong"):
        text += "\n" + result.traceback
    return result.rank, result.value if result.returned else None, kind, text, result.time, killed


if __name__ == "__main__":
    main()
