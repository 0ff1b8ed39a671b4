"""run_ranks: results by rank, the first failure with its rank, nothing left."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import superpod
from superpod import run_ranks
from superpod.interconnect.errors import DeadlineExceeded, InvalidValue, PeerLost, RemoteError

LINKS = ["zmq", "shm", "memory"]


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp" if len(str(tmp_path)) > 50 else str(tmp_path))
    before, children = set(os.listdir("/proc/self/fd")), set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= children
    end = time.monotonic() + 5
    while any(thread.name.startswith("rank ") for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= len(before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_results_by_rank(n, link):
    def total(comm, start, *, more=0):
        return comm.rank, comm.world_size, comm.all_reduce(np.full(2, start + comm.rank)).tolist()

    whole = n * 10 + n * (n - 1) // 2
    assert run_ranks(n, total, 10, link=link) == [(rank, n, [whole, whole]) for rank in range(n)]


def test_cards_are_processes_with_the_environment_of_a_card():
    def who(comm):
        return os.getpid(), os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["SUPERPOD_SEGMENT"], os.getpgid(0)

    found = run_ranks(3, who, env={"SUPERPOD_SEGMENT": "2K"})
    assert len({pid for pid, *_ in found} - {os.getpid()}) == 3
    assert [rest for _, *rest in found] == [[str(rank), "3", "2K", found[rank][0]] for rank in range(3)]
    assert "RANK" not in os.environ


@pytest.mark.parametrize("link", LINKS)
def test_the_first_failure_is_raised_and_names_its_rank(link):
    def fails(comm):
        if comm.rank == 1:
            raise KeyError("no such layer")
        comm.all_reduce(np.ones(3))

    with pytest.raises(KeyError, match="no such layer") as caught:
        run_ranks(3, fails, link=link)
    (note,) = caught.value.__notes__
    assert note.startswith("on rank 1 of 3:\nTraceback")
    assert 'raise KeyError("no such layer")' in note
    assert "testing.py" not in note


def test_a_card_that_dies():
    def dies(comm):
        if comm.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.all_reduce(np.ones(3))

    with pytest.raises(PeerLost, match=r"^rank 2 \(pid \d+\) was killed by SIGKILL"):
        run_ranks(3, dies)


def test_a_card_that_leaves():
    with pytest.raises(PeerLost, match=r"^rank 0 \(pid \d+\) exited with code 3"):
        run_ranks(1, lambda comm: os._exit(3))


@pytest.mark.parametrize("link", LINKS)
def test_time_is_limited(link):
    def late(comm):
        if comm.rank == 1:
            comm.recv(np.ones(1), 0)

    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"^rank 1 of 3 have not returned within 0.5 s, and were ended$"):
        run_ranks(3, late, link=link, timeout=0.5)
    assert time.monotonic() - began < 5


class Unfit(Exception):
    """Can be pickled, but not read."""

    def __init__(self, one, two):
        super().__init__("unfit for travel")


def test_what_cannot_be_sent():
    def raises(comm):
        raise Unfit(1, 2)

    with pytest.raises(TypeError, match=r"rank 0 returned what cannot be sent to the caller: .*lambda"):
        run_ranks(1, lambda comm: lambda: 0)
    with pytest.raises(RemoteError, match=r"^rank 0 raised Unfit: unfit for travel"):
        run_ranks(1, raises)


def test_children_of_a_card_are_ended():
    def breeds(comm):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        return pid

    (pid,) = run_ranks(1, breeds)
    end = time.monotonic() + 5
    while (stat := Path(f"/proc/{pid}/stat")).exists() and " Z " not in stat.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"n": 0}, "n=0 must be at least 1"), ({"n": 1, "link": "x"}, "link='x' must be one of auto, zmq, shm, memory")],
)
def test_refused(kwargs, message):
    with pytest.raises(InvalidValue, match=message):
        run_ranks(fn=print, **kwargs)


def test_eight_processes_are_fast():
    run_ranks(2, lambda comm: comm.barrier())  # whatever loads, loads here
    began = time.monotonic()
    run_ranks(8, lambda comm: None)
    assert time.monotonic() - began < 3  # 0.05 on a quiet machine


def test_it_is_public():
    assert superpod.run_ranks is run_ranks
