"""The processors of this host: how many a card may use, and the one that it is bound to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from functools import partial

_unbound: list[int] = []  # how many this process had before it was bound


def cores() -> int:
    """The processors on which this process may run, or might before it was bound to one."""
    return _unbound[0] if _unbound else len(os.sched_getaffinity(0))


def bind(core: int) -> None:
    """This process runs on `core` from now on; what it forks does not. A core that is gone by now binds nobody."""
    before = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {core})
        _unbound[:] = [len(before)]
        os.register_at_fork(after_in_child=partial(_free, before))


def _free(before: Collection[int]) -> None:
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, before)
