# mypy: disable-error-code="override, assignment"
# torch's stubs overload what torch itself calls in one way
"""The collectives that take many tensors at once: what is small travels together, with the same results.

A call costs tens of microseconds however short its tensor is, so tensors of up to 64 KiB are joined, as long as the
joined call adds up every element in the order in which a call of its own would have. That is so for integers, where the
order does not matter, and when both calls run by one algorithm that treats all elements alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from superpod.collectives import algorithms, flat
from superpod.collectives.engine import Engine
from superpod.collectives.flat import Options
from superpod.collectives.operations import Operation
from superpod.collectives.torch_backend_group import CollectiveGroup
from superpod.collectives.torch_backend_options import limits, options, reduction
from superpod.collectives.torch_backend_tensors import Reducible, check, distribute, dtype_name, joined, put, source
from superpod.collectives.torch_backend_work import TorchWork, last_of
from superpod.interconnect.errors import InvalidValue

_SMALL = 64 << 10  # bytes of a tensor, and
_TOGETHER = 512 << 10  # of tensors joined: beyond them copying costs what a call saves

_c10d: Any = dist.distributed_c10d


class SuperpodProcessGroup(CollectiveGroup):
    """A group of ranks as torch knows it, whole."""

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> TorchWork:
        check(*tensors)
        if not tensors:
            return last_of([], tensors)
        opts = options(dist.AllreduceCoalescedOptions, opts)
        op, limit, size = reduction(opts.reduceOp, tensors[0].dtype), limits(opts), tensors[0].element_size()
        works = []
        for part in self._parts("all_reduce", [t.numel() * size for t in tensors], op, size):
            some = tensors[part]
            if len(some) == 1:
                works.append(self.allreduce(some, opts))
            else:
                works.append(self._issue("all_reduce", partial(_all_reduce, self._engine, some, op, limit), opts, some))
        return last_of(works, tensors)

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None
    ) -> TorchWork:
        check(*outputs, *inputs)
        self._expect_pairs(outputs, inputs)
        if not outputs:
            return last_of([], outputs)
        opts = options(dist.ReduceScatterOptions, opts)
        op, limit, size = reduction(opts.reduceOp, outputs[0].dtype), limits(opts), inputs[0].element_size()
        works = []
        for part in self._parts("reduce_scatter", [t.numel() * size for t in inputs], op, size):
            if len(outputs[part]) == 1:
                works.append(self.reduce_scatter_single(outputs[part][0], inputs[part][0], opts))
            else:
                self._check_blocks(inputs[part], outputs[part], "reduce_scatter input")
                action = partial(_reduce_scatter, self._engine, outputs[part], inputs[part], op, limit)
                works.append(self._issue("reduce_scatter", action, opts, outputs[part]))
        return last_of(works, outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def all_gather_single_coalesced(self, outputs: list[Tensor], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        self._expect_pairs(outputs, inputs)
        for output, tensor in zip(outputs, inputs, strict=True):
            check(output, tensor)
        opts = options(_c10d.AllgatherOptions, opts)
        works = []
        for part in self._parts("all_gather", [t.numel() * t.element_size() for t in outputs], None, 1):
            if len(outputs[part]) == 1:
                works.append(self.all_gather_single(outputs[part][0], inputs[part][0], opts))
            else:
                self._check_blocks(outputs[part], inputs[part], "all_gather output")
                action = partial(_all_gather, self._engine, outputs[part], inputs[part], limits(opts))
                works.append(self._issue("all_gather", action, opts, outputs[part]))
        return last_of(works, outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather_coalesced(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> TorchWork:
        for i, tensor in enumerate(inputs):
            check(tensor, *(rank[i] for rank in outputs))
        works = [self.allgather([[rank[i] for rank in outputs]], [tensor], opts) for i, tensor in enumerate(inputs)]
        return last_of(works, outputs)

    def _parts(self, collective: str, nbytes: Sequence[int], op: Operation | None, size: int) -> Iterator[slice]:
        """Which consecutive tensors travel together; the same on all ranks that bring the same sizes.

        `op` is None where nothing is added up; `size` in bytes of an element, which may be added up in a wider dtype.
        """
        wider = 1 if op is None else op.wide.itemsize / size
        start, together = 0, 0
        for i, one in enumerate(nbytes):
            if i > start and not (
                max(one, nbytes[start]) <= _SMALL
                and together + one <= _TOGETHER
                and self._same_order(
                    collective, op, int(together * wider), int(one * wider), int((together + one) * wider)
                )
            ):
                yield slice(start, i)
                start, together = i, 0
            together += one
        if nbytes:
            yield slice(start, len(nbytes))

    def _same_order(self, collective: str, op: Operation | None, *nbytes: int) -> bool:
        """Whether calls of these sizes add up every element in one order, as far as that matters."""
        n = self._engine.world_size
        if n == 1 or op is None or op.wide.kind not in "fc":
            return n > 1  # alone, a rank has nothing to gain
        names = {self._engine.algorithm_for(collective, size) for size in nbytes}
        if all(algorithms.get(collective, name).fixed_order for name in names):
            return True
        if len(names) > 1:
            return False
        schedule = algorithms.build(collective, names.pop(), n, 0)
        return schedule.nchunks == (n if collective == "reduce_scatter" else 1)

    def _expect_pairs(self, outputs: list[Tensor], inputs: list[Tensor]) -> None:
        if len(outputs) != len(inputs):
            raise InvalidValue(f"{len(outputs)} outputs and {len(inputs)} inputs must be as many")

    def _check_blocks(self, long: list[Tensor], short: list[Tensor], what: str) -> None:
        """Every `long` tensor has one block a rank, each as long as its `short` one."""
        n, other = self._engine.world_size, "output" if "input" in what else "input"
        for whole, block in zip(long, short, strict=True):
            if whole.numel() != block.numel() * n:
                raise InvalidValue(
                    f"{what} of {whole.numel()} elements must be {n} times the {other}'s {block.numel()}"
                )


def _words(tensors: list[Tensor]) -> str:
    """What ranks must agree on beside the total: "float32 in 3 tensors of 5, 7, 12"."""
    return f"{dtype_name(tensors[0].dtype)} in {len(tensors)} tensors of {', '.join(str(t.numel()) for t in tensors)}"


def _all_reduce(engine: Engine, tensors: list[Tensor], op: Operation, limit: Options) -> None:
    numbers = Reducible(joined(tensors))
    op.begin(numbers.data)
    flat.all_reduce(engine, numbers.data, op, _words(tensors), limit)
    distribute(torch.from_numpy(numbers.data), tensors)


def _reduce_scatter(engine: Engine, outputs: list[Tensor], inputs: list[Tensor], op: Operation, limit: Options) -> None:
    n, total = engine.world_size, sum(output.numel() for output in outputs)
    numbers = Reducible(torch.cat([i.detach().reshape(n, -1) for i in inputs], 1))
    op.begin(numbers.data)
    own = flat.reduce_scatter(engine, numbers.data, [total] * n, op, _words(outputs), limit)
    distribute(torch.from_numpy(own), outputs)


def _all_gather(engine: Engine, outputs: list[Tensor], inputs: list[Tensor], limit: Options) -> None:
    n = engine.world_size
    parts = [source(tensor) for tensor in inputs]
    total = sum(part.size for part in parts)
    gathered = np.empty((n, total), np.uint8)
    np.concatenate(parts, out=gathered[engine.rank])
    words = "; ".join(f"{tensor.numel()} × {dtype_name(tensor.dtype)}" for tensor in inputs)
    flat.all_gather(engine, gathered.reshape(-1), [total] * n, f"{words} a rank", limit)
    start = 0
    for output, part in zip(outputs, parts, strict=True):
        block = np.ascontiguousarray(gathered[:, start : start + part.size])
        start += part.size
        if part.size:
            put(output.detach(), torch.from_numpy(block).reshape(-1).view(output.dtype).view(output.shape))
