# mypy: disable-error-code="override, assignment"
# torch's stubs overload what torch itself calls in one way
"""torch's ProcessGroup: its collectives on CPU tensors, over superpod's engine.

A synchronous call runs in the caller's thread; an asynchronous one in the group's worker, in issue order. A Python
process group replaces torch's own and bypasses its debug wrapper, so mismatches are noticed here, in the engine.
float16, bfloat16 and float8 are added up in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superpod.collectives import flat
from superpod.collectives.arrays import lies_apart
from superpod.collectives.engine import Engine
from superpod.collectives.express import Express
from superpod.collectives.flat import Options
from superpod.collectives.operations import Operation
from superpod.collectives.torch_backend_base import GroupBase, blocks_of, only
from superpod.collectives.torch_backend_options import GROUPS_OWN, limits, options, reduction
from superpod.collectives.torch_backend_sparse import all_reduce as sparse_all_reduce
from superpod.collectives.torch_backend_sparse import check_sparse
from superpod.collectives.torch_backend_tensors import (
    Bytes,
    Reducible,
    blocks_label,
    check,
    distribute,
    dtype_name,
    joined,
    label,
    lies_flat,
    own_numbers,
    source,
    store,
)
from superpod.collectives.torch_backend_work import ENDED, TorchWork, last_of
from superpod.interconnect.errors import InvalidValue

_c10d: Any = dist.distributed_c10d
_Options: Any = dist.AllreduceOptions


class CollectiveGroup(GroupBase):
    """One group of ranks, with the methods that torch calls, from Python or C++. Arguments as in torch's ProcessGroup.

    Every collective returns a TorchWork. Where `opts.asyncOp` is False it has ended by then, and its outputs are only
    in the caller's hands. Raises InvalidValue at once for arguments that break a rule; the work raises the rest.
    """

    # Reductions

    def allreduce(
        self, tensors: list[Tensor] | Tensor, opts: Any = None, timeout: Any = None, *, op: Any = None
    ) -> TorchWork:
        if type(opts) is _Options and not opts.asyncOp and self._block is None and self._by_express(tensors, opts):
            return ENDED
        tensor = only(tensors)
        opts = options(_Options, opts, op, timeout)
        reduce, limit = reduction(opts.reduceOp, tensor.dtype), limits(opts)
        if tensor.layout is torch.strided:
            check(tensor)
            action = partial(_all_reduce, self._engine, tensor, reduce, limit)
        else:
            check_sparse(tensor, reduce.name)
            action = partial(sparse_all_reduce, self._engine, tensor, limit)
        return self._issue("all_reduce", action, opts, [tensor])

    def _by_express(self, tensors: list[Tensor] | Tensor, opts: Any) -> bool:
        """Whether the all_reduce has gone the short way (express.py)."""
        tensor = tensors[0] if type(tensors) is list and len(tensors) == 1 else tensors
        if not isinstance(tensor, Tensor):
            return False
        express = self._engine.expresses.get((reduction(opts.reduceOp, tensor.dtype), tensor.dtype, tensor.numel()))
        if express is None or not lies_flat(tensor) or not tensor.is_cpu or limits(opts) is not GROUPS_OWN:
            return False
        if isinstance(express, Express):
            numbers = own_numbers(tensor)
            done = numbers is not None and express.run(numbers)
        else:
            address = tensor.data_ptr()  # 0 of a tensor of zeros that has no memory, and of a fake one
            done = bool(address or not tensor.numel()) and express.run(address)
        self._issued += done
        return done

    def reduce(
        self,
        tensors: list[Tensor] | Tensor,
        opts: Any = None,
        op: Any = None,
        timeout: Any = None,
        *,
        root: int | None = None,
    ) -> TorchWork:
        tensor, opts = only(tensors), options(dist.ReduceOptions, opts, root, op, timeout)
        reduce, text, limit = reduction(opts.reduceOp, tensor.dtype), dtype_name(tensor.dtype), limits(opts)
        check(tensor)

        def action() -> None:
            target = Reducible(tensor, copy=True)
            reduce.begin(target.data)
            flat.reduce(self._engine, target.data, reduce, opts.rootRank, text, limit)
            if self._engine.rank == opts.rootRank:
                target.close()

        return self._issue("reduce", action, opts, [tensor])

    def reduce_scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None, *, op: Any = None
    ) -> TorchWork:
        output, blocks = only(outputs), blocks_of(inputs)
        opts = options(dist.ReduceScatterOptions, opts, op, timeout)
        self._expect(len(blocks), "tensors in the input list")
        check(output, *blocks)
        return self._reduce_scatter(output, partial(joined, blocks), [b.numel() for b in blocks], opts)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> TorchWork:  # noqa: A002
        check(output, input)
        n = self._engine.world_size
        if input.numel() != output.numel() * n:
            raise InvalidValue(
                f"reduce_scatter input of {input.numel()} elements must be {n} times the output's {output.numel()}"
            )
        return self._reduce_scatter(output, lambda: input, [output.numel()] * n, opts)

    _reduce_scatter_base = reduce_scatter_single

    def _reduce_scatter(self, output: Tensor, join: Callable[[], Tensor], counts: list[int], opts: Any) -> TorchWork:
        opts = options(dist.ReduceScatterOptions, opts)
        reduce, text, limit = reduction(opts.reduceOp, output.dtype), blocks_label(counts, output.dtype), limits(opts)
        self._fits(output, counts, "the output")

        def action() -> None:
            given, home = own_numbers(whole := join()), own_numbers(output)
            plain = reduce.factor is None and home is not None and reduce.wide == home.dtype
            if plain and given is not None and home is not None and lies_apart(home, given):
                flat.reduce_scatter(self._engine, given, counts, reduce, text, limit, home)
                return
            data = Reducible(whole, copy=True).data
            reduce.begin(data)
            own = flat.reduce_scatter(self._engine, data, counts, reduce, text, limit)
            store(output, own)

        return self._issue("reduce_scatter", action, opts, [output])

    # Copies

    def broadcast(
        self, tensors: list[Tensor] | Tensor, opts: Any = None, timeout: Any = None, *, root: int | None = None
    ) -> TorchWork:
        tensor, opts = only(tensors), options(dist.BroadcastOptions, opts, root, timeout)
        source_rank, text, limit = opts.rootRank, label(tensor), limits(opts)
        check(tensor)

        def action() -> None:
            target = Bytes(tensor)
            flat.broadcast(self._engine, target.data, source_rank, text, limit)
            if self._engine.rank != source_rank:
                target.close()

        return self._issue("broadcast", action, opts, [tensor])

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None, *, timeout: Any = None) -> TorchWork:
        blocks, tensor = blocks_of(outputs), only(inputs)
        opts = options(_c10d.AllgatherOptions, opts, timeout)
        self._expect(len(blocks), "tensors in the output list")
        check(tensor, *blocks)
        counts = [b.numel() for b in blocks]
        together = torch.empty(sum(counts), dtype=tensor.dtype)
        return self._all_gather(together, tensor, counts, opts, partial(distribute, together, blocks), [blocks])

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> TorchWork:  # noqa: A002
        check(input, output)
        n = self._engine.world_size
        if output.numel() != input.numel() * n:
            raise InvalidValue(
                f"all_gather output of {output.numel()} elements must be {n} times the input's {input.numel()}"
            )
        return self._all_gather(output, input, [input.numel()] * n, opts, _nothing, [output])

    _allgather_base = all_gather_single

    def allgather_coalesced(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        for i, tensor in enumerate(inputs):
            check(tensor, *(rank[i] for rank in outputs))
        works = [self.allgather([[rank[i] for rank in outputs]], [tensor], opts) for i, tensor in enumerate(inputs)]
        return last_of(works, outputs)

    def _all_gather(
        self, output: Tensor, tensor: Tensor, counts: list[int], opts: Any, finish: Callable[[], None], result: Any
    ) -> TorchWork:
        opts = options(_c10d.AllgatherOptions, opts)
        text, size, limit = blocks_label(counts, tensor.dtype), tensor.element_size(), limits(opts)
        self._fits(tensor, counts, "the input")

        def action() -> None:
            target = Bytes(output, read=False)
            start = sum(counts[: self._engine.rank]) * size
            own = source(tensor)
            target.data[start : start + own.size] = own
            flat.all_gather(self._engine, target.data, [c * size for c in counts], text, limit)
            target.close()
            finish()

        return self._issue("all_gather", action, opts, result)

    def gather(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None, *, root: int | None = None
    ) -> TorchWork:
        tensor, opts = only(inputs), options(dist.GatherOptions, opts, root, timeout)
        text, limit = label(tensor), limits(opts)
        blocks = self._root_blocks(outputs, tensor, opts.rootRank, "gather")

        def action() -> None:
            together = None if blocks is None else torch.empty(tensor.numel() * len(blocks), dtype=tensor.dtype)
            out = None if together is None else Bytes(together, read=False).data
            flat.gather(self._engine, source(tensor), out, opts.rootRank, text, limit)
            if together is not None and blocks is not None:
                distribute(together, blocks)

        return self._issue("gather", action, opts, outputs)

    def scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None, *, root: int | None = None
    ) -> TorchWork:
        tensor, opts = only(outputs), options(dist.ScatterOptions, opts, root, timeout)
        text, limit = label(tensor), limits(opts)
        blocks = self._root_blocks(inputs, tensor, opts.rootRank, "scatter")

        def action() -> None:
            target = Bytes(tensor, read=False)
            together = None if blocks is None else source(joined(blocks))
            flat.scatter(self._engine, together, target.data, opts.rootRank, text, limit)
            target.close()

        return self._issue("scatter", action, opts, outputs)

    def _root_blocks(self, lists: Any, own: Tensor, root: int, what: str) -> list[Tensor] | None:
        """The root's list of one tensor a rank, each as long as `own`; elsewhere None."""
        check(own)
        if self._engine.rank != root:
            return None
        blocks = blocks_of(lists)
        self._expect(len(blocks), f"tensors in the {what} list")
        check(own, *blocks)
        for i, block in enumerate(blocks):
            if block.numel() != own.numel():
                raise InvalidValue(
                    f"tensor {i} of the {what} list has {block.numel()} elements, must be {own.numel()} as the others"
                )
        return blocks

    def alltoall(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None, *, timeout: Any = None
    ) -> TorchWork:
        opts = options(_c10d.AllToAllOptions, opts, timeout)
        self._expect(len(outputs), "output tensors")
        self._expect(len(inputs), "input tensors")
        check(*outputs, *inputs)
        splits, counts = [t.numel() for t in outputs], [t.numel() for t in inputs]
        together = torch.empty(sum(splits), dtype=outputs[0].dtype)
        finish = partial(distribute, together, outputs)
        return self._all_to_all(together, partial(joined, inputs), splits, counts, opts, finish, outputs, equal=False)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,  # noqa: A002
        output_splits: list[int] | None = None,
        input_splits: list[int] | None = None,
        opts: Any = None,
        *,
        timeout: Any = None,
    ) -> TorchWork:
        check(output, input)
        opts = options(_c10d.AllToAllOptions, opts, timeout)
        counts = self._splits(input, input_splits, "input")
        splits = self._splits(output, output_splits, "output")
        equal = not input_splits and not output_splits
        return self._all_to_all(output, lambda: input, splits, counts, opts, _nothing, [output], equal=equal)

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
        size, own, limit = output.element_size(), self._engine.rank, limits(opts)
        text = label(output) if equal else f"uneven × {dtype_name(output.dtype)}"
        if splits[own] != counts[own]:
            raise InvalidValue(
                f"rank {own} sends itself {counts[own]} elements but expects {splits[own]}; they must be as many"
            )

        def action() -> None:
            target = Bytes(output, read=False)
            sent, taken = [c * size for c in counts], [s * size for s in splits]
            flat.all_to_all(self._engine, source(join()), target.data, sent, taken, text, limit, equal=equal)
            target.close()
            finish()

        return self._issue("all_to_all", action, opts, result)

    def barrier(self, opts: Any = None, *, timeout: Any = None) -> TorchWork:
        opts = options(_c10d.BarrierOptions, opts, timeout)
        return self._issue("barrier", partial(flat.barrier, self._engine, limits(opts)), opts, None)


def _nothing() -> None:
    pass


def _all_reduce(engine: Engine, tensor: Tensor, op: Operation, limit: Options) -> None:
    text, own = dtype_name(tensor.dtype), own_numbers(tensor)
    data = Reducible(tensor, copy=True).data if own is None else own
    op.begin(data)
    flat.all_reduce(engine, data, op, text, limit)
    if own is None:
        store(tensor, data)
    elif limit is GROUPS_OWN:
        engine.keep((op, tensor.dtype, own.size), op)
