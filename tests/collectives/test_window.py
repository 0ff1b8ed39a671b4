"""Cards that read one another's arrays: the same results where one of them cannot, and who is gone is named."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

import numpy as np
import pytest

from superpod.collectives import fused
from superpod.collectives.communicator import Communicator
from superpod.interconnect import peer_memory
from superpod.interconnect.errors import PeerLost, RemoteError
from superpod.interconnect.shm_link import possible
from superpod.launcher.testing import run_ranks

pytestmark = pytest.mark.skipif(not possible(), reason="there is no board on this machine")

BLOCK = 600 << 10  # bytes: above both thresholds


def block(source: int, target: int, dtype: Any) -> Any:
    return np.random.default_rng([source, target]).integers(0, 2, BLOCK // np.dtype(dtype).itemsize).astype(dtype)


def exchange(comm: Communicator, dtype: Any) -> int:
    """All exchange blocks, twice; how many windows that took."""
    opened = 0
    window = fused._window

    def counted(*args: Any) -> Any:
        nonlocal opened
        found = window(*args)
        opened += found is not None
        return found

    fused._window = counted  # in this card's process alone
    ranks = range(comm.world_size)
    for _ in range(2):
        given = np.stack([block(comm.rank, target, dtype) for target in ranks])
        before = given.tobytes()
        assert (comm.all_to_all(given) == np.stack([block(source, comm.rank, dtype) for source in ranks])).all()
        assert (comm.all_gather(given[0]) == np.stack([block(source, 0, dtype) for source in ranks])).all()
        assert given.tobytes() == before
    comm.all_to_all(np.ones((comm.world_size, 3), dtype))  # short ones have no need of it
    return opened


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.bool_])
def test_blocks_are_read_where_they_lie(n: int, dtype: Any) -> None:
    assert run_ranks(n, exchange, dtype, link="shm") == [4] * n


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


def test_an_array_that_cannot_be_read_any_more_names_its_card() -> None:
    def card(comm: Communicator) -> str:
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
