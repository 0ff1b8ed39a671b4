# mypy: disable-error-code="override, assignment"
# torch's stubs overload what torch itself calls in one way
"""torch's ProcessGroup: its collectives on CPU tensors that move blocks and add nothing up, over superpod's engine.

A synchronous call runs in the caller's thread; an asynchronous one in the group's worker, in issue order. A Python
process group replaces torch's own and bypasses its debug wrapper, so mismatches are noticed here, in the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from superpod.collectives import flat
from superpod.collectives.torch_backend_base import GroupBase, blocks_of, only
from superpod.collectives.torch_backend_express import Short
from superpod.collectives.torch_backend_options import limits, options
from superpod.collectives.torch_backend_tensors import (
    Bytes,
    blocks_label,
    check,
    distribute,
    dtype_name,
    joined,
    label,
    source,
)
from superpod.collectives.torch_backend_work import ENDED, TorchWork, last_of
from superpod.interconnect.errors import InvalidValue

_c10d: Any = dist.distributed_c10d
_BYTE = torch.zeros(1, dtype=torch.uint8)


class CopyGroup(GroupBase):
    """One group of ranks without its reductions. Arguments as in torch's ProcessGroup.

    Every collective returns a TorchWork. Where `opts.asyncOp` is False it has ended by then, and its outputs are only
    in the caller's hands. Raises InvalidValue at once for arguments that break a rule; the work raises the rest. A
    synchronous call that has been made before goes a short way, see torch_backend_express.
    """

    def broadcast(
        self, tensors: list[Tensor] | Tensor, opts: Any = None, timeout: Any = None, *, root: int | None = None
    ) -> TorchWork:
        tensor, opts = only(tensors), options(dist.BroadcastOptions, opts, root, timeout)
        short = (("broadcast", opts.rootRank, tensor.dtype, tensor.numel()), tensor.dtype, ((tensor, tensor.numel()),))
        if self._by_express(short, opts):
            return ENDED
        source_rank, text, limit = opts.rootRank, label(tensor), limits(opts)
        check(tensor)

        def action() -> None:
            target = Bytes(tensor)
            flat.broadcast(self._engine, target.data, source_rank, text, limit)
            self._keep(short, limit)
            if self._engine.rank != source_rank:
                target.close()

        return self._issue("broadcast", action, opts, [tensor], short)

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None, *, timeout: Any = None) -> TorchWork:
        blocks, tensor = blocks_of(outputs), only(inputs)
        opts = options(_c10d.AllgatherOptions, opts, timeout)
        count = tensor.numel()
        short = (("all_gather", tensor.dtype, count), tensor.dtype, ((tensor, count), (tuple(blocks), count)))
        if self._by_express(short, opts):
            return ENDED
        self._expect(len(blocks), "tensors in the output list")
        check(tensor, *blocks)
        counts = [b.numel() for b in blocks]
        together = torch.empty(sum(counts), dtype=tensor.dtype)
        return self._all_gather(together, tensor, counts, opts, partial(distribute, together, blocks), [blocks], short)

    def all_gather_single(self, output: Tensor, input: Tensor, opts: Any = None) -> TorchWork:  # noqa: A002
        n, opts, count = self._engine.world_size, options(_c10d.AllgatherOptions, opts), input.numel()
        short = (("all_gather", input.dtype, count), input.dtype, ((input, count), (output, n * count)))
        if self._by_express(short, opts):
            return ENDED
        check(input, output)
        if output.numel() != input.numel() * n:
            raise InvalidValue(
                f"all_gather output of {output.numel()} elements must be {n} times the input's {input.numel()}"
            )
        return self._all_gather(output, input, [input.numel()] * n, opts, _nothing, [output], short)

    _allgather_base = all_gather_single

    def allgather_coalesced(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        for i, tensor in enumerate(inputs):
            check(tensor, *(rank[i] for rank in outputs))
        works = [self.allgather([[rank[i] for rank in outputs]], [tensor], opts) for i, tensor in enumerate(inputs)]
        return last_of(works, outputs)

    def _all_gather(
        self,
        output: Tensor,
        tensor: Tensor,
        counts: list[int],
        opts: Any,
        finish: Callable[[], None],
        result: Any,
        short: Short,
    ) -> TorchWork:
        text, size, limit = blocks_label(counts, tensor.dtype), tensor.element_size(), limits(opts)
        self._fits(tensor, counts, "the input")

        def action() -> None:
            target = Bytes(output, read=False)
            start = sum(counts[: self._engine.rank]) * size
            own = source(tensor)
            target.data[start : start + own.size] = own
            flat.all_gather(self._engine, target.data, [c * size for c in counts], text, limit)
            if len(set(counts)) == 1:
                self._keep(short, limit)
            target.close()
            finish()

        return self._issue("all_gather", action, opts, result, short)

    def gather(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None, *, root: int | None = None
    ) -> TorchWork:
        tensor, opts = only(inputs), options(dist.GatherOptions, opts, root, timeout)
        count = tensor.numel()
        into = ((tuple(blocks_of(outputs)), count),) if self._engine.rank == opts.rootRank else ()
        short = (("gather", opts.rootRank, tensor.dtype, count), tensor.dtype, ((tensor, count), *into))
        if self._by_express(short, opts):
            return ENDED
        text, limit = label(tensor), limits(opts)
        blocks = self._root_blocks(outputs, tensor, opts.rootRank, "gather")

        def action() -> None:
            together = None if blocks is None else torch.empty(tensor.numel() * len(blocks), dtype=tensor.dtype)
            out = None if together is None else Bytes(together, read=False).data
            flat.gather(self._engine, source(tensor), out, opts.rootRank, text, limit)
            self._keep(short, limit)
            if together is not None and blocks is not None:
                distribute(together, blocks)

        return self._issue("gather", action, opts, outputs, short)

    def scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None, *, root: int | None = None
    ) -> TorchWork:
        tensor, opts = only(outputs), options(dist.ScatterOptions, opts, root, timeout)
        count = tensor.numel()
        given = ((tuple(blocks_of(inputs)), count),) if self._engine.rank == opts.rootRank else ()
        short = (("scatter", opts.rootRank, tensor.dtype, count), tensor.dtype, (*given, (tensor, count)))
        if self._by_express(short, opts):
            return ENDED
        text, limit = label(tensor), limits(opts)
        blocks = self._root_blocks(inputs, tensor, opts.rootRank, "scatter")

        def action() -> None:
            target = Bytes(tensor, read=False)
            together = None if blocks is None else source(joined(blocks))
            flat.scatter(self._engine, together, target.data, opts.rootRank, text, limit)
            self._keep(short, limit)
            target.close()

        return self._issue("scatter", action, opts, outputs, short)

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
        return self._all_to_all(together, partial(joined, inputs), splits, counts, opts, finish, outputs, None)

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
        opts, equal = options(_c10d.AllToAllOptions, opts, timeout), not input_splits and not output_splits
        key = ("all_to_all", input.dtype, input.shape, output.shape)
        short = (key, input.dtype, ((input, input.numel()), (output, input.numel()))) if equal else None
        if short is not None and self._by_express(short, opts):
            return ENDED
        check(output, input)
        counts = self._splits(input, input_splits, "input")
        splits = self._splits(output, output_splits, "output")
        return self._all_to_all(output, lambda: input, splits, counts, opts, _nothing, [output], short)

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
        short: Short | None,
    ) -> TorchWork:
        """`short`: None if blocks may differ in length."""
        size, own, limit = output.element_size(), self._engine.rank, limits(opts)
        equal = short is not None
        text = label(output) if equal else f"uneven × {dtype_name(output.dtype)}"
        if splits[own] != counts[own]:
            raise InvalidValue(
                f"rank {own} sends itself {counts[own]} elements but expects {splits[own]}; they must be as many"
            )

        def action() -> None:
            target = Bytes(output, read=False)
            sent, taken, given = [c * size for c in counts], [s * size for s in splits], source(join())
            if np.may_share_memory(given, target.data):  # others may still read what is written here
                given = given.copy()
            flat.all_to_all(self._engine, given, target.data, sent, taken, text, limit, equal=equal)
            if short is not None:
                self._keep(short, limit)
            target.close()
            finish()

        return self._issue("all_to_all", action, opts, result, short)

    def barrier(self, opts: Any = None, *, timeout: Any = None) -> TorchWork:
        opts = options(_c10d.BarrierOptions, opts, timeout)
        short = (("barrier",), _BYTE.dtype, ((_BYTE, 1),))
        if self._by_express(short, opts):
            return ENDED
        limit = limits(opts)

        def action() -> None:
            flat.barrier(self._engine, limit)
            self._keep(short, limit, flat.BARRIER)

        return self._issue("barrier", action, opts, None, short)


def _nothing() -> None:
    pass
