"""A card that dies in the middle of a collective: everybody else names it within two seconds, without a launcher."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from folder_store import FolderStore
from superpod.collectives import algorithms
from superpod.collectives.communicator import Communicator
from superpod.collectives.runtime import Runtime
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import PeerLost, SuperpodError
from superpod.interconnect.rendezvous import AddressBook
from superpod.launcher.testing import run_ranks

NOTICED = 2.0  # seconds
N = 4


def joined(rank: int, folder: Path) -> Communicator:
    runtime = Runtime.from_settings(Settings(), Place(rank, N, rank, N), AddressBook(FolderStore(folder), "test"))
    return Communicator(runtime, runtime.engine(range(N), "world", 60))


@contextlib.contextmanager
def processes(folder: Path, fn: Callable[[Communicator], Any]) -> Iterator[tuple[list[int], list[int]]]:
    """N forked cards; yields their pids and the read ends of pipes for what `fn` returns."""
    pids, readers = [], []
    for rank in range(N):
        reader, writer = os.pipe()
        readers.append(reader)
        if (pid := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                comm = joined(rank, folder)
                with open(writer, "wb") as pipe:
                    pipe.write(pickle.dumps(fn(comm)))
                comm.close()
            os._exit(0)
        os.close(writer)
        pids.append(pid)
    try:
        yield pids, readers
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for reader in readers:
            os.close(reader)


def read(fd: int) -> Any:
    data = b""
    while more := os.read(fd, 1 << 16):
        data += more
    return pickle.loads(data)


def outcome(call: Callable[[], Any]) -> tuple[str, str, float]:
    """Class and text of the error, and when it came."""
    try:
        call()
    except SuperpodError as error:
        return type(error).__name__, str(error), time.time()
    return "", "", time.time()


@pytest.mark.parametrize("algorithm", ["ring", "tree", "one_shot", "halving_doubling"])
def test_a_card_that_ends_in_the_middle_is_named_by_all_others(algorithm: str, tmp_path: Path) -> None:
    """The card sends a part of what it has to send, and ends without a word."""
    victim = 2

    def card(comm: Communicator) -> tuple[str, str, float]:
        array = np.ones(2_000_000, np.float32)
        if comm.rank == victim:
            comm.all_reduce(array, algorithm=algorithm)
            comm.all_reduce(array, algorithm=algorithm, async_op=True)
            os._exit(1)
        return outcome(lambda: [comm.all_reduce(array, algorithm=algorithm) for _ in range(1000)])

    with processes(tmp_path, card) as (pids, readers):
        os.waitid(os.P_PID, pids[victim], os.WEXITED | os.WNOWAIT)
        died = time.time()
        for rank in range(N):
            if rank != victim:
                kind, text, noticed = read(readers[rank])
                assert kind == "PeerLost"
                assert re.match(rf"rank {victim} (died|is gone): .*, but rank \d needs it in ", text)
                assert "all_reduce(2000000 × float32, sum) by " + algorithm in text
                assert noticed - died < NOTICED


@pytest.mark.parametrize("victim", [0, 3])
def test_a_killed_card_is_named_by_those_who_wait_for_others_too(victim: int, tmp_path: Path) -> None:
    """In the ring rank r only meets r − 1 and r + 1: the one across hears of it from them."""

    def card(comm: Communicator) -> tuple[str, str, float]:
        def forever() -> None:
            comm.barrier()  # in which the others may still be when the victim has left it
            if comm.rank == victim:
                threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
            while True:
                comm.all_reduce(np.ones(1000), algorithm="ring")

        return outcome(forever)

    with processes(tmp_path, card) as (pids, readers):
        os.waitid(os.P_PID, pids[victim], os.WEXITED | os.WNOWAIT)
        died = time.time()
        for rank in set(range(N)) - {victim}:
            kind, text, noticed = read(readers[rank])
            assert kind == "PeerLost"
            assert re.match(rf"rank {victim} (died|is gone): ", text)
            assert noticed - died < NOTICED


def test_a_message_from_a_dead_card(tmp_path: Path) -> None:
    """What it had sent before still comes, then the news."""

    def card(comm: Communicator) -> Any:
        if comm.rank == 1:
            comm.send(np.full(3, 7.0), 0)
            comm.barrier()
            os._exit(1)
        comm.barrier()
        if comm.rank != 0:
            return None
        return comm.recv(np.zeros(3), 1).tolist(), outcome(lambda: comm.recv(np.zeros(3), 1))[:2]

    with processes(tmp_path, card) as (_, readers):
        first, (kind, text) = read(readers[0])
        assert first == [7, 7, 7]
        assert kind == "PeerLost"
        assert text.endswith("but rank 0 needs it in send/recv(3 × float64, tag 0) (#0)")


@pytest.mark.parametrize("algorithm", algorithms.names("all_reduce"))
def test_a_card_that_leaves_in_order_is_named(algorithm: str) -> None:
    def card(comm: Communicator) -> tuple[str, str]:
        comm.all_reduce(np.ones(100), algorithm=algorithm)
        if comm.rank == 1:
            return "", ""
        return outcome(lambda: comm.all_reduce(np.ones(100), algorithm=algorithm))[:2]

    for rank, (kind, text) in enumerate(run_ranks(3, card)):
        if rank != 1:
            assert kind == "PeerLost"
            assert text.startswith("rank 1 left the job, but rank ")
            assert text.endswith(f" needs it in all_reduce(100 × float64, sum) by {algorithm} (#1)")


def test_the_launcher_names_the_card_that_was_killed() -> None:
    def card(comm: Communicator) -> None:
        comm.barrier()
        if comm.rank == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            comm.all_reduce(np.ones(1000))

    start = time.monotonic()
    with pytest.raises(PeerLost, match=r"rank 3 \(pid \d+\) was killed by SIGKILL"):
        run_ranks(4, card)
    assert time.monotonic() - start < 5
