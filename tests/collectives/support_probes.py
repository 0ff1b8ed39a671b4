"""What torch.distributed offers on CPU tensors, as probes: each calls one operation and compares what came out.

A probe runs on every rank and yields (what came out, what must come out). The values are small integers that differ by
rank and by index; every partial result of every reduction on up to 3 ranks is exact in every dtype, float8_e5m2 too.
What must come out is computed from all ranks' values in float64, complex128 or Python's integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as fc

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, "complex64", "complex128", *INTEGERS, "bool")
REDUCTIONS = ("SUM", "AVG", "PRODUCT", "MIN", "MAX", "BAND", "BOR", "BXOR", "PREMUL_SUM")
FACTOR = 2.0  # of PREMUL_SUM
LENGTH = 6  # elements of a tensor, or of one rank's block

Pairs = Iterator[tuple[Any, Any]]


@dataclass(frozen=True)
class Case:
    """One probe as one rank sees it."""

    rank: int
    world_size: int
    group: Any
    dtype: torch.dtype = torch.float32
    reduction: str = "SUM"

    @property
    def op(self) -> Any:
        """The reduction as torch's functions take it."""
        if self.reduction == "PREMUL_SUM":
            return dist._make_nccl_premul_sum(FACTOR)
        return getattr(dist.ReduceOp, self.reduction)

    @property
    def last(self) -> int:
        return self.world_size - 1

    def value(self, rank: int, length: int = LENGTH) -> Tensor:
        """What `rank` brings. Shape (length,)."""
        i = torch.arange(length)
        if self.dtype is torch.bool:  # every combination of the ranks' bits is there
            return ((i + 1) >> rank) % 2 == 0
        bits = self.reduction in ("BAND", "BOR", "BXOR")
        numbers = (5 * i + 11 * rank + 3) % 16 if bits else (1 + (rank + i) % self.world_size) * (1 + i % 2)
        return (numbers * (1 + 1j)).to(self.dtype) if self.dtype.is_complex else numbers.to(self.dtype)

    @property
    def own(self) -> Tensor:
        return self.value(self.rank)

    def empty(self, length: int = LENGTH) -> Tensor:
        return torch.zeros(length, dtype=self.dtype)

    def empties(self) -> list[Tensor]:
        return [self.empty() for _ in range(self.world_size)]

    def all(self, length: int = LENGTH) -> list[Tensor]:
        return [self.value(rank, length) for rank in range(self.world_size)]

    def reduced(self, length: int = LENGTH) -> Tensor:
        """The reduction of all ranks' values."""
        values = [wide(value) for value in self.all(length)]
        if self.dtype is torch.bool:
            over = {"SUM": torch.any, "MAX": torch.any, "BOR": torch.any}.get(self.reduction, torch.all)
            return reduce(torch.ne, values) if self.reduction == "BXOR" else over(torch.stack(values), 0)
        name = {"AVG": "SUM", "PREMUL_SUM": "SUM"}.get(self.reduction, self.reduction)
        total = reduce(_COMBINE[name], values)
        return {"AVG": total / self.world_size, "PREMUL_SUM": total * FACTOR}.get(self.reduction, total)


_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "SUM": torch.add,
    "PRODUCT": torch.mul,
    "MIN": torch.minimum,
    "MAX": torch.maximum,
    "BAND": torch.bitwise_and,
    "BOR": torch.bitwise_or,
    "BXOR": torch.bitwise_xor,
}


def wide(tensor: Tensor) -> Tensor:
    """The same numbers in a dtype that torch can calculate with and that holds them exactly."""
    if tensor.dtype is torch.bool:
        return tensor
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)


# Reductions: every dtype, every reduction


def all_reduce(c: Case) -> Pairs:
    dist.all_reduce(own := c.own, c.op, c.group)
    yield own, c.reduced()


def all_reduce_coalesced(c: Case) -> Pairs:
    short, long = c.own, c.value(c.rank, 2 * LENGTH)
    dist.all_reduce_coalesced([short, long], c.op, c.group)
    yield short, c.reduced()
    yield long, c.reduced(2 * LENGTH)


def all_reduce_in_a_coalescing_block(c: Case) -> Pairs:
    short, long = c.own, c.value(c.rank, 2 * LENGTH)
    with dist.distributed_c10d._coalescing_manager(c.group):
        dist.all_reduce(short, c.op, c.group)
        dist.all_reduce(long, c.op, c.group)
    yield short, c.reduced()
    yield long, c.reduced(2 * LENGTH)


def reduce_(c: Case) -> Pairs:
    dist.reduce(own := c.own, c.last, c.op, c.group)
    if c.rank == c.last:
        yield own, c.reduced()


def reduce_scatter(c: Case) -> Pairs:
    whole = c.value(c.rank, LENGTH * c.world_size)
    dist.reduce_scatter(out := c.empty(), list(whole.split(LENGTH)), c.op, c.group)
    yield out, c.reduced(LENGTH * c.world_size).split(LENGTH)[c.rank]


def reduce_scatter_uneven(c: Case) -> Pairs:
    sizes = [LENGTH + rank for rank in range(c.world_size)]
    whole = c.value(c.rank, sum(sizes))
    dist.reduce_scatter(out := c.empty(sizes[c.rank]), list(whole.split(sizes)), c.op, c.group)
    yield out, c.reduced(sum(sizes)).split(sizes)[c.rank]


def reduce_scatter_tensor(c: Case) -> Pairs:
    dist.reduce_scatter_tensor(out := c.empty(), c.value(c.rank, LENGTH * c.world_size), c.op, c.group)
    yield out, c.reduced(LENGTH * c.world_size).split(LENGTH)[c.rank]


def reduce_scatter_in_a_coalescing_block(c: Case) -> Pairs:
    outs, whole = [c.empty(), c.empty()], c.value(c.rank, LENGTH * c.world_size)
    with dist.distributed_c10d._coalescing_manager(c.group):
        for out in outs:
            dist.reduce_scatter_tensor(out, whole, c.op, c.group)
    for out in outs:
        yield out, c.reduced(LENGTH * c.world_size).split(LENGTH)[c.rank]


# Copies: every dtype


def broadcast(c: Case) -> Pairs:
    dist.broadcast(own := c.own, c.last, c.group)
    yield own, c.value(c.last)


def all_gather(c: Case) -> Pairs:
    dist.all_gather(outs := c.empties(), c.own, c.group)
    yield outs, c.all()


def all_gather_uneven(c: Case) -> Pairs:
    wanted = [c.value(rank, LENGTH + rank) for rank in range(c.world_size)]
    outs = [c.empty(len(one)) for one in wanted]
    dist.all_gather(outs, wanted[c.rank].clone(), c.group)
    yield outs, wanted


def all_gather_into_tensor(c: Case) -> Pairs:
    dist.all_gather_into_tensor(out := c.empty(LENGTH * c.world_size), c.own, c.group)
    yield list(out.split(LENGTH)), c.all()


def all_gather_coalesced(c: Case) -> Pairs:
    lists = [[c.empty(), c.empty(LENGTH - 1)] for _ in range(c.world_size)]
    dist.all_gather_coalesced(lists, [c.own, c.own[1:]], c.group)
    for rank, outs in enumerate(lists):
        yield outs, [c.value(rank), c.value(rank)[1:]]


def all_gather_in_a_coalescing_block(c: Case) -> Pairs:
    outs = [c.empty(LENGTH * c.world_size), c.empty(LENGTH * c.world_size)]
    with dist.distributed_c10d._coalescing_manager(c.group):
        for out in outs:
            dist.all_gather_into_tensor(out, c.own, c.group)
    for out in outs:
        yield list(out.split(LENGTH)), c.all()


def gather(c: Case) -> Pairs:
    outs = c.empties() if c.rank == c.last else None
    dist.gather(c.own, outs, c.last, c.group)
    if outs is not None:
        yield outs, c.all()


def scatter(c: Case) -> Pairs:
    dist.scatter(out := c.empty(), c.all() if c.rank == c.last else None, c.last, c.group)
    yield out, c.own


def _blocks(c: Case, sender: int) -> list[Tensor]:
    """What `sender` sends each rank in an all-to-all."""
    return list(c.value(sender, LENGTH * c.world_size).split(LENGTH))


def all_to_all(c: Case) -> Pairs:
    dist.all_to_all(outs := c.empties(), _blocks(c, c.rank), c.group)
    yield outs, [_blocks(c, sender)[c.rank] for sender in range(c.world_size)]


def all_to_all_single(c: Case) -> Pairs:
    out = c.empty(LENGTH * c.world_size)
    dist.all_to_all_single(out, c.value(c.rank, LENGTH * c.world_size), group=c.group)
    yield list(out.split(LENGTH)), [_blocks(c, sender)[c.rank] for sender in range(c.world_size)]


def all_to_all_single_uneven(c: Case) -> Pairs:
    sent = [1 + c.rank + receiver for receiver in range(c.world_size)]  # so what is received has the same sizes
    out = c.empty(sum(sent))
    dist.all_to_all_single(out, c.value(c.rank, sum(sent)), sent, sent, group=c.group)
    taken = []
    for sender in range(c.world_size):
        sizes = [1 + sender + receiver for receiver in range(c.world_size)]
        taken.append(c.value(sender, sum(sizes)).split(sizes)[c.rank])
    yield out, torch.cat([wide(one) for one in taken])


# Messages: every dtype. A ring: each rank sends to the next one; the last one first receives.


def _neighbours(c: Case) -> tuple[int, int]:
    return (c.rank + 1) % c.world_size, (c.rank - 1) % c.world_size


def send_and_recv(c: Case) -> Pairs:
    after, before = _neighbours(c)
    steps = [lambda: dist.send(c.own, after, c.group), lambda: dist.recv(out, before, c.group)]
    out = c.empty()
    for step in steps if c.rank != c.last else reversed(steps):
        step()
    yield out, c.value(before)


def isend_and_irecv_with_tags(c: Case) -> Pairs:
    after, before = _neighbours(c)
    outs = [c.empty(), c.empty(1)]
    works = [dist.irecv(outs[tag], before, c.group, tag) for tag in (1, 0)]
    works += [dist.isend((c.own, c.own[2:3])[tag], after, c.group, tag) for tag in (0, 1)]
    for work in works:
        work.wait()
    yield outs, [c.value(before), c.value(before)[2:3]]


def recv_from_anybody(c: Case) -> Pairs:
    if c.rank:
        dist.send(c.own, 0, c.group, tag=7)
    else:
        outs = {}
        for _ in range(c.last):
            out = c.empty()
            outs[dist.recv(out, None, c.group, tag=7)] = out
        yield sorted(outs), list(range(1, c.world_size))
        for sender, out in outs.items():
            yield out, c.value(sender)
    dist.barrier(c.group)  # or a quick rank's next message comes before a slow one's first


def batch_isend_irecv(c: Case) -> Pairs:
    after, before = _neighbours(c)
    out = c.empty()
    both = [dist.P2POp(dist.isend, c.own, after, c.group), dist.P2POp(dist.irecv, out, before, c.group)]
    for work in dist.batch_isend_irecv(both):
        work.wait()
    yield out, c.value(before)


# Functional collectives


def functional_all_reduce(c: Case) -> Pairs:
    yield fc.wait_tensor(fc.all_reduce(c.own, c.reduction.lower(), c.group)), c.reduced()


def functional_reduce_scatter_tensor(c: Case) -> Pairs:
    whole = c.value(c.rank, LENGTH * c.world_size)
    out = fc.wait_tensor(fc.reduce_scatter_tensor(whole, c.reduction.lower(), 0, c.group))
    yield out, c.reduced(LENGTH * c.world_size).split(LENGTH)[c.rank]


def functional_all_gather_tensor(c: Case) -> Pairs:
    yield list(fc.wait_tensor(fc.all_gather_tensor(c.own, 0, c.group)).split(LENGTH)), c.all()


def functional_broadcast(c: Case) -> Pairs:
    yield fc.wait_tensor(fc.broadcast(c.own, c.last, c.group)), c.value(c.last)


def functional_all_to_all_single(c: Case) -> Pairs:
    out = fc.wait_tensor(fc.all_to_all_single(c.value(c.rank, LENGTH * c.world_size), None, None, c.group))
    yield list(out.split(LENGTH)), [_blocks(c, sender)[c.rank] for sender in range(c.world_size)]
