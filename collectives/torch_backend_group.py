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
from superpod.collectives.torch_backend_base import GroupBase, limits, only
from superpod.collectives.torch_backend_sparse import all_reduce as sparse_all_reduce
from superpod.collectives.torch_backend_sparse import check_sparse
from superpod.collectives.torch_backend_tensors import (
    Bytes,
    Reducible,
    blocks_label,
    check,
    dtype_name,
    joined,
    label,
    source,
    store,
)
from superpod.collectives.torch_backend_work import TorchWork, last_of
from superpod.interconnect.errors import InvalidValue


class SuperpodProcessGroup(GroupBase):
    """One group of ranks, with the methods that torch calls, from Python or C++. Arguments as in torch's ProcessGroup.

    Every collective returns a TorchWork. `opts.asyncOp` decides whether it has ended by then. Raises InvalidValue at
    once for arguments that break a rule; everything else is raised by the work.
    """

    # Reductions

    def allreduce(self, tensors: list[Tensor] | Tensor, opts: Any = None) -> TorchWork:
        tensor = only(tensors)
        opts = _allreduce_options(opts)
        op, text = self._operation(opts.reduceOp, tensor.dtype), dtype_name(tensor.dtype)
        if tensor.layout is not torch.strided:
            check_sparse(tensor, op.name)
            return self._issue(
                "all_reduce", partial(sparse_all_reduce, self._engine, tensor, limits(opts)), opts, [tensor]
            )
        check(tensor)

        def action() -> None:
            target = Reducible(tensor)
            flat.all_reduce(self._engine, target.data, op, text, limits(opts))
            target.close()

        return self._issue("all_reduce", action, opts, [tensor])

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> TorchWork:
        opts = opts or dist.AllreduceCoalescedOptions()
        check(*tensors)
        return last_of([self.allreduce([t], opts) for t in tensors], tensors)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> TorchWork:
        tensor, opts = only(tensors), opts or dist.ReduceOptions()
        op, text = self._operation(opts.reduceOp, tensor.dtype), dtype_name(tensor.dtype)
        check(tensor)

        def action() -> None:
            target = Reducible(tensor, copy=True)
            flat.reduce(self._engine, target.data, op, opts.rootRank, text, limits(opts))
            if self._engine.rank == opts.rootRank:
                target.close()

        return self._issue("reduce", action, opts, [tensor])

    def reduce_scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> TorchWork:
        output, blocks = only(outputs), only(inputs)
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

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> TorchWork:
        check(*outputs, *inputs)
        pairs = zip(outputs, inputs, strict=True)
        return last_of([self.reduce_scatter_single(o, i, opts) for o, i in pairs], outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def _reduce_scatter(self, output: Tensor, join: Callable[[], Tensor], counts: list[int], opts: Any) -> TorchWork:
        opts = opts or dist.ReduceScatterOptions()
        op, text = self._operation(opts.reduceOp, output.dtype), blocks_label(counts, output.dtype)
        self._fits(output, counts, "the output")

        def action() -> None:
            data = Reducible(join(), copy=True).data
            own = flat.reduce_scatter(self._engine, data, counts, op, text, limits(opts))
            store(output, own)

        return self._issue("reduce_scatter", action, opts, [output])

    # Copies

    def broadcast(self, tensors: list[Tensor] | Tensor, opts: Any = None) -> TorchWork:
        tensor, opts = only(tensors), opts or dist.BroadcastOptions()
        root, text = opts.rootRank, label(tensor)
        check(tensor)

        def action() -> None:
            target = Bytes(tensor)
            flat.broadcast(self._engine, target.data, root, text, limits(opts))
            if self._engine.rank != root:
                target.close()

        return self._issue("broadcast", action, opts, [tensor])

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        blocks, tensor = only(outputs), only(inputs)
        self._expect(len(blocks), "tensors in the output list")
        check(tensor, *blocks)
        counts = [b.numel() for b in blocks]
        together = torch.empty(sum(counts), dtype=tensor.dtype)
        return self._all_gather(together, tensor, counts, opts, partial(_distribute, together, blocks), [blocks])

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

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        for output, tensor in zip(outputs, inputs, strict=True):
            check(output, tensor)
        pairs = zip(outputs, inputs, strict=True)
        return last_of([self.all_gather_single(o, i, opts) for o, i in pairs], outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def _all_gather(
        self, output: Tensor, tensor: Tensor, counts: list[int], opts: Any, finish: Callable[[], None], result: Any
    ) -> TorchWork:
        text, size = blocks_label(counts, tensor.dtype), tensor.element_size()
        self._fits(tensor, counts, "the input")

        def action() -> None:
            target = Bytes(output, read=False)
            start = sum(counts[: self._engine.rank]) * size
            own = source(tensor)
            target.data[start : start + own.size] = own
            flat.all_gather(self._engine, target.data, [c * size for c in counts], text, limits(opts))
            target.close()
            finish()

        return self._issue("all_gather", action, opts, result)

    def gather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        tensor, opts = only(inputs), opts or dist.GatherOptions()
        text, blocks = label(tensor), self._root_blocks(outputs, tensor, opts.rootRank, "gather")

        def action() -> None:
            together = None if blocks is None else torch.empty(tensor.numel() * len(blocks), dtype=tensor.dtype)
            out = None if together is None else Bytes(together, read=False).data
            flat.gather(self._engine, source(tensor), out, opts.rootRank, text, limits(opts))
            if together is not None and blocks is not None:
                _distribute(together, blocks)

        return self._issue("gather", action, opts, outputs)

    def scatter(self, outputs: list[Tensor], inputs: list[list[Tensor]], opts: Any = None) -> TorchWork:
        tensor, opts = only(outputs), opts or dist.ScatterOptions()
        text, blocks = label(tensor), self._root_blocks(inputs, tensor, opts.rootRank, "scatter")

        def action() -> None:
            target = Bytes(tensor, read=False)
            together = None if blocks is None else source(joined(blocks))
            flat.scatter(self._engine, together, target.data, opts.rootRank, text, limits(opts))
            target.close()

        return self._issue("scatter", action, opts, outputs)

    def _root_blocks(self, lists: list[list[Tensor]], own: Tensor, root: int, what: str) -> list[Tensor] | None:
        """The root's list of one tensor a rank, each as long as `own`; elsewhere None."""
        check(own)
        if self._engine.rank != root:
            return None
        blocks: list[Tensor] = only(lists)
        self._expect(len(blocks), f"tensors in the {what} list")
        check(own, *blocks)
        for i, block in enumerate(blocks):
            if block.numel() != own.numel():
                raise InvalidValue(
                    f"tensor {i} of the {what} list has {block.numel()} elements, must be {own.numel()} as the others"
                )
        return blocks

    def alltoall(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        self._expect(len(outputs), "output tensors")
        self._expect(len(inputs), "input tensors")
        check(*outputs, *inputs)
        splits, counts = [t.numel() for t in outputs], [t.numel() for t in inputs]
        together = torch.empty(sum(splits), dtype=outputs[0].dtype)
        finish = partial(_distribute, together, outputs)
        return self._all_to_all(together, partial(joined, inputs), splits, counts, opts, finish, outputs, equal=False)

    def all_to_all_single(
        self,
        output: Tensor,
        input: Tensor,  # noqa: A002
        output_splits: list[int] | None = None,
        input_splits: list[int] | None = None,
        opts: Any = None,
    ) -> TorchWork:
        check(output, input)
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
        size, own = output.element_size(), self._engine.rank
        text = label(output) if equal else f"uneven × {dtype_name(output.dtype)}"
        if splits[own] != counts[own]:
            raise InvalidValue(
                f"rank {own} sends itself {counts[own]} elements but expects {splits[own]}; they must be as many"
            )

        def action() -> None:
            target = Bytes(output, read=False)
            sent, taken = [c * size for c in counts], [s * size for s in splits]
            flat.all_to_all(self._engine, source(join()), target.data, sent, taken, text, limits(opts), equal=equal)
            target.close()
            finish()

        return self._issue("all_to_all", action, opts, result)

    def barrier(self, opts: Any = None) -> TorchWork:
        return self._issue("barrier", lambda: flat.barrier(self._engine, limits(opts)), opts, None)

    def _fits(self, tensor: Tensor, counts: list[int], what: str) -> None:
        """This rank's own tensor is as long as its block."""
        own = self._engine.rank
        if tensor.numel() != counts[own]:
            raise InvalidValue(f"{what} has {tensor.numel()} elements, but block {own} of the list has {counts[own]}")


def _nothing() -> None:
    pass


def _distribute(together: Tensor, blocks: list[Tensor]) -> None:
    """Copy consecutive elements into tensors of any shape and memory layout."""
    parts = torch.split(together, [b.numel() for b in blocks])
    for block, part in zip(blocks, parts, strict=True):
        block.detach().copy_(part.view(block.shape))


def _allreduce_options(opts: Any) -> Any:
    """Options as torch passes them, or made from a bare ReduceOp."""
    if opts is not None and hasattr(opts, "reduceOp"):
        return opts
    made = dist.AllreduceOptions()
    if opts is not None:
        made.reduceOp = opts
    return made
