# mypy: disable-error-code="override, assignment"  # torch's stubs overload what torch itself calls in one way
"""torch's ProcessGroup: its collectives on CPU tensors, over superpod's engine.

A synchronous call runs in the caller's thread; an asynchronous one in the group's worker, in issue order. A Python
process group replaces torch's own and bypasses its debug wrapper, so mismatches are noticed here, in the engine.
float16, bfloat16 and float8 are added up in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superpod.collectives import flat
from superpod.collectives.engine import Engine
from superpod.collectives.flat import Options
from superpod.collectives.operations import Operation, operation
from superpod.collectives.torch_backend_tensors import (
    Bytes,
    Reducible,
    as_bytes,
    blocks_label,
    check,
    dtype_name,
    label,
    store,
    wide_dtype,
)
from superpod.collectives.torch_backend_work import TorchWork
from superpod.interconnect.errors import InvalidValue

_Red = dist.ReduceOp.RedOpType
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


class SuperpodProcessGroup(dist.ProcessGroup):
    """One group of ranks, with the methods that torch calls, from Python or C++. Arguments as in torch's ProcessGroup.

    Every collective returns a TorchWork. `opts.asyncOp` decides whether it has ended by then.
    """

    supports_splitting = False
    supports_coalescing = False
    supports_time_estimate = False

    def __init__(self, engine: Engine, release: Callable[[Engine], None]) -> None:
        super().__init__(engine.rank, engine.world_size)
        self._engine = engine
        self._release = release
        self._name = self._desc = engine.name
        self._operations: dict[tuple[Any, torch.dtype], Operation] = {}

    # Reductions

    def allreduce(self, tensors: list[Tensor] | Tensor, opts: Any = None) -> TorchWork:
        tensor = _only(tensors)
        opts = _allreduce_options(opts)
        op, text = self._operation(opts.reduceOp, tensor.dtype), dtype_name(tensor.dtype)

        def action() -> None:
            target = Reducible(tensor)
            flat.all_reduce(self._engine, target.data, op, text, _options(opts))
            target.close()

        return self._issue("all_reduce", action, opts, [tensor])

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> TorchWork:
        opts = opts or dist.AllreduceCoalescedOptions()
        works = [self.allreduce([t], opts) for t in tensors]
        return _last(works, tensors)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> TorchWork:
        tensor, opts = _only(tensors), opts or dist.ReduceOptions()
        op, text = self._operation(opts.reduceOp, tensor.dtype), dtype_name(tensor.dtype)

        def action() -> None:
            target = Reducible(tensor, copy=True)
            flat.reduce(self._engine, target.data, op, opts.rootRank, text, _options(opts))
            if self._engine.rank == opts.rootRank:
                target.close()

        return self._issue("reduce", action, opts, [tensor])

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> TorchWork:
        output, blocks, opts = _only(outputs), _only(inputs), opts or dist.ReduceScatterOptions()
        self._expect(len(blocks), "tensors in the input list")
        return self._reduce_scatter(output, lambda: torch.cat([check(b).reshape(-1) for b in blocks]), blocks, opts)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> TorchWork:  # noqa: A002
        if input.numel() != output.numel() * self._engine.world_size:
            raise InvalidValue(
                f"reduce_scatter input of {input.numel()} elements must be {self._engine.world_size} times "
                f"the output's {output.numel()}"
            )
        blocks = [output] * self._engine.world_size
        return self._reduce_scatter(output, lambda: input, blocks, opts or dist.ReduceScatterOptions())

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> TorchWork:
        pairs = zip(outputs, inputs, strict=True)
        return _last([self.reduce_scatter_single(o, i, opts) for o, i in pairs], outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _reduce_scatter(
        self, output: Tensor, join: Callable[[], Tensor], blocks: Sequence[Tensor], opts: Any
    ) -> TorchWork:
        op = self._operation(opts.reduceOp, output.dtype)
        counts = [b.numel() for b in blocks]
        text = blocks_label(counts, output.dtype)

        def action() -> None:
            data = Reducible(join(), copy=True).data
            own = flat.reduce_scatter(self._engine, data, counts, op, text, _options(opts))
            store(check(output), own)

        return self._issue("reduce_scatter", action, opts, [output])

    # Copies

    def broadcast(self, tensors: list[Tensor] | Tensor, opts: Any = None) -> TorchWork:
        tensor, opts = _only(tensors), opts or dist.BroadcastOptions()
        root, text = opts.rootRank, label(tensor)

        def action() -> None:
            target = Bytes(tensor)
            flat.broadcast(self._engine, target.data, root, text, _options(opts))
            if self._engine.rank != root:
                target.close()

        return self._issue("broadcast", action, opts, [tensor])

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        blocks, tensor = _only(outputs), _only(inputs)
        self._expect(len(blocks), "tensors in the output list")
        if blocks[self._engine.rank].numel() != tensor.numel():
            raise InvalidValue(
                f"output {self._engine.rank} has {blocks[self._engine.rank].numel()} elements, but this rank gathers "
                f"{tensor.numel()}"
            )

        def scatter_out(joined: Tensor) -> None:
            for block, part in zip(blocks, joined.split([b.numel() for b in blocks]), strict=True):
                check(block).copy_(part.view(block.shape))

        joined = torch.empty(sum(b.numel() for b in blocks), dtype=tensor.dtype)
        return self._all_gather(joined, tensor, [b.numel() for b in blocks], opts, scatter_out, [blocks])

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> TorchWork:  # noqa: A002
        if output.numel() != input.numel() * self._engine.world_size:
            raise InvalidValue(
                f"all_gather output of {output.numel()} elements must be {self._engine.world_size} times the input's "
                f"{input.numel()}"
            )
        counts = [input.numel()] * self._engine.world_size
        return self._all_gather(output, input, counts, opts, lambda _: None, [output])

    _allgather_base = all_gather_single

    def allgather_coalesced(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        works = [self.allgather([[rank[i] for rank in outputs]], [tensor], opts) for i, tensor in enumerate(inputs)]
        return _last(works, outputs)

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        pairs = zip(outputs, inputs, strict=True)
        return _last([self.all_gather_single(o, i, opts) for o, i in pairs], outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def _all_gather(
        self,
        joined: Tensor,
        tensor: Tensor,
        counts: list[int],
        opts: Any,
        finish: Callable[[Tensor], None],
        result: Any,
    ) -> TorchWork:
        text = blocks_label(counts, tensor.dtype)

        def action() -> None:
            target = Bytes(joined, read=False)
            size = tensor.element_size()
            start = sum(counts[: self._engine.rank]) * size
            own = as_bytes(check(tensor).contiguous())
            target.data[start : start + own.size] = own
            flat.all_gather(self._engine, target.data, [c * size for c in counts], text, _options(opts))
            target.close()
            finish(joined)

        return self._issue("all_gather", action, opts, result)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        tensor, opts = _only(inputs), opts or dist.GatherOptions()
        at_root, text = self._engine.rank == opts.rootRank, label(tensor)
        blocks = _only(outputs) if at_root else []
        if at_root:
            self._expect(len(blocks), "tensors in the gather list")

        def action() -> None:
            own = as_bytes(check(tensor).contiguous())
            joined = torch.empty((len(blocks), tensor.numel()), dtype=tensor.dtype) if at_root else None
            out = None if joined is None else as_bytes(joined)
            flat.gather(self._engine, own, out, opts.rootRank, text, _options(opts))
            if joined is not None:
                for block, part in zip(blocks, joined, strict=True):
                    check(block).copy_(part.view(block.shape))

        return self._issue("gather", action, opts, outputs)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> TorchWork:
        tensor, opts = _only(outputs), opts or dist.ScatterOptions()
        at_root, text = self._engine.rank == opts.rootRank, label(tensor)
        blocks = _only(inputs) if at_root else []
        if at_root:
            self._expect(len(blocks), "tensors in the scatter list")

        def action() -> None:
            target = Bytes(tensor, read=False)
            source = as_bytes(torch.cat([check(b).reshape(-1) for b in blocks])) if at_root else None
            flat.scatter(self._engine, source, target.data, opts.rootRank, text, _options(opts))
            target.close()

        return self._issue("scatter", action, opts, outputs)

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        self._expect(len(outputs), "output tensors")
        self._expect(len(inputs), "input tensors")
        joined = torch.empty(sum(t.numel() for t in outputs), dtype=outputs[0].dtype)
        splits = [t.numel() for t in outputs]

        def scatter_out() -> None:
            for block, part in zip(outputs, joined.split(splits), strict=True):
                check(block).copy_(part.view(block.shape))

        def join() -> Tensor:
            return torch.cat([check(t).reshape(-1) for t in inputs])

        counts = [t.numel() for t in inputs]
        return self._all_to_all(joined, join, splits, counts, opts, scatter_out, outputs, equal=False)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,  # noqa: A002
        output_splits: list[int] | None = None,
        input_splits: list[int] | None = None,
        opts: Any = None,
    ) -> TorchWork:
        counts = self._splits(input, input_splits, "input")
        splits = self._splits(output, output_splits, "output")
        equal = not input_splits and not output_splits
        return self._all_to_all(output, lambda: input, splits, counts, opts, lambda: None, [output], equal=equal)

    alltoall_base = all_to_all_single

    def _all_to_all(
        self,
        output: Tensor,
        join: Callable[[], Tensor],
        splits: list[int],
        counts: list[int],
        opts: Any,
        finish: Callable[[], None],
        result: Any,
        *,
        equal: bool,
    ) -> TorchWork:
        size = output.element_size()
        text = label(output) if equal else f"uneven × {dtype_name(output.dtype)}"

        def action() -> None:
            target = Bytes(output, read=False)
            source = as_bytes(check(join()).contiguous())
            sent, taken = [c * size for c in counts], [s * size for s in splits]
            flat.all_to_all(self._engine, source, target.data, sent, taken, text, _options(opts), equal=equal)
            target.close()
            finish()

        return self._issue("all_to_all", action, opts, result)

    # Synchronisation and messages

    def barrier(self, opts: Any = None) -> TorchWork:
        return self._issue("barrier", lambda: flat.barrier(self._engine, _options(opts)), opts, None)

    def send(self, tensors: list[Tensor], dst: int, tag: int = 0) -> TorchWork:
        source = check(_only(tensors)).contiguous()
        return TorchWork(self._engine.send(as_bytes(source), dst, tag, label(source), None), tensors)

    def recv(self, tensors: list[Tensor], src: int, tag: int = 0) -> TorchWork:
        target = Bytes(_only(tensors), read=False)
        work = self._engine.recv(target.data, src, tag, label(_only(tensors)), None, finish=target.close)
        return TorchWork(work, tensors)

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

    def _get_backend(self, device: torch.device) -> SuperpodProcessGroup:
        return self

    def _set_default_timeout(self, timeout: timedelta) -> None:
        self._engine.timeout = timeout.total_seconds()

    set_timeout = _set_default_timeout

    def shutdown(self) -> None:
        """Leave the group; with a process's last group its mesh is closed too. Idempotent."""
        self._release(self._engine)

    abort = shutdown

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
        if sum(splits) != rows:
            raise InvalidValue(f"{name}_split_sizes={list(splits)} add up to {sum(splits)}, must be the {rows} rows")
        return [s * row for s in splits]


def _only(items: Any) -> Any:
    """The one item of a list: torch passes lists, from the time when a process drove several devices."""
    if isinstance(items, Tensor):
        return items
    if len(items) != 1:
        raise InvalidValue(f"{len(items)} items in the list, must be 1: one process drives one card")
    return items[0]


def _allreduce_options(opts: Any) -> Any:
    """Options as torch passes them, or made from a bare ReduceOp."""
    if opts is not None and hasattr(opts, "reduceOp"):
        return opts
    made = dist.AllreduceOptions()
    if opts is not None:
        made.reduceOp = opts
    return made


def _options(opts: Any) -> Options:
    """The call's own time limit, if it has one."""
    timeout = getattr(opts, "timeout", None)
    seconds = timeout.total_seconds() if timeout is not None else -1.0
    return Options(timeout=seconds if seconds > 0 else None)


def _last(works: list[TorchWork], result: Any) -> TorchWork:
    """One work for several calls: works of a group end in issue order, so the last one stands for all."""
    for work in works:
        if work.exception() is not None:
            return work
    return works[-1] if works else TorchWork(None, result)
