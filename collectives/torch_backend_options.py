"""What a caller adds to a collective: torch's options objects, or the few values that its shorter signatures take."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from superpod.collectives.flat import Options
from superpod.collectives.operations import Operation, operation, premul_sum
from superpod.collectives.torch_backend_tensors import wide_dtype
from superpod.interconnect.errors import InvalidValue

_c10d: Any = dist.distributed_c10d
_KINDS = {
    _c10d.AllreduceOptions,
    _c10d.AllreduceCoalescedOptions,
    _c10d.AllgatherOptions,
    _c10d.AllToAllOptions,
    _c10d.BarrierOptions,
    _c10d.BroadcastOptions,
    _c10d.GatherOptions,
    _c10d.ReduceOptions,
    _c10d.ReduceScatterOptions,
    _c10d.ScatterOptions,
}
_Red: Any = dist.ReduceOp.RedOpType
_NAMES = {
    _Red.SUM: "sum",
    _Red.AVG: "avg",
    _Red.PRODUCT: "product",
    _Red.MIN: "min",
    _Red.MAX: "max",
    _Red.BAND: "band",
    _Red.BOR: "bor",
    _Red.BXOR: "bxor",
}
GROUPS_OWN = Options()
"""The limits of a call that brings none: the group's own."""
_cached: dict[torch.dtype, dict[int, Operation]] = {}  # by the ReduceOp's hash


def options(kind: Callable[[], Any], *values: Any) -> Any:
    """torch's options of a call: the first value, if it is one, else made from the values.

    torch's shorter signatures pass a root (int), a reduction (ReduceOp) and a time limit (timedelta) one by one, such
    as `broadcast(tensor, root, timeout)`; None stands for what was not given.
    """
    if type(values[0]) in _KINDS:
        return values[0]
    made = kind()
    for value in values:
        if isinstance(value, timedelta):
            made.timeout = value
        elif isinstance(value, int):
            made.rootRank = value
        elif value is not None:
            made.reduceOp = value
    return made


def limits(opts: Any) -> Options:
    """The call's own time limit, if it has one."""
    timeout: timedelta = opts.timeout
    if timeout.days < 0 or not timeout:  # torch's word for "not set" is -1 ms
        return GROUPS_OWN
    return Options(timeout=timeout.total_seconds())


def reduction(reduce_op: Any, dtype: torch.dtype) -> Operation:
    """What `reduce_op`, a ReduceOp or a RedOpType, does to tensors of `dtype`. Raises InvalidValue if nothing."""
    known = _cached.get(dtype)  # hashes tell the kinds apart, which a test shows; comparing them would take 0.5 µs more
    op = None if known is None else known.get(hash(reduce_op))
    return _reduction(reduce_op, dtype) if op is None else op


def _reduction(reduce_op: Any, dtype: torch.dtype) -> Operation:
    kind = getattr(reduce_op, "op", reduce_op)
    if kind == _Red.PREMUL_SUM:
        return premul_sum(_factor(reduce_op), wide_dtype(dtype))
    name = _NAMES.get(kind)
    if name is None:
        able = ", ".join((*_NAMES.values(), "premul_sum"))
        raise InvalidValue(f"{kind} is not supported; superpod reduces with {able}")
    op = operation(name, wide_dtype(dtype))
    _cached.setdefault(dtype, {})[hash(reduce_op)] = op
    return op


def _factor(reduce_op: Any) -> complex:
    """The factor of `dist._make_nccl_premul_sum(factor)`, a number or a tensor with one element."""
    factor = reduce_op.__getstate__()[1]  # a ReduceOp shows it nowhere else
    factor = factor.item() if isinstance(factor, torch.Tensor) else factor
    return factor if isinstance(factor, complex) else float(factor)
