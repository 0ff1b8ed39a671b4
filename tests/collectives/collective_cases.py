"""Every collective as a case: what each rank brings, how it is called, what each rank must hold afterwards, to the bit.

Values are whole numbers that differ by rank and index, so sums are exact in whatever order they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from superpod.collectives import algorithms
from superpod.collectives.communicator import Communicator
from superpod.collectives.schedule import ROOTED
from superpod.interconnect.env import COLLECTIVES

WORLDS = (1, 2, 3, 4, 5, 7, 8, 16)
EVERY = [(collective, name) for collective in COLLECTIVES for name in algorithms.names(collective)]


def sizes(n: int) -> list[int]:
    return sorted({0, 1, n - 1, n, 10_001})


def brought(rank: int, count: int, dtype: Any = np.float32) -> Any:
    """What a rank brings: 0 to 1099, so 16 of them add up exactly even in float16's successor float32."""
    return ((np.arange(count) * 31 + rank * 101 + 7) % 1100).astype(dtype)


def rooted(collective: str, n: int) -> list[int]:
    return sorted({0, n // 2, n - 1}) if collective in ROOTED else [0]


def check(comm: Communicator, collective: str, algorithm: str | None, count: int, root: int = 0) -> None:
    """Call the collective with blocks of `count` elements and compare this rank's result with numpy's."""
    CHECKS[collective](comm, algorithm, count, root)


def same(result: Any, expected: Any) -> None:
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    assert result.tobytes() == expected.tobytes()


def total(n: int, count: int) -> Any:
    return sum((brought(r, count) for r in range(n)), np.zeros(count, np.float32))


def all_reduce(comm: Communicator, algorithm: str | None, count: int, root: int) -> None:
    array = brought(comm.rank, count)
    assert comm.all_reduce(array, algorithm=algorithm) is array
    same(array, total(comm.world_size, count))


def reduce(comm: Communicator, algorithm: str | None, count: int, root: int) -> None:
    array = brought(comm.rank, count)
    result = comm.reduce(array, root, algorithm=algorithm)
    if comm.rank == root:
        assert result is array
        same(array, total(comm.world_size, count))
    else:
        assert result is None
        same(array, brought(comm.rank, count))


def broadcast(comm: Communicator, algorithm: str | None, count: int, root: int) -> None:
    array = brought(comm.rank, count)
    comm.broadcast(array, root, algorithm=algorithm)
    same(array, brought(root, count))


def all_gather(comm: Communicator, algorithm: str | None, count: int, root: int) -> None:
    result = comm.all_gather(brought(comm.rank, count), algorithm=algorithm)
    same(result, np.stack([brought(r, count) for r in range(comm.world_size)]))


def reduce_scatter(comm: Communicator, algorithm: str | None, count: int, root: int) -> None:
    n = comm.world_size
    result = comm.reduce_scatter(brought(comm.rank, n * count).reshape(n, count), algorithm=algorithm)
    same(result, total(n, n * count)[comm.rank * count : (comm.rank + 1) * count])


def all_to_all(comm: Communicator, algorithm: str | None, count: int, root: int) -> None:
    n, me = comm.world_size, comm.rank
    result = comm.all_to_all(brought(me, n * count).reshape(n, count), algorithm=algorithm)
    same(result, np.stack([brought(q, n * count)[me * count : (me + 1) * count] for q in range(n)]))


def gather(comm: Communicator, algorithm: str | None, count: int, root: int) -> None:
    result = comm.gather(brought(comm.rank, count), root, algorithm=algorithm)
    if comm.rank == root:
        same(result, np.stack([brought(r, count) for r in range(comm.world_size)]))
    else:
        assert result is None


def scatter(comm: Communicator, algorithm: str | None, count: int, root: int) -> None:
    n, me = comm.world_size, comm.rank
    array = brought(root, n * count).reshape(n, count) if me == root else None
    result = comm.scatter(array, root, np.full(count, -1, np.float32), algorithm=algorithm)
    same(result, brought(root, n * count)[me * count : (me + 1) * count])


def barrier(comm: Communicator, algorithm: str | None, count: int, root: int) -> None:
    comm.barrier(algorithm=algorithm)


CHECKS: dict[str, Callable[[Communicator, str | None, int, int], None]] = {
    "all_reduce": all_reduce,
    "broadcast": broadcast,
    "reduce": reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "all_to_all": all_to_all,
    "gather": gather,
    "scatter": scatter,
    "barrier": barrier,
}
