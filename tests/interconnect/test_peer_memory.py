"""Reading another process's memory: all of it or an error, and never another process's for the one that was meant."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from superpod.interconnect import peer_memory
from superpod.interconnect.peer_memory import read, readable

CHILD = """
import sys, numpy as np
array = np.arange(int(sys.argv[1]), dtype=np.uint64)
print(array.ctypes.data, flush=True)
sys.stdin.read()
"""
COUNT = 1_000_003


@pytest.fixture
def peer() -> Iterator[tuple[int, int]]:
    """A process and where its array lies: COUNT numbers from 0 on."""
    command = [sys.executable, "-c", CHILD, str(COUNT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.stdin.close()


def test_the_whole_array_and_a_part(peer: tuple[int, int]) -> None:
    pid, address = peer
    whole, part = np.empty(COUNT, np.uint64), np.empty(5, np.uint64)
    read(pid, address, whole)
    read(pid, address + 8 * 1000, part)
    assert (whole == np.arange(COUNT)).all()
    assert part.tolist() == [1000, 1001, 1002, 1003, 1004]
    read(pid, address, np.empty(0, np.uint8))


def test_what_is_not_there(peer: tuple[int, int]) -> None:
    pid, _ = peer
    with pytest.raises(OSError, match=rf"reading 64 B of process {pid}: ") as caught:
        read(pid, 8, np.empty(8))
    assert caught.value.errno == errno.EFAULT


def test_who_is_not_there(peer: tuple[int, int]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(OSError, match="No such process"):
        read(gone.pid, peer[1], np.empty(8))


def test_a_system_without_it(monkeypatch: pytest.MonkeyPatch, peer: tuple[int, int]) -> None:
    monkeypatch.setattr(peer_memory, "_readv", lambda: None)
    with pytest.raises(OSError, match="process_vm_readv") as caught:
        read(*peer, np.empty(8))
    assert caught.value.errno == errno.ENOSYS
    assert not readable(*peer, bytes(8))


def test_the_token_tells_the_right_process(peer: tuple[int, int]) -> None:
    token = np.arange(2, dtype=np.uint64).tobytes()
    assert readable(*peer, token)
    assert not readable(*peer, token[::-1])
    assert not readable(peer[0], 8, token)


@pytest.mark.parametrize(("scope", "asked"), [("1", True), ("0", False), ("2", False), (None, False)])
def test_consent_is_given_where_it_is_asked_for(
    scope: str | None, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the parent, so that what it has started may read: prctl(2), PR_SET_PTRACER."""
    yama, calls = tmp_path / "ptrace_scope", []

    class Library:
        def __init__(self, _: object) -> None: ...

        def prctl(self, option: int, pid: ctypes.c_ulong, *_: int) -> None:
            calls.append((option, pid.value))

    if scope is not None:
        yama.write_text(scope + "\n")
    monkeypatch.setattr(peer_memory, "_YAMA", yama)
    monkeypatch.setattr(ctypes, "CDLL", Library)
    peer_memory.consent()
    assert calls == ([(0x59616D61, os.getppid())] if asked else [])
