"""Cards that read one another's arrays: the same results where one of them cannot, and who is gone is named."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
import signal
import threading
from typing import Any

import numpy as np
import pytest

from superpod.collectives import fused
from superpod.collectives.communicator import Communicator
from superpod.collectives.express import Express
from superpod.interconnect import board, peer_memory
from superpod.interconnect.errors import PeerLost, RemoteError
from superpod.interconnect.exchange import Reading
from superpod.interconnect.shm_link import possible
from superpod.launcher.testing import run_ranks

pytestmark = pytest.mark.skipif(not possible(), reason="there is no board on this machine")

BLOCK = 600 << 10  # bytes: above both thresholds


def block(source: int, target: int, dtype: Any) -> Any:
    return np.random.default_rng([source, target]).integers(0, 2, BLOCK // np.dtype(dtype).itemsize).astype(dtype)


def plainly(comm: Communicator) -> None:
    """Without compiled code, in this card's process."""
    board.Seat = None  # type: ignore[assignment, misc]


def readings(comm: Communicator) -> int:
    """How many short ways in compiled code read where the others' arrays lie."""
    ways = [way for way in comm._engine.expresses.values() if not isinstance(way, Express)]
    moves = [held for way in ways for held in gc.get_referents(way) if type(held) is tuple]
    return sum(isinstance(move, Reading) for found in moves for move in found)


def exchange(comm: Communicator, dtype: Any) -> int:
    """All exchange blocks, three times; how many windows that took."""
    opened = 0
    window = fused._window

    def counted(*args: Any) -> Any:
        nonlocal opened
        found = window(*args)
        opened += found is not None
        return found

    fused._window = counted  # in this card's process alone
    ranks = range(comm.world_size)
    for turn in range(3):
        given = np.stack([block(comm.rank, target, dtype) for target in ranks])
        before = given.tobytes()
        assert (comm.all_to_all(given) == np.stack([block(source, comm.rank, dtype) for source in ranks])).all()
        assert (comm.all_gather(given[0]) == np.stack([block(source, 0, dtype) for source in ranks])).all()
        root = turn % comm.world_size
        own = np.empty_like(given[0])
        for _ in range(2):
            comm.scatter(given if comm.rank == root else None, root, own)
            assert (own == block(root, comm.rank, dtype)).all()
        assert given.tobytes() == before
    comm.all_to_all(np.ones((comm.world_size, 3), dtype))  # short ones have no need of it
    return opened


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.bool_])
@pytest.mark.parametrize("code", ["compiled", "plain", "mixed"])
def test_blocks_are_read_where_they_lie(n: int, dtype: Any, code: str) -> None:
    def card(comm: Communicator) -> tuple[int, int]:
        if code == "plain" or (code == "mixed" and comm.rank % 2):
            plainly(comm)
        opened = exchange(comm, dtype)
        return opened, readings(comm)

    if code != "plain" and board.Seat is None:
        pytest.skip("superpod was installed without a C compiler")
    roots, gathers = min(n, 3), n <= 4  # more cards gather by the board
    by_python, by_compiled_code = (9 + 3 * gathers, 0), (1 + gathers + roots, 1 + gathers + roots)
    wanted = {"plain": [by_python] * n, "compiled": [by_compiled_code] * n}
    wanted["mixed"] = [by_python if rank % 2 else by_compiled_code for rank in range(n)]
    assert run_ranks(n, card, link="shm") == wanted[code]


@pytest.mark.parametrize("blind", [0, 2])
def test_if_one_cannot_nobody_does(blind: int) -> None:
    def card(comm: Communicator) -> int:
        if comm.rank == blind:
            peer_memory._readv.cache_clear()
            peer_memory._readv = lambda: None  # type: ignore[assignment]
        return exchange(comm, np.float32)

    assert run_ranks(3, card, link="shm") == [0] * 3


def test_who_is_gone_while_it_is_read_is_named() -> None:
    def card(comm: Communicator) -> None:
        plainly(comm)
        given = np.ones((comm.world_size, BLOCK), np.uint8)
        comm.all_to_all(given)
        if comm.rank == 2:
            read = peer_memory.read

            def read_and_die(*args: Any) -> None:
                read(*args)
                os.kill(os.getpid(), signal.SIGKILL)

            peer_memory.read = read_and_die
        for _ in range(1000):
            comm.all_to_all(given)

    with pytest.raises((PeerLost, RemoteError), match="rank 2"):
        run_ranks(3, card, link="shm")


def test_who_is_gone_while_compiled_code_reads_it_is_named() -> None:
    def card(comm: Communicator) -> None:
        given = np.ones((comm.world_size, BLOCK), np.uint8)
        if comm.rank == 2:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
        while True:
            comm.all_to_all(given)

    with pytest.raises((PeerLost, RemoteError), match="rank 2"):
        run_ranks(3, card, link="shm")


def test_an_array_that_compiled_code_cannot_read_any_more_names_its_card() -> None:
    def card(comm: Communicator) -> str:
        out = np.ones((comm.world_size, BLOCK), np.uint8)
        room = mmap.mmap(-1, out.nbytes)
        given = np.frombuffer(room, np.uint8).reshape(out.shape)
        comm.all_to_all(given, out)
        assert readings(comm) == 1
        if comm.rank == 1:  # its block for rank 0 is taken away
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(given.ctypes.data), ctypes.c_size_t(BLOCK), 0) == 0
        with pytest.raises((PeerLost, RemoteError)) as caught:
            comm.all_to_all(given, out)
        return str(caught.value)

    if board.Seat is None:
        pytest.skip("superpod was installed without a C compiler")
    first, *_ = run_ranks(3, card, link="shm")
    assert re.search(r"rank 1's array cannot be read by rank 0 \(Bad address\)", first)


def test_an_array_that_cannot_be_read_any_more_names_its_card() -> None:
    def card(comm: Communicator) -> str:
        plainly(comm)
        given = np.ones((comm.world_size, BLOCK), np.uint8)
        comm.all_to_all(given)
        if comm.rank == 0:
            read = peer_memory.read
            peer_memory.read = lambda pid, address, into: read(pid, 8, into)
        with pytest.raises(PeerLost) as caught:
            comm.all_to_all(given)
        return str(caught.value)

    first, *others = run_ranks(3, card, link="shm")
    assert re.search(r"rank 1's array cannot be read by rank 0 \(reading 614400 B of process \d+: Bad address\)", first)
    assert all("rank" in text for text in others)
