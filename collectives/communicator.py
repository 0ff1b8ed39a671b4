"""The API: collectives on numpy arrays among the cards of a job, without torch.

    comm = superpod.init()
    comm.all_reduce(array, op="sum")

All ranks of a communicator make the same calls in the same order. Results are bit-identical on every rank of an
all_reduce and from run to run: the order of a reduction is part of the algorithm's schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from superpod.collectives import flat
from superpod.collectives.arrays import (
    Array,
    Flat,
    block_of,
    block_shape,
    blocks_like,
    checked,
    copy_flat,
    dtype_name,
    flat_view,
    label,
    lies_apart,
    lies_flat,
    shaped,
    store,
    writable,
)
from superpod.collectives.communicator_base import WORLD, CommunicatorBase
from superpod.collectives.flat import NO_OPTIONS, Options, checked_seconds
from superpod.collectives.operations import operation
from superpod.collectives.runtime import Runtime
from superpod.collectives.work import MessageWork, Work
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import InvalidValue


class Communicator(CommunicatorBase):
    """A group of cards, seen from one of them.

    Every collective takes `async_op=True` to return a Work at once, `timeout` in seconds (default: the communicator's)
    and `algorithm` by name (default: chosen by size). Errors: InvalidValue for arguments that break a rule, before
    anything is sent; CollectiveMismatch when ranks made different calls; PeerLost or RemoteError when another card
    failed; DeadlineExceeded. After one of the last four the group has failed on every rank and is of no further use;
    the array's contents are undefined.

    Attributes:
        rank: this card's number in the group.
        world_size: n, how many cards it has.
    """

    def all_reduce(
        self,
        array: Array,
        op: str = "sum",
        out: Array | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Reduce over all ranks; every rank gets the result, in place or in `out` (same shape and dtype)."""
        key = None
        plain = type(array) is np.ndarray and type(op) is str
        if plain and algorithm is None and timeout is None and out is None and not async_op:
            express = self._expresses.get(key := ("all_reduce", op, array.dtype, array.size))
            if express is not None and express.run(array):
                return array
        opts = Options.of("all_reduce", algorithm, timeout)
        operation_ = operation(op, checked(array).dtype)
        target = writable(array) if out is None else shaped(out, array.shape, array.dtype)

        def action() -> Array:
            if out is not None:
                out[...] = array
            with Flat(target, operation_) as data:
                flat.all_reduce(self._engine, data, operation_, dtype_name(array.dtype), opts)
            if operation_.wide == array.dtype:
                self._keep(key, operation_)
            return target

        return self._issue("all_reduce", action, async_op)

    def reduce(
        self,
        array: Array,
        root: int = 0,
        op: str = "sum",
        out: Array | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Reduce over all ranks; the root gets the result, in place or in `out`. Other arrays stay as they are."""
        opts, operation_ = Options.of("reduce", algorithm, timeout), operation(op, checked(array).dtype)
        root = self._root(root)
        at_root = self.rank == root
        target = array
        if at_root:
            target = writable(array) if out is None else shaped(out, array.shape, array.dtype)
        key = None
        if not async_op and opts is NO_OPTIONS and operation_.wide == array.dtype:
            express = self._expresses.get(key := ("reduce", root, op, array.dtype, array.size))
            if express is not None and express.run(array, target):
                return target if at_root else None

        def action() -> Array | None:
            data = copy_flat(array, operation_.wide)
            flat.reduce(self._engine, data, operation_, root, dtype_name(array.dtype), opts)
            self._keep(key, operation_)
            if not at_root:
                return None
            store(target, data)
            return target

        return self._issue("reduce", action, async_op)

    def broadcast(
        self,
        array: Array,
        root: int = 0,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Copy the root's array into every rank's, in place."""
        opts, root = Options.of("broadcast", algorithm, timeout), self._root(root)
        at_root = self.rank == root
        key = None
        if not async_op and opts is NO_OPTIONS and lies_flat(array):
            express = self._expresses.get(key := ("broadcast", root, array.dtype, array.size))
            if express is not None and express.run(array):
                return array
        text = label(checked(array) if at_root else writable(array))

        def action() -> Array:
            with Flat(array, write_back=not at_root) as data:
                flat.broadcast(self._engine, data.view(np.uint8), root, text, opts)
            self._keep(key)
            return array

        return self._issue("broadcast", action, async_op)

    def all_gather(
        self,
        array: Array,
        out: Array | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Every rank's array on every rank: `out` of shape (n, *array.shape), made if it is not given."""
        opts, target = Options.of("all_gather", algorithm, timeout), blocks_like(checked(array), self.world_size, out)
        key = None
        if not async_op and opts is NO_OPTIONS and lies_flat(target):
            express = self._expresses.get(key := ("all_gather", array.dtype, array.size))
            if express is not None and express.run(array, target):
                return target
        text = label(array)

        def action() -> Array:
            target[self.rank] = array
            with Flat(target) as data:
                blocks = [array.nbytes] * self.world_size
                flat.all_gather(self._engine, data.view(np.uint8), blocks, text, opts)
            self._keep(key)
            return target

        return self._issue("all_gather", action, async_op)

    def reduce_scatter(
        self,
        array: Array,
        op: str = "sum",
        out: Array | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Reduce over all ranks and keep one block a rank: `array` has n blocks along its first axis.

        If the first of several axes has length n, the result has shape array.shape[1:]; otherwise its first axis is
        1/n as long.
        """
        opts, target = Options.of("reduce_scatter", algorithm, timeout), block_of(checked(array), self.world_size, out)
        key, operation_ = None, operation(op, array.dtype)
        if not async_op and opts is NO_OPTIONS and lies_flat(array) and (out is None or lies_apart(out, array)):
            express = self._expresses.get(key := ("reduce_scatter", op, array.dtype, array.size))
            if express is not None and express.run(array, target):
                return target
        text = label(array)
        taking = lies_apart(target, array) and operation_.wide == array.dtype

        def action() -> Array:
            blocks = [array.size // self.world_size] * self.world_size
            if taking:
                own = target.reshape(-1)
                flat.reduce_scatter(self._engine, flat_view(array), blocks, operation_, text, opts, own)
                self._keep(key, operation_)
            else:
                data = copy_flat(array, operation_.wide)
                store(target, flat.reduce_scatter(self._engine, data, blocks, operation_, text, opts))
            return target

        return self._issue("reduce_scatter", action, async_op)

    def all_to_all(
        self,
        array: Array,
        out: Array | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Block q of `array`, cut in n along its first axis, goes to rank q; block q of the result is rank q's.

        The result has array's shape; `out` may be `array` itself.
        """
        opts = Options.of("all_to_all", algorithm, timeout)
        block_shape(checked(array), self.world_size)
        target = np.empty(array.shape, array.dtype) if out is None else shaped(out, array.shape, array.dtype)
        key = None
        if not async_op and opts is NO_OPTIONS and lies_flat(target) and not np.may_share_memory(array, target):
            express = self._expresses.get(key := ("all_to_all", array.dtype, array.size))
            if express is not None and express.run(array, target):
                return target
        text = label(array)

        def action() -> Array:
            blocks = [array.nbytes // self.world_size] * self.world_size
            source = copy_flat(array, array.dtype) if np.may_share_memory(array, target) else flat_view(array)
            with Flat(target) as data:
                filled = data.view(np.uint8)
                flat.all_to_all(self._engine, source.view(np.uint8), filled, blocks, blocks, text, opts, equal=True)
            self._keep(key)
            return target

        return self._issue("all_to_all", action, async_op)

    def gather(
        self,
        array: Array,
        root: int = 0,
        out: Array | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Every rank's array at the root: shape (n, *array.shape) there, None elsewhere."""
        opts, root, text = Options.of("gather", algorithm, timeout), self._root(root), label(checked(array))
        target = blocks_like(array, self.world_size, out) if self.rank == root else None
        key = None
        if not async_op and opts is NO_OPTIONS:
            express = self._expresses.get(key := ("gather", root, array.dtype, array.size))
            if express is not None and express.run(*((array,) if target is None else (array, target))):
                return target

        def action() -> Array | None:
            own = flat_view(array).view(np.uint8)
            if target is None:
                flat.gather(self._engine, own, None, root, text, opts)
            else:
                with Flat(target) as data:
                    flat.gather(self._engine, own, data.view(np.uint8), root, text, opts)
            self._keep(key)
            return target

        return self._issue("gather", action, async_op)

    def scatter(
        self,
        array: Array | None,
        root: int = 0,
        out: Array | None = None,
        *,
        async_op: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Block r of the root's `array`, cut as by reduce_scatter, in rank r's `out`. Others pass None and an `out`."""
        opts, root = Options.of("scatter", algorithm, timeout), self._root(root)
        if self.rank == root:
            if array is None:
                raise InvalidValue("array=None at the root of a scatter; the root passes n blocks, shape (n, ...)")
            target = block_of(checked(array), self.world_size, out)
        elif out is None:
            raise InvalidValue("out=None on a rank that is not the root of a scatter; pass an array for its block")
        else:
            target = writable(out)
        key = None
        if not async_op and opts is NO_OPTIONS:
            express = self._expresses.get(key := ("scatter", root, target.dtype, target.size))
            if express is not None and express.run(*((array, target) if self.rank == root else (target,))):
                return target

        def action() -> Array:
            source = flat_view(array).view(np.uint8) if array is not None and self.rank == root else None
            with Flat(target) as data:
                flat.scatter(self._engine, source, data.view(np.uint8), root, label(target), opts)
            self._keep(key)
            return target

        return self._issue("scatter", action, async_op)

    def barrier(self, *, async_op: bool = False, algorithm: str | None = None, timeout: float | None = None) -> Any:
        """Return once every rank has called it."""
        opts = Options.of("barrier", algorithm, timeout)
        key = ("barrier",) if not async_op and opts is NO_OPTIONS else None
        express = None if key is None else self._expresses.get(key)
        if express is not None and express.run(np.zeros(1, np.uint8)):
            return None

        def action() -> None:
            flat.barrier(self._engine, opts)
            self._keep(key, flat.BARRIER)

        return self._issue("barrier", action, async_op)

    def group(self, ranks: Sequence[int]) -> Communicator | None:
        """A communicator of some of this one's ranks, in the order given; None on the ranks that are not in it.

        All ranks of this communicator call it, with the same ranks.
        """
        members = [self._peer(r, itself=True) for r in ranks]
        if len(set(members)) != len(members) or not members:
            raise InvalidValue(f"ranks={list(ranks)} must be distinct, and at least one")
        self._groups += 1
        if self.rank not in members:
            return None
        name = f"{self._engine.name}.{self._groups}"
        engine = self._runtime.engine([self._engine.ranks[r] for r in members], name, self._engine.timeout)
        return Communicator(self._runtime, engine)


def init(timeout: float | None = None) -> Communicator:
    """The communicator of all cards of the job that this process belongs to; a world of one outside superpod-run.

    Args:
        timeout: seconds that a call may take; default SUPERPOD_TIMEOUT.
    Raises:
        InvalidValue: `timeout` is not above 0; a setting in the environment is wrong.
    """
    settings = Settings.read()
    return connect(settings, Place.read(), timeout)


def connect(settings: Settings, place: Place, timeout: float | None = None) -> Communicator:
    """As `init`, with settings and place given. Raises InvalidValue when there is no store to meet the others in."""
    runtime = Runtime.from_settings(settings, place)
    engine = runtime.engine(range(place.world_size), WORLD, checked_seconds(timeout) or settings.timeout)
    return Communicator(runtime, engine)


def in_memory(n: int, settings: Settings | None = None) -> list[Communicator]:
    """The communicators of n cards that are threads of this process: rank r's is to be used by one thread."""
    settings = settings or Settings()
    runtimes = Runtime.in_memory(n, settings)
    return [Communicator(r, r.engine(range(n), WORLD, settings.timeout)) for r in runtimes]


__all__ = ["Communicator", "MessageWork", "Work", "connect", "in_memory", "init"]
