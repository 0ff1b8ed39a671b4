"""Cards without a launcher ask one another what they are doing, through their store."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folder_store import FolderStore
from superpod.collectives.communicator import Communicator
from superpod.collectives.runtime import Runtime
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import DeadlineExceeded
from superpod.interconnect.rendezvous import AddressBook

N = 3
WAIT = 20  # seconds


@contextlib.contextmanager
def cards(folder: Path, fn: Callable[[Communicator], Any], settings: Settings) -> Iterator[list[int]]:
    """N forked cards whose stderr goes to files; yields their pids."""
    pids = []
    for rank in range(N):
        if (pid := os.fork()) == 0:
            os.dup2(os.open(folder / f"stderr{rank}", os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1)
            with contextlib.suppress(Exception):
                book = AddressBook(FolderStore(folder), "test")
                runtime = Runtime.from_settings(settings, Place(rank, N, rank, N), book)
                fn(Communicator(runtime, runtime.engine(range(N), "world", 60)))
            os._exit(0)
        pids.append(pid)
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def printed(folder: Path, pattern: str) -> str:
    """All that the cards have written to stderr, once that matches."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        text = "".join(path.read_text() for path in sorted(folder.glob("stderr*")))
        if re.search(pattern, text):
            return text
        time.sleep(0.01)
    raise AssertionError(f"nobody wrote {pattern!r}: {text}")


def compute() -> None:
    while True:
        pass


def card(comm: Communicator, timeout: float) -> None:
    comm.all_reduce(np.ones(3))
    if comm.rank == N - 1:
        compute()
    try:
        comm.all_reduce(np.ones(4), timeout=timeout)
    except DeadlineExceeded as error:
        print(error, file=sys.stderr)


CALL = r"all_reduce\(4 × float64, sum\) by [\w ]+ \(#1\) of group world"
LATE = rf"ranks 0-1 wait in {CALL}, .* for rank 2\n +rank 2 is in compute\(\) at "


def test_an_expired_wait_names_the_late_without_a_launcher(tmp_path: Path) -> None:
    with cards(tmp_path, lambda comm: card(comm, 1.0), Settings()):
        text = printed(tmp_path, LATE)
    assert re.search(r"rank \d: Timed out after 1\.0 s waiting for rank", text)
    assert re.search(r"compute\(\) at \S*test_reporter\.py:\d+; it did last all_reduce\(3 × float64, sum\)", text)


def test_of_the_waiting_ranks_the_first_prints_what_the_watchdog_sees(tmp_path: Path) -> None:
    with cards(tmp_path, lambda comm: card(comm, 60), Settings(watchdog=0.5)):
        printed(tmp_path, LATE)
        text = printed(tmp_path, rf"(?s){LATE}.*{LATE}")  # and again after twice the time
    assert set(re.findall(r"superpod: rank (\d) has waited for", text)) == {"0"}


@pytest.mark.parametrize("record", [0, 512])
def test_a_stopped_rank_is_said_not_to_answer(tmp_path: Path, record: int) -> None:
    def stops(comm: Communicator) -> None:
        comm.all_reduce(np.ones(3))
        if comm.rank == N - 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            comm.all_reduce(np.ones(4), timeout=1.0)
        except DeadlineExceeded as error:
            print(error, file=sys.stderr)

    with cards(tmp_path, stops, Settings(record=record)):
        printed(tmp_path, r"rank 2 does not answer, and may be stopped; it has left no record\n")
