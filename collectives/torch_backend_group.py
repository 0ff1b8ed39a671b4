# mypy: disable-error-code="override, assignment"
# torch's stubs overload what torch itself calls in one way
"""torch's ProcessGroup: its collectives on CPU tensors that add something up, over superpod's engine.

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
from superpod.collectives.flat import Options
from superpod.collectives.operations import Operation
from superpod.collectives.torch_backend_base import blocks_of, only
from superpod.collectives.torch_backend_copies import CopyGroup
from superpod.collectives.torch_backend_express import Short
from superpod.collectives.torch_backend_options import limits, options, reduction
from superpod.collectives.torch_backend_sparse import all_reduce as sparse_all_reduce
from superpod.collectives.torch_backend_sparse import check_sparse
from superpod.collectives.torch_backend_tensors import (
    Reducible,
    blocks_label,
    check,
    dtype_name,
    joined,
    own_numbers,
    store,
)
from superpod.collectives.torch_backend_work import ENDED, TorchWork
from superpod.interconnect.errors import InvalidValue

_Options: Any = dist.AllreduceOptions


class CollectiveGroup(CopyGroup):
    """One group of ranks, with the methods that torch calls, from Python or C++. See CopyGroup."""

    def allreduce(
        self, tensors: list[Tensor] | Tensor, opts: Any = None, timeout: Any = None, *, op: Any = None
    ) -> TorchWork:
        tensor = only(tensors)
        opts = options(_Options, opts, op, timeout)
        dtype, count = tensor.dtype, tensor.numel()
        reduce = reduction(opts.reduceOp, dtype)
        short = (("all_reduce", reduce, dtype, count), dtype, ((tensor, count),))
        if self._by_express(short, opts):
            return ENDED
        limit = limits(opts)
        if tensor.layout is torch.strided:
            check(tensor)
            action = partial(self._all_reduce, tensor, reduce, limit, short)
        else:
            check_sparse(tensor, reduce.name)
            action = partial(sparse_all_reduce, self._engine, tensor, limit)
        return self._issue("all_reduce", action, opts, [tensor], short)

    def _all_reduce(self, tensor: Tensor, op: Operation, limit: Options, short: Short) -> None:
        text, own = dtype_name(tensor.dtype), own_numbers(tensor)
        data = Reducible(tensor, copy=True).data if own is None else own
        op.begin(data)
        flat.all_reduce(self._engine, data, op, text, limit)
        if own is None:
            store(tensor, data)
        else:
            self._keep(short, limit, op)

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
        reduce, count, at_root = (
            reduction(opts.reduceOp, tensor.dtype),
            tensor.numel(),
            self._engine.rank == opts.rootRank,
        )
        given = ((tensor, count),)
        short = (("reduce", opts.rootRank, reduce, tensor.dtype, count), tensor.dtype, given * 2 if at_root else given)
        if self._by_express(short, opts):
            return ENDED
        text, limit = dtype_name(tensor.dtype), limits(opts)
        check(tensor)

        def action() -> None:
            target = Reducible(tensor, copy=True)
            reduce.begin(target.data)
            flat.reduce(self._engine, target.data, reduce, opts.rootRank, text, limit)
            if own_numbers(tensor) is not None:
                self._keep(short, limit, reduce)
            if at_root:
                target.close()

        return self._issue("reduce", action, opts, [tensor], short)

    def reduce_scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None, *, op: Any = None
    ) -> TorchWork:
        output, blocks = only(outputs), blocks_of(inputs)
        opts = options(dist.ReduceScatterOptions, opts, op, timeout)
        count, reduce = output.numel(), reduction(opts.reduceOp, output.dtype)
        short = (
            ("reduce_scatter", reduce, output.dtype, count),
            output.dtype,
            ((tuple(blocks), count), (output, count)),
        )
        if self._by_express(short, opts):
            return ENDED
        self._expect(len(blocks), "tensors in the input list")
        check(output, *blocks)
        return self._reduce_scatter(output, partial(joined, blocks), [b.numel() for b in blocks], opts, short)

    def reduce_scatter_single(self, output: Tensor, input: Tensor, opts: Any = None) -> TorchWork:  # noqa: A002
        n, opts, count = self._engine.world_size, options(dist.ReduceScatterOptions, opts), output.numel()
        reduce = reduction(opts.reduceOp, output.dtype)
        short = (("reduce_scatter", reduce, output.dtype, count), output.dtype, ((input, n * count), (output, count)))
        if self._by_express(short, opts):
            return ENDED
        check(output, input)
        if input.numel() != output.numel() * n:
            raise InvalidValue(
                f"reduce_scatter input of {input.numel()} elements must be {n} times the output's {output.numel()}"
            )
        return self._reduce_scatter(output, lambda: input, [output.numel()] * n, opts, short)

    _reduce_scatter_base = reduce_scatter_single

    def _reduce_scatter(
        self, output: Tensor, join: Callable[[], Tensor], counts: list[int], opts: Any, short: Short
    ) -> TorchWork:
        reduce, text, limit = reduction(opts.reduceOp, output.dtype), blocks_label(counts, output.dtype), limits(opts)
        self._fits(output, counts, "the output")

        def action() -> None:
            given, home = own_numbers(whole := join()), own_numbers(output)
            plain = reduce.factor is None and home is not None and reduce.wide == home.dtype
            if plain and given is not None and home is not None and lies_apart(home, given):
                flat.reduce_scatter(self._engine, given, counts, reduce, text, limit, home)
                if len(set(counts)) == 1:
                    self._keep(short, limit, reduce)
                return
            data = Reducible(whole, copy=True).data
            reduce.begin(data)
            own = flat.reduce_scatter(self._engine, data, counts, reduce, text, limit)
            store(output, own)

        return self._issue("reduce_scatter", action, opts, [output], short)
