"""`torch.distributed.init_process_group("superpod")`: makes process groups, which share one mesh a process.

Importing this module makes the backend known to torch, for programs that switched torch's own discovery off.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from superpod.collectives import torch_backend_entry
from superpod.collectives.engine import Engine
from superpod.collectives.runtime import Runtime
from superpod.collectives.torch_backend_coalesced import SuperpodProcessGroup
from superpod.collectives.torch_backend_compiled import leave_alone
from superpod.collectives.torch_backend_steps import mark_steps
from superpod.collectives.torch_backend_work import JointWork, TorchWork
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.rendezvous import AddressBook, TorchStore

torch_backend_entry.register()
leave_alone(SuperpodProcessGroup, TorchWork, JointWork)


class _Card:
    """This process's part in the job: its runtime, and the groups that use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        self._groups: set[int] = set()
        self._splits: dict[int, list[Engine]] = {}  # engines of groups that were split from one, by its id
        self._spans_world = False  # the runtime met all ranks in the default group's store

    def open(self, options: Any) -> SuperpodProcessGroup:
        rank, size = options.group_rank, options.group_size
        ranks = list(options.global_ranks_in_group) or list(range(size))
        with self._lock:
            runtime, spans_world = self._runtime, self._spans_world
            if runtime is None or runtime.mesh.closed:  # closed: this process was forked from one that had it
                place = Place(ranks[rank], max(max(ranks) + 1, size), ranks[rank], size)
                runtime = Runtime.from_settings(Settings.read(), place, _book(options.store, ranks[rank]))
                self._groups, self._splits, spans_world = set(), {}, not dist.is_initialized()
            elif not spans_world:
                runtime.join(ranks, _book(options.store, ranks[rank]))
            mark_steps(runtime)
            engine = runtime.engine(ranks, options.group_id, options.timeout.total_seconds())
            self._runtime, self._spans_world = runtime, spans_world
            self._groups.add(id(engine))
            return SuperpodProcessGroup(engine, self, options.store)

    def split(
        self, parent: Engine, ranks: Sequence[int], name: str, seconds: float, store: Any
    ) -> SuperpodProcessGroup:
        """A new group of the parent's group ranks `ranks`, which have met already; InvalidValue after its release."""
        with self._lock:
            if self._runtime is None or id(parent) not in self._groups:
                raise InvalidValue(f"group {parent.name} was destroyed; split one that was not")
            engine = self._runtime.engine([parent.ranks[r] for r in ranks], name, seconds)
            self._groups.add(id(engine))
            self._splits.setdefault(id(parent), []).append(engine)
            return SuperpodProcessGroup(engine, self, store)

    def release(self, engine: Engine) -> None:
        """A group has ended, and with it those that were split from it; with the last one the mesh. Idempotent."""
        with self._lock:
            self._release(engine)
            if not self._groups and self._runtime is not None:
                self._runtime.close()
                self._runtime = None

    def _release(self, engine: Engine) -> None:
        if id(engine) in self._groups:
            self._groups.remove(id(engine))
            engine.close(job=not self._groups)
            for split in self._splits.pop(id(engine), ()):
                self._release(split)


def _book(store: Any, rank: int) -> AddressBook:
    """Where the group's ranks meet. One store may see several groups of one name, each after the last was destroyed:
    every rank counts for itself how often it has been there, which is the same for all.
    """
    generation = store.add(f"superpod/generation/{rank}", 1)
    return AddressBook(TorchStore(store), f"superpod/mesh/{generation}")


_card = _Card()


def create_process_group(options: Any, group_options: Any) -> SuperpodProcessGroup:
    """What torch calls for every group; `options` has store, group_rank, group_size, timeout, group_id and ranks."""
    return _card.open(options)
