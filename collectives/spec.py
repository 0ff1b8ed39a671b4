"""What each collective means: which data every rank has before it and must have after it.

Words. A buffer is one *block* (all_reduce, broadcast, reduce, barrier) or n of them, one a rank (the others); a block
is nchunks / nblocks chunks of a schedule. A *datum* is what a block holds, whoever contributed to it: two blocks may be
added only if they hold the same datum. all_to_all has n² of them: input block d of rank r is datum r·n + d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from superpod.collectives.schedule import ROOTED, IntArray, Schedule
from superpod.interconnect.errors import InvalidValue

NOTHING = -1
"""As a datum: before, the block holds nothing that may be read; after, anything may be there."""
EVERYONE = -1
"""As an origin: the contributions of all n ranks, each exactly once."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Pre- and postcondition of one collective at one world size. Arrays are (world_size, nblocks).

    Attributes:
        collective: the collective's name.
        before: the datum that bank 0 holds at the start, contributed by the rank that holds it; or NOTHING.
        after: the datum that bank `result` must hold at the end; or NOTHING.
        origin: whose contributions that datum must be made of: one rank's, or EVERYONE's.
        result: the bank of the result: 0 (in place), or 1 (all_to_all).
        idempotent: a contribution may be counted more than once (barrier: knowing twice is knowing).
    """

    collective: str
    before: IntArray
    after: IntArray
    origin: IntArray
    result: int = 0
    idempotent: bool = False

    @property
    def world_size(self) -> int:
        return len(self.before)

    @property
    def nblocks(self) -> int:
        return int(self.before.shape[1])


def all_reduce(n: int) -> Spec:
    """Every rank's buffer becomes the sum of all ranks'."""
    return Spec("all_reduce", _whole(n), _whole(n), _full(n, 1, EVERYONE))


def broadcast(n: int, root: int = 0) -> Spec:
    """Every rank's buffer becomes the root's."""
    return Spec("broadcast", _only(root, _whole(n)), _whole(n), _full(n, 1, root))


def reduce(n: int, root: int = 0) -> Spec:
    """The root's buffer becomes the sum of all ranks'."""
    return Spec("reduce", _whole(n), _only(root, _whole(n)), _full(n, 1, EVERYONE))


def barrier(n: int) -> Spec:
    """No data: what each rank sends says whom it has heard of, and everyone must have heard of everyone."""
    return Spec("barrier", _whole(n), _whole(n), _full(n, 1, EVERYONE), idempotent=True)


def all_gather(n: int) -> Spec:
    """Block q of every rank becomes rank q's own."""
    return Spec("all_gather", _own(n), _blocks(n), _blocks(n))


def gather(n: int, root: int = 0) -> Spec:
    """Block q of the root becomes rank q's own."""
    return Spec("gather", _own(n), _only(root, _blocks(n)), _blocks(n))


def reduce_scatter(n: int) -> Spec:
    """Block r of rank r becomes the sum of all ranks' blocks r."""
    return Spec("reduce_scatter", _blocks(n), _own(n), _full(n, n, EVERYONE))


def scatter(n: int, root: int = 0) -> Spec:
    """Block r of rank r becomes the root's block r."""
    return Spec("scatter", _only(root, _blocks(n)), _own(n), _full(n, n, root))


def all_to_all(n: int) -> Spec:
    """Output block q of rank r becomes input block r of rank q."""
    data = np.arange(n * n, dtype=np.int64).reshape(n, n)
    return Spec("all_to_all", data, data.T.copy(), _blocks(n), result=1)


_SPECS: dict[str, Callable[..., Spec]] = {
    f.__name__: f
    for f in (all_reduce, broadcast, reduce, all_gather, reduce_scatter, all_to_all, gather, scatter, barrier)
}


def of(schedule: Schedule) -> Spec:
    """The spec of the collective that `schedule` names. Raises InvalidValue when there is no such collective."""
    make = _SPECS.get(schedule.collective)
    if make is None:
        raise InvalidValue(f"collective={schedule.collective!r} must be one of {', '.join(_SPECS)}")
    return make(schedule.world_size, *([schedule.root] if schedule.collective in ROOTED else []))


def _full(n: int, nblocks: int, value: int) -> IntArray:
    return np.full((n, nblocks), value, np.int64)


def _whole(n: int) -> IntArray:
    """The same datum 0 on every rank."""
    return _full(n, 1, 0)


def _blocks(n: int) -> IntArray:
    """Data 0 to n − 1 on every rank."""
    return np.tile(np.arange(n, dtype=np.int64), (n, 1))


def _own(n: int) -> IntArray:
    """Datum r on rank r, in its own block."""
    return np.where(np.eye(n, dtype=np.bool_), _blocks(n), NOTHING)


def _only(rank: int, data: IntArray) -> IntArray:
    """`data` on one rank, nothing on the others."""
    return np.where(np.arange(len(data))[:, None] == rank, data, NOTHING)
