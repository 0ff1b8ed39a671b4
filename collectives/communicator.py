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
import numpy.typing as npt
from superpod.collectives.select import Choice

from superpod.collectives import flat
from superpod.collectives.engine import Engine
from superpod.collectives.flat import Options
from superpod.collectives.operations import Operation, operation
from superpod.collectives.runtime import Runtime
from superpod.collectives.work import MessageWork, Work
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import InvalidValue

Array = npt.NDArray[Any]


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

    def all_reduce(
        self, array: Array, op: str = "sum", out: Array | None = None, *, async_op: bool = False, **options: Any
    ) -> Any:
        """Reduce over all ranks; every rank gets the result, in place or in `out` (same shape and dtype)."""
        opts, operation_ = Options(**options), operation(op, _checked(array).dtype)
        target = array if out is None else _like(array, out, "out")

        def action() -> Array:
            if out is not None:
                out[...] = array
            with _Flat(target, operation_) as data:
                flat.all_reduce(self._engine, data, operation_, str(array.dtype), opts)
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
        **options: Any,
    ) -> Any:
        """Reduce over all ranks; the root gets the result, in place or in `out`. Other ranks' arrays stay as they are."""
        opts, operation_, root = Options(**options), operation(op, _checked(array).dtype), self._root(root)
        target = array if out is None else _like(array, out, "out")

        def action() -> Array | None:
            data = _copy(array, operation_.wide)
            flat.reduce(self._engine, data, operation_, root, str(array.dtype), opts)
            if self.rank != root:
                return None
            target[...] = data.reshape(target.shape)
            return target

        return self._issue("reduce", action, async_op)

    def broadcast(self, array: Array, root: int = 0, *, async_op: bool = False, **options: Any) -> Any:
        """Copy the root's array into every rank's, in place."""
        opts, root = Options(**options), self._root(root)
        label = _label(_checked(array))

        def action() -> Array:
            with _Flat(array) as data:
                flat.broadcast(self._engine, data.view(np.uint8), root, label, opts)
            return array

        return self._issue("broadcast", action, async_op)

    def all_gather(self, array: Array, out: Array | None = None, *, async_op: bool = False, **options: Any) -> Any:
        """Every rank's array on every rank: `out` of shape (n, *array.shape), made if it is not given."""
        opts, label = Options(**options), _label(_checked(array))
        target = np.empty((self.world_size, *array.shape), array.dtype) if out is None else out
        _shaped(target, (self.world_size, *array.shape), array.dtype, "out")

        def action() -> Array:
            target[self.rank] = array
            with _Flat(target) as data:
                blocks = [array.nbytes] * self.world_size
                flat.all_gather(self._engine, data.view(np.uint8), blocks, label, opts)
            return target

        return self._issue("all_gather", action, async_op)

    def reduce_scatter(
        self, array: Array, op: str = "sum", out: Array | None = None, *, async_op: bool = False, **options: Any
    ) -> Any:
        """Reduce over all ranks and keep one block a rank: `array` has n blocks along its first axis.

        With a first axis of length n the result has shape array.shape[1:], otherwise its first axis is 1/n as long.
        """
        opts, operation_ = Options(**options), operation(op, _checked(array).dtype)
        shape = self._block_shape(array)
        target = np.empty(shape, array.dtype) if out is None else out
        _shaped(target, shape, array.dtype, "out")
        label = _label(array)

        def action() -> Array:
            blocks = [array.size // self.world_size] * self.world_size
            data = _copy(array, operation_.wide)
            own = flat.reduce_scatter(self._engine, data, blocks, operation_, label, opts)
            target[...] = own.reshape(shape)
            return target

        return self._issue("reduce_scatter", action, async_op)

    def all_to_all(self, array: Array, out: Array | None = None, *, async_op: bool = False, **options: Any) -> Any:
        """Block q of `array`, cut in n along its first axis, goes to rank q; block q of the result comes from rank q."""
        opts, label = Options(**options), _label(_checked(array))
        self._block_shape(array)
        target = np.empty_like(array, order="C") if out is None else _like(array, out, "out")
        if out is array:
            raise InvalidValue("out is array: an all_to_all cannot be done in place; pass another array or none")

        def action() -> Array:
            blocks = [array.nbytes // self.world_size] * self.world_size
            with _Flat(target) as data:
                source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                target_ = data.view(np.uint8)
                flat.all_to_all(self._engine, source, target_, blocks, blocks, label, opts, equal=True)
            return target

        return self._issue("all_to_all", action, async_op)

    def gather(
        self, array: Array, root: int = 0, out: Array | None = None, *, async_op: bool = False, **options: Any
    ) -> Any:
        """Every rank's array at the root: shape (n, *array.shape) there, None elsewhere."""
        opts, label, root = Options(**options), _label(_checked(array)), self._root(root)
        shape = (self.world_size, *array.shape)
        target = None
        if self.rank == root:
            target = np.empty(shape, array.dtype) if out is None else out
            _shaped(target, shape, array.dtype, "out")

        def action() -> Array | None:
            own = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            if target is None:
                flat.gather(self._engine, own, None, root, label, opts)
                return None
            with _Flat(target) as data:
                flat.gather(self._engine, own, data.view(np.uint8), root, label, opts)
            return target

        return self._issue("gather", action, async_op)

    def scatter(
        self, array: Array | None, root: int = 0, out: Array | None = None, *, async_op: bool = False, **options: Any
    ) -> Any:
        """Block r of the root's `array`, of shape (n, *shape), on rank r in `out`. Other ranks pass None and an `out`."""
        opts, root = Options(**options), self._root(root)
        if self.rank == root:
            if array is None:
                raise InvalidValue("array=None at the root of a scatter; the root passes n blocks, shape (n, ...)")
            shape = self._block_shape(_checked(array))
            out = np.empty(shape, array.dtype) if out is None else _shaped(out, shape, array.dtype, "out")
        elif out is None:
            raise InvalidValue("out=None on a rank that is not the root of a scatter; pass an array for its block")
        target = _checked(out)
        label = _label(target)

        def action() -> Array:
            source = None if array is None else np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            with _Flat(target) as data:
                flat.scatter(self._engine, source, data.view(np.uint8), root, label, opts)
            return target

        return self._issue("scatter", action, async_op)

    def barrier(self, *, async_op: bool = False, **options: Any) -> Any:
        """Return once every rank has called it."""
        opts = Options(**options)
        return self._issue("barrier", lambda: flat.barrier(self._engine, opts), async_op)

    def send(
        self, array: Array, peer: int, tag: int = 0, *, async_op: bool = False, timeout: float | None = None
    ) -> Any:
        """Send `array` to `peer`, who must `recv` as many bytes of that dtype with the same tag (0 to 2^31 − 1)."""
        source = np.ascontiguousarray(_checked(array))
        work = self._engine.send(source.reshape(-1).view(np.uint8), self._peer(peer), tag, _label(source), timeout)
        return work if async_op else work.wait()

    def recv(
        self, array: Array, peer: int, tag: int = 0, *, async_op: bool = False, timeout: float | None = None
    ) -> Any:
        """Receive into `array` (contiguous) what `peer` sends with `tag`; messages of one peer and tag keep their order."""
        if not _checked(array).flags.c_contiguous:
            raise InvalidValue(f"array with strides {array.strides} is not contiguous; receive into a contiguous one")
        target = array.reshape(-1).view(np.uint8)
        work = self._engine.recv(target, self._peer(peer), tag, _label(array), timeout, lambda: array)
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
        self._engine.close()
        if self._engine.name == WORLD:
            self._runtime.close()

    def _issue(self, what: str, action: Any, async_op: bool) -> Any:
        return self._engine.issue(what, action, async_op=async_op)

    def _root(self, root: int) -> int:
        if not 0 <= root < self.world_size:
            raise InvalidValue(f"root={root} must be a rank of the group: 0 to {self.world_size - 1}")
        return root

    def _peer(self, peer: int, itself: bool = False) -> int:
        if not 0 <= peer < self.world_size or (peer == self.rank and not itself):
            others = f"0 to {self.world_size - 1}" + ("" if itself else f" but this card's own {self.rank}")
            raise InvalidValue(f"rank {peer} must be a rank of the group: {others}")
        return peer

    def _block_shape(self, array: Array) -> tuple[int, ...]:
        """The shape of one of n blocks along the first axis."""
        n = self.world_size
        if array.ndim == 0 or array.shape[0] % n:
            raise InvalidValue(
                f"array of shape {array.shape} cannot be cut into {n} blocks along its first axis; pad it"
            )
        return array.shape[1:] if array.shape[0] == n and array.ndim > 1 else (array.shape[0] // n, *array.shape[1:])


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


class _Flat:
    """A 1-D contiguous view of an array; or, if there is none or a wider dtype is needed, a copy, written back."""

    def __init__(self, array: Array, op: Operation | None = None) -> None:
        self._array = array
        wide = array.dtype if op is None else op.wide
        self._copied = not array.flags.c_contiguous or wide != array.dtype
        self.data: Array = _copy(array, wide) if self._copied else array.reshape(-1)

    def __enter__(self) -> Array:
        return self.data

    def __exit__(self, kind: object, *_: object) -> None:
        if self._copied and kind is None:
            self._array[...] = self.data.reshape(self._array.shape)


def _copy(array: Array, dtype: np.dtype[Any]) -> Array:
    return np.array(array, dtype, order="C", copy=True).reshape(-1)


def _label(array: Array) -> str:
    return f"{array.size} × {array.dtype}"


def _checked(array: Any) -> Array:
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        kind = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidValue(f"array is a {kind}, must be a numpy array of numbers or bool; use numpy.asarray")
    return array


def _like(array: Array, out: Array, name: str) -> Array:
    return _shaped(out, array.shape, array.dtype, name)


def _shaped(out: Array, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> Array:
    if _checked(out).shape != shape or out.dtype != dtype:
        raise InvalidValue(f"{name} is {out.dtype} of shape {out.shape}, must be {dtype} of shape {shape}")
    return out


__all__ = ["Communicator", "MessageWork", "Work", "connect", "in_memory", "init"]
