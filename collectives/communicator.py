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

from superpod.collectives import algorithms, flat
from superpod.collectives.arrays import (
    Array,
    Flat,
    able_to_take,
    block_shape,
    checked,
    copy_flat,
    dtype_name,
    flat_view,
    is_rank,
    label,
    shaped,
    store,
    writable,
)
from superpod.collectives.engine import Engine
from superpod.collectives.flat import Options
from superpod.collectives.operations import operation
from superpod.collectives.runtime import Runtime
from superpod.collectives.select import Choice
from superpod.collectives.work import MessageWork, Work
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import InvalidValue


class Communicator:
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

    def __init__(self, runtime: Runtime, engine: Engine) -> None:
        """Use `init`, `connect`, `in_memory` or `Communicator.group`."""
        self._runtime = runtime
        self._engine = engine
        self._groups = 0
        self.rank = engine.rank
        self.world_size = engine.world_size

    @property
    def link(self) -> str:
        """The name of the link that carries the payload."""
        return self._runtime.mesh.link.name

    @property
    def last(self) -> Choice | None:
        """The algorithm of this card's last collective, and why it was chosen."""
        return self._engine.last

    def __repr__(self) -> str:
        return f"<Communicator {self._engine.name}: rank {self.rank} of {self.world_size}, link {self.link}>"

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        opts, operation_ = _options("all_reduce", algorithm, timeout), operation(op, checked(array).dtype)
        target = writable(array) if out is None else shaped(out, array.shape, array.dtype)

        def action() -> Array:
            if out is not None:
                out[...] = array
            with Flat(target, operation_) as data:
                flat.all_reduce(self._engine, data, operation_, dtype_name(array.dtype), opts)
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
        opts, operation_ = _options("reduce", algorithm, timeout), operation(op, checked(array).dtype)
        at_root = self.rank == self._root(root)
        target = array
        if at_root:
            target = writable(array) if out is None else shaped(out, array.shape, array.dtype)

        def action() -> Array | None:
            data = copy_flat(array, operation_.wide)
            flat.reduce(self._engine, data, operation_, root, dtype_name(array.dtype), opts)
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
        opts, at_root = _options("broadcast", algorithm, timeout), self.rank == self._root(root)
        text = label(checked(array) if at_root else writable(array))

        def action() -> Array:
            with Flat(array, write_back=not at_root) as data:
                flat.broadcast(self._engine, data.view(np.uint8), root, text, opts)
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
        opts, text = _options("all_gather", algorithm, timeout), label(checked(array))
        target = self._blocks_like(array, out)

        def action() -> Array:
            target[self.rank] = array
            with Flat(target) as data:
                blocks = [array.nbytes] * self.world_size
                flat.all_gather(self._engine, data.view(np.uint8), blocks, text, opts)
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
        opts, operation_ = _options("reduce_scatter", algorithm, timeout), operation(op, checked(array).dtype)
        target, text = self._block_of(array, out), label(array)

        def action() -> Array:
            blocks = [array.size // self.world_size] * self.world_size
            if able_to_take(target, array, operation_):
                own = target.reshape(-1)
                flat.reduce_scatter(self._engine, flat_view(array), blocks, operation_, text, opts, own)
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
        opts, text = _options("all_to_all", algorithm, timeout), label(checked(array))
        block_shape(array, self.world_size)
        target = np.empty(array.shape, array.dtype) if out is None else shaped(out, array.shape, array.dtype)

        def action() -> Array:
            blocks = [array.nbytes // self.world_size] * self.world_size
            source = copy_flat(array, array.dtype) if np.may_share_memory(array, target) else flat_view(array)
            with Flat(target) as data:
                filled = data.view(np.uint8)
                flat.all_to_all(self._engine, source.view(np.uint8), filled, blocks, blocks, text, opts, equal=True)
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
        opts, text = _options("gather", algorithm, timeout), label(checked(array))
        target = self._blocks_like(array, out) if self.rank == self._root(root) else None

        def action() -> Array | None:
            own = flat_view(array).view(np.uint8)
            if target is None:
                flat.gather(self._engine, own, None, root, text, opts)
                return None
            with Flat(target) as data:
                flat.gather(self._engine, own, data.view(np.uint8), root, text, opts)
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
        opts = _options("scatter", algorithm, timeout)
        if self.rank == self._root(root):
            if array is None:
                raise InvalidValue("array=None at the root of a scatter; the root passes n blocks, shape (n, ...)")
            target = self._block_of(checked(array), out)
        elif out is None:
            raise InvalidValue("out=None on a rank that is not the root of a scatter; pass an array for its block")
        else:
            target = writable(out)

        def action() -> Array:
            source = flat_view(array).view(np.uint8) if array is not None and self.rank == root else None
            with Flat(target) as data:
                flat.scatter(self._engine, source, data.view(np.uint8), root, label(target), opts)
            return target

        return self._issue("scatter", action, async_op)

    def barrier(self, *, async_op: bool = False, algorithm: str | None = None, timeout: float | None = None) -> Any:
        """Return once every rank has called it."""
        opts = _options("barrier", algorithm, timeout)
        return self._issue("barrier", lambda: flat.barrier(self._engine, opts), async_op)

    def send(
        self, array: Array, peer: int, tag: int = 0, *, async_op: bool = False, timeout: float | None = None
    ) -> Any:
        """Send `array` to `peer`, who must `recv` as many elements of that dtype with the same tag (0 to 2^31 − 1).

        Returns once the array may be changed; that the peer has received it is not known then.
        """
        source, seconds = flat_view(checked(array)).view(np.uint8), _seconds(timeout)
        work = self._engine.send(source, self._peer(peer), tag, label(array), seconds)
        return work if async_op else work.wait()

    def recv(
        self, array: Array, peer: int, tag: int = 0, *, async_op: bool = False, timeout: float | None = None
    ) -> Any:
        """Receive in `array` (contiguous) what `peer` sends with `tag`; messages of a peer and tag keep their order."""
        if not writable(array).flags.c_contiguous:
            raise InvalidValue(f"array with strides {array.strides} is not contiguous; receive into a contiguous one")
        into, seconds = array.reshape(-1).view(np.uint8), _seconds(timeout)
        work = self._engine.recv(into, self._peer(peer), tag, label(array), seconds, lambda: array)
        return work if async_op else work.wait()

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

    def close(self) -> None:
        """Leave the group; closing the first communicator of a process ends its mesh, with a farewell to the peers."""
        last = self._engine.name == WORLD
        self._engine.close(job=last)
        if last:
            self._runtime.close()

    def _issue(self, what: str, action: Any, async_op: bool) -> Any:
        return self._engine.issue(what, action, async_op=async_op)

    def _root(self, root: int) -> int:
        if not is_rank(root, self.world_size):
            raise InvalidValue(f"root={root!r} must be a rank of the group: 0 to {self.world_size - 1}")
        return root

    def _peer(self, peer: int, itself: bool = False) -> int:
        if not is_rank(peer, self.world_size) or (peer == self.rank and not itself):
            others = f"0 to {self.world_size - 1}" + ("" if itself else f" but this card's own {self.rank}")
            raise InvalidValue(f"rank {peer!r} must be a rank of the group: {others}")
        return peer

    def _blocks_like(self, array: Array, out: Array | None) -> Array:
        """Room for n blocks like `array`."""
        shape = (self.world_size, *array.shape)
        return np.empty(shape, array.dtype) if out is None else shaped(out, shape, array.dtype)

    def _block_of(self, array: Array, out: Array | None) -> Array:
        """Room for one of the n blocks of `array`."""
        shape = block_shape(array, self.world_size)
        return np.empty(shape, array.dtype) if out is None else shaped(out, shape, array.dtype)


WORLD = "world"


def init(timeout: float | None = None) -> Communicator:
    """The communicator of all cards of the job that this process belongs to; a world of one outside superpod-run.

    Args:
        timeout: seconds that a call may take; default SUPERPOD_TIMEOUT.
    """
    settings = Settings.read()
    return connect(settings, Place.read(), timeout)


def connect(settings: Settings, place: Place, timeout: float | None = None) -> Communicator:
    """As `init`, with settings and place given. Raises InvalidValue when there is no store to meet the others in."""
    runtime = Runtime.from_settings(settings, place)
    engine = runtime.engine(range(place.world_size), WORLD, settings.timeout if timeout is None else timeout)
    return Communicator(runtime, engine)


def in_memory(n: int, settings: Settings | None = None) -> list[Communicator]:
    """The communicators of n cards that are threads of this process: rank r's is to be used by one thread."""
    settings = settings or Settings()
    runtimes = Runtime.in_memory(n, settings)
    return [Communicator(r, r.engine(range(n), WORLD, settings.timeout)) for r in runtimes]


def _options(collective: str, algorithm: str | None, timeout: float | None) -> Options:
    if algorithm is not None:
        algorithms.get(collective, algorithm)
    return Options(algorithm, _seconds(timeout))


def _seconds(timeout: float | None) -> float | None:
    if timeout is not None and not timeout > 0:
        raise InvalidValue(f"timeout={timeout} must be above 0 seconds, or None for the communicator's own")
    return timeout


__all__ = ["Communicator", "MessageWork", "Work", "connect", "in_memory", "init"]
