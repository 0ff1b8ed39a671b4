# mypy: disable-error-code="override"
# torch's stubs overload what torch itself calls in one way
"""What a process group of torch's is beside its collectives: names, limits, messages, how calls are issued."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superpod.collectives.engine import Engine
from superpod.collectives.flat import Options
from superpod.collectives.operations import Operation, operation
from superpod.collectives.torch_backend_tensors import Bytes, check, label, source, wide_dtype
from superpod.collectives.torch_backend_work import TorchWork
from superpod.interconnect.errors import InvalidValue

_Red: Any = dist.ReduceOp.RedOpType
_OPERATIONS = {
    _Red.SUM: "sum",
    _Red.AVG: "avg",
    _Red.PRODUCT: "product",
    _Red.MIN: "min",
    _Red.MAX: "max",
    _Red.BAND: "band",
    _Red.BOR: "bor",
    _Red.BXOR: "bxor",
}


class GroupBase(dist.ProcessGroup):
    """A group of ranks without its collectives. Arguments as in torch's ProcessGroup."""

    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def __init__(self, engine: Engine, release: Callable[[Engine], None]) -> None:
        """`release` is told when torch is done with the group."""
        super().__init__(engine.rank, engine.world_size)  # type: ignore[call-arg]  # the stub knows torch's own only
        self._engine = engine
        self._release = release
        self._name = self._desc = engine.name
        self._operations: dict[tuple[Any, torch.dtype], Operation] = {}

    # Messages

    def send(self, tensors: list[Tensor], dst: int, tag: int = 0) -> TorchWork:
        tensor = only(tensors)
        check(tensor)
        work = self._engine.send(source(tensor), self._peer(dst), tag, label(tensor), None)
        return TorchWork(work, tensors)

    def recv(self, tensors: list[Tensor], src: int, tag: int = 0) -> TorchWork:
        peer, target, text = self._peer(src), self._target(tensors), label(only(tensors))

        def finish() -> int:
            target.close()
            return peer

        return TorchWork(self._engine.recv(target.data, peer, tag, text, None, finish), tensors)

    def recv_anysource(self, tensors: list[Tensor], tag: int = 0) -> TorchWork:
        """Receive what anybody in the group sends first; the work's `source_rank` tells who it was."""
        target = self._target(tensors)

        def finish(peer: int) -> int:
            target.close()
            return peer

        return TorchWork(self._engine.recv_any(target.data, tag, label(only(tensors)), finish), tensors)

    def _target(self, tensors: list[Tensor]) -> Bytes:
        check(tensor := only(tensors))
        return Bytes(tensor, read=False)

    def _peer(self, rank: int) -> int:
        n, own = self._engine.world_size, self._engine.rank
        if not 0 <= rank < n or rank == own:
            raise InvalidValue(f"rank {rank} must be a rank of the group: 0 to {n - 1} but this card's own {own}")
        return rank

    # What torch asks of a group

    def setGroupName(self, name: str) -> None:  # noqa: N802  torch's name
        self._name = name

    def getGroupName(self) -> str:  # noqa: N802  torch's name
        return self._name

    _set_group_name = setGroupName

    def _set_group_desc(self, desc: str) -> None:
        self._desc = desc

    @property
    def group_name(self) -> str:
        return self._name

    @property
    def group_desc(self) -> str:
        return self._desc

    def getBackendName(self) -> str:  # noqa: N802  torch's name
        return "superpod"

    _get_backend_name = getBackendName

    def _get_backend(self, device: torch.device) -> GroupBase:
        return self

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self._engine.timeout = timeout.total_seconds()

    set_timeout = _set_default_timeout

    def shutdown(self) -> None:
        """Leave the group; with a process's last group its mesh is closed too. Idempotent."""
        self._release(self._engine)

    abort = shutdown

    # For the collectives

    def _issue(self, what: str, action: Callable[[], Any], opts: Any, result: Any) -> TorchWork:
        async_op = bool(getattr(opts, "asyncOp", True))
        work = self._engine.issue(what, action, async_op=async_op)
        return TorchWork(work if async_op else None, result)

    def _operation(self, reduce_op: Any, dtype: torch.dtype) -> Operation:
        kind = getattr(reduce_op, "op", reduce_op)
        op = self._operations.get((kind, dtype))
        if op is None:
            name = _OPERATIONS.get(kind)
            if name is None:
                raise InvalidValue(f"{kind} is not supported; superpod reduces with {', '.join(_OPERATIONS.values())}")
            op = self._operations[kind, dtype] = operation(name, wide_dtype(dtype))
        return op

    def _expect(self, count: int, what: str) -> None:
        """One of them a rank."""
        if count != self._engine.world_size:
            raise InvalidValue(f"{count} {what}, must be one a rank: {self._engine.world_size}")

    def _splits(self, tensor: Tensor, splits: list[int] | None, name: str) -> list[int]:
        """Elements per rank from splits of the first axis, even ones when none are given."""
        n, rows = self._engine.world_size, tensor.shape[0] if tensor.dim() else 1
        row = tensor.numel() // rows if rows else 0
        if not splits:
            if rows % n:
                raise InvalidValue(
                    f"{name} of {rows} rows cannot be split evenly over {n} ranks; give {name}_split_sizes"
                )
            splits = [rows // n] * n
        self._expect(len(splits), f"{name} splits")
        if sum(splits) != rows or min(splits) < 0:
            raise InvalidValue(
                f"{name}_split_sizes={list(splits)} must be 0 or more and add up to the {rows} rows, not {sum(splits)}"
            )
        return [s * row for s in splits]


def only(items: Any) -> Any:
    """The one item of a list: torch passes lists, from the time when a process drove several devices."""
    if isinstance(items, Tensor):
        return items
    if len(items) != 1:
        raise InvalidValue(f"{len(items)} items in the list, must be 1: one process drives one card")
    return items[0]


def limits(opts: Any) -> Options:
    """The call's own time limit, if it has one."""
    timeout = getattr(opts, "timeout", None)
    seconds = timeout.total_seconds() if timeout is not None else -1.0
    return Options(timeout=seconds if seconds > 0 else None)
