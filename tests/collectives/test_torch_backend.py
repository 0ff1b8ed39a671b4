"""torch's collectives on the superpod backend, on real processes: dtypes, layouts, splits, refusals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch_cards import TorchCards

from superpod.interconnect.errors import InvalidValue

Op = dist.ReduceOp
N = 4
REAL = ["float64", "float32", "float16", "bfloat16"]
WHOLE = ["int64", "int32", "int16", "int8", "uint8"]
UNSIGNED = ["uint16", "uint32", "uint64"]
DTYPES = [*REAL, *WHOLE, *UNSIGNED, "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def brought(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Whole numbers from 1 to 3 that differ by rank and index: their sums and products are exact in every dtype."""
    count = int(torch.tensor(shape).prod())
    return (((torch.arange(count) * 5 + rank * 7) % 11) % 3 + 1).reshape(shape).to(dtype)


def equal(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    assert torch.equal(*(t.to(torch.float32) if t.dtype.itemsize == 1 else t for t in (result, expected)))


def reduced(op: Any, tensors: list[torch.Tensor]) -> torch.Tensor:
    wide = torch.float32 if tensors[0].dtype.is_floating_point and tensors[0].dtype.itemsize < 4 else tensors[0].dtype
    if wide is torch.bool:
        functions: dict[Any, Callable[..., Any]] = {Op.SUM: torch.logical_or, Op.PRODUCT: torch.logical_and}
        functions |= {Op.MAX: torch.logical_or, Op.MIN: torch.logical_and}
    else:
        functions = {Op.SUM: torch.add, Op.AVG: torch.add, Op.PRODUCT: torch.mul, Op.MIN: torch.min, Op.MAX: torch.max}
    functions |= {Op.BAND: torch.bitwise_and, Op.BOR: torch.bitwise_or, Op.BXOR: torch.bitwise_xor}
    if wide in (torch.uint16, torch.uint32, torch.uint64):
        return reduced(op, [t.to(torch.int64) for t in tensors]).to(wide)
    total = functools.reduce(functions[op], [t.to(wide) for t in tensors])
    return (total / len(tensors) if op == Op.AVG else total).to(tensors[0].dtype)


def operations(dtype: torch.dtype) -> tuple[list[Any], list[Any]]:
    """Those that make sense for the dtype, and those that do not."""
    arithmetic, order, average = [Op.SUM, Op.PRODUCT], [Op.MIN, Op.MAX], [Op.AVG]
    bits = [Op.BAND, Op.BOR, Op.BXOR]
    if dtype.is_complex:  # torch itself lets pass sums only, for some collectives
        return [Op.SUM, Op.AVG], order + bits
    if dtype.is_floating_point:
        return arithmetic + order + average, bits
    return arithmetic + order + bits, average


def reductions(rank: int, n: int, name: str) -> None:
    dtype = getattr(torch, name)
    good, bad = operations(dtype)
    everything = [brought(r, (n, 3), dtype) for r in range(n)]
    for op in good:
        expected = reduced(op, everything)
        mine = brought(rank, (n, 3), dtype)
        assert dist.all_reduce(mine, op) is None
        equal(mine, expected)
        mine = brought(rank, (n, 3), dtype)
        dist.reduce(mine, 1, op)
        equal(mine, expected if rank == 1 else everything[rank])
        out = torch.zeros(3, dtype=dtype)
        dist.reduce_scatter_tensor(out, brought(rank, (n, 3), dtype), op)
        equal(out, expected[rank])
        out = torch.zeros(3, dtype=dtype)
        dist.reduce_scatter(out, list(brought(rank, (n, 3), dtype)), op)
        equal(out, expected[rank])
    for op in bad:
        for call in (lambda op=op: dist.all_reduce(mine, op), lambda op=op: dist.reduce(mine, 0, op)):
            with pytest.raises(ValueError, match=r"makes no sense for|does not support"):
                call()
    coalesced = [brought(rank, (n, 3), dtype), brought(rank + 1, (2,), dtype)]
    dist.all_reduce_coalesced(coalesced)
    equal(coalesced[0], reduced(Op.SUM, everything))
    equal(coalesced[1], reduced(Op.SUM, [brought(r + 1, (2,), dtype) for r in range(n)]))


@every_dtype
def test_reductions(torch_cards: TorchCards, dtype: str) -> None:
    torch_cards(N, reductions, dtype)


def copies(rank: int, n: int, name: str) -> None:
    dtype = getattr(torch, name)
    everything = [brought(r, (n, 3), dtype) for r in range(n)]
    mine = brought(rank, (n, 3), dtype)
    copy = mine.clone()
    dist.broadcast(copy, 2)
    equal(copy, everything[2])
    outs = [torch.zeros(n, 3, dtype=dtype) for _ in range(n)]
    dist.all_gather(outs, mine)
    for out, expected in zip(outs, everything, strict=True):
        equal(out, expected)
    for shape in ((n * n, 3), (n, n, 3)):
        whole = torch.zeros(shape, dtype=dtype)
        dist.all_gather_into_tensor(whole, mine)
        equal(whole, torch.cat(everything).reshape(shape))
    whole = torch.zeros(n, 3, dtype=dtype)
    dist.all_to_all_single(whole, mine)
    equal(whole, torch.stack([one[rank] for one in everything]))
    parts = [torch.zeros(3, dtype=dtype) for _ in range(n)]
    dist.all_to_all(parts, list(mine))
    equal(torch.stack(parts), whole)
    outs = [torch.zeros(n, 3, dtype=dtype) for _ in range(n)]
    dist.gather(mine, outs if rank == 1 else None, 1)
    if rank == 1:
        equal(torch.stack(outs), torch.stack(everything))
    part = torch.zeros(3, dtype=dtype)
    dist.scatter(part, list(mine) if rank == 3 else None, 3)
    equal(part, everything[3][rank])
    if rank == 0:
        dist.send(mine, 1, tag=6)
    elif rank == 1:
        assert dist.recv(copy, 0, tag=6) == 0
        equal(copy, everything[0])


@every_dtype
def test_copies(torch_cards: TorchCards, dtype: str) -> None:
    torch_cards(N, copies, dtype)


# Layouts


def any_layout(rank: int, n: int) -> None:
    base = torch.arange(12.0).reshape(3, 4) + rank
    total = sum(torch.arange(12.0).reshape(3, 4) + r for r in range(n))
    for make in (
        lambda t: t.T.contiguous().T,
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: torch.nn.Parameter(t.clone()),
        lambda t: torch.cat([t, t])[3:],
        lambda t: t.clone().flip(0).as_strided((3, 4), (4, 1)).flip(0),
    ):
        tensor = make(base)
        dist.all_reduce(tensor)
        assert torch.equal(tensor, total)
        tensor = make(base)
        dist.broadcast(tensor, 1)
        assert torch.equal(tensor, base - rank + 1)
        outs = [make(torch.zeros(3, 4)) for _ in range(n)]
        dist.all_gather(outs, make(base))
        assert torch.equal(torch.stack(outs).sum(0), total)
        part = make(torch.zeros(3, 4))
        dist.reduce_scatter_tensor(part, make(base).repeat(n, 1))
        assert torch.equal(part, total)
    lazy = torch.complex(base, base).conj()  # conjugated when it is read; its memory holds something else
    assert lazy.imag.is_neg()
    dist.all_reduce(lazy.imag)
    assert torch.equal(lazy, torch.complex(base, -total))
    dist.broadcast(lazy.imag, 1)
    assert torch.equal(lazy.imag, -total)
    group = dist.distributed_c10d._get_default_group()
    group.broadcast([lazy]).wait()
    assert torch.equal(lazy, torch.complex(base - rank, -total))
    group.allreduce([lazy]).wait()
    assert torch.equal(lazy, torch.complex(base - rank, -total) * n)
    one = torch.tensor(float(rank))  # no dimension
    dist.all_reduce(one)
    assert one.item() == n * (n - 1) / 2
    for shape in ((0,), (0, 3), (3, 0)):
        empty = torch.zeros(shape)
        dist.all_reduce(empty)
        dist.broadcast(empty, 0)
        dist.all_gather([torch.zeros(shape) for _ in range(n)], empty)
        dist.all_to_all([torch.zeros(shape) for _ in range(n)], [empty] * n)


def expanded(rank: int, n: int) -> None:
    """Elements that share their memory: what all of them get is written once."""
    base = torch.arange(3.0)
    for make in (lambda t: t.expand(4, 3), lambda t: t[:, None].expand(3, 4), lambda t: t.expand(2, 1, 3)):
        tensor = make(base + rank)
        dist.all_reduce(tensor)
        assert torch.equal(tensor, make(base * n + n * (n - 1) / 2))
        half = make((base + rank).bfloat16())
        dist.all_reduce(half)
        assert torch.equal(half, make((base * n + n * (n - 1) / 2).bfloat16()))
        tensor = make(base + rank)
        dist.broadcast(tensor, 1)
        assert torch.equal(tensor, make(base + 1))
        outs = [make(torch.zeros(3)) for _ in range(n)]
        dist.all_gather(outs, make(base + rank))
        assert all(torch.equal(out, make(base + r)) for r, out in enumerate(outs))
        into = make(torch.zeros(3))
        receive = dist.irecv(into, 1 - rank)
        dist.send(make(base + rank), 1 - rank)
        receive.wait()
        assert torch.equal(into, make(base + 1 - rank))


def test_expanded_tensors(torch_cards: TorchCards) -> None:
    torch_cards(2, expanded)


def test_any_memory_layout(torch_cards: TorchCards) -> None:
    torch_cards(2, any_layout)


# Uneven splits


def uneven(rank: int, n: int) -> None:
    def part(source: int, target: int) -> torch.Tensor:
        return torch.full(((source + 2 * target) % 4, 2), source * 10.0 + target)

    blocks = [torch.full((r * 2,), float(r)) for r in range(n)]
    outs = [torch.zeros(r * 2) for r in range(n)]
    dist.all_gather(outs, blocks[rank])
    assert all(torch.equal(a, b) for a, b in zip(outs, blocks, strict=True))

    out = torch.zeros(rank * 2)
    dist.reduce_scatter(out, [torch.full((q * 2,), float(q)) for q in range(n)])
    assert torch.equal(out, torch.full((rank * 2,), float(rank * n)))

    sent, taken = [part(rank, q) for q in range(n)], [part(q, rank) for q in range(n)]
    whole = torch.zeros(sum(len(t) for t in taken), 2)
    dist.all_to_all_single(whole, torch.cat(sent), [len(t) for t in taken], [len(t) for t in sent])
    assert torch.equal(whole, torch.cat(taken))

    received = [torch.zeros_like(t) for t in taken]
    dist.all_to_all(received, sent)
    assert all(torch.equal(a, b) for a, b in zip(received, taken, strict=True))

    nothing = torch.zeros(0, 5)
    dist.all_to_all_single(nothing, nothing, [0] * n, [0] * n)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_uneven_splits(torch_cards: TorchCards, n: int) -> None:
    torch_cards(n, uneven)


# Sparse tensors


def sparse(rank: int, n: int, name: str) -> None:
    def one(r: int, dense: tuple[int, ...]) -> torch.Tensor:
        rows = torch.tensor([[i % 5 for i in range(r + 1)], list(range(r + 1))])
        return torch.sparse_coo_tensor(rows, brought(r, (r + 1, *dense), getattr(torch, name)), (5, 9, *dense))

    for dense in ((), (2,), (2, 3)):
        tensor = one(rank, dense)
        dist.all_reduce(tensor)
        assert tensor.is_coalesced()
        assert torch.equal(tensor.to_dense(), sum(one(r, dense).to_dense() for r in range(n)))
        empty = torch.sparse_coo_tensor(torch.zeros(2, 0), torch.zeros(0, *dense), (5, 9, *dense))
        work = dist.all_reduce(empty, async_op=True)
        work.wait()
        assert empty._nnz() == 0
    with pytest.raises(InvalidValue, match=r"max of a tensor with layout torch\.sparse_coo .* can only sum"):
        dist.all_reduce(one(0, ()), Op.MAX)
    with pytest.raises(InvalidValue, match="superpod moves dense CPU tensors; move it with"):
        dist.broadcast(one(0, ()), 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_sparse_all_reduce(torch_cards: TorchCards, dtype: str) -> None:
    torch_cards(3, sparse, dtype)


# Objects


def objects(rank: int, n: int) -> None:
    own = {"rank": rank, "text": "ß" * 100 * rank}
    every: list[Any] = [None] * n
    dist.all_gather_object(every, own)
    assert [one["rank"] for one in every] == list(range(n))
    shared = [own, 1] if rank == 1 else [None, None]
    dist.broadcast_object_list(shared, 1)
    assert shared[0]["rank"] == shared[1] == 1
    gathered: list[Any] = [None] * n
    dist.gather_object(own, gathered if rank == 2 else None, 2)
    assert gathered == (every if rank == 2 else [None] * n)
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, every if rank == 0 else [None] * n, 0)
    assert mine == [own]
    if rank == 0:
        dist.send_object_list([own, "x"], 2)
    elif rank == 2:
        received: list[Any] = [None, None]
        assert dist.recv_object_list(received, 0) == 0
        assert received == [every[0], "x"]


def test_objects(torch_cards: TorchCards) -> None:
    torch_cards(3, objects)


# Precision


def rounding(rank: int, n: int) -> list[list[float]]:
    results = []
    for dtype in (torch.float16, torch.bfloat16):
        tensor = (
            torch.full((3,), 2048.0 if dtype is torch.float16 else 256.0, dtype=dtype)
            if rank == 0
            else torch.ones(3).to(dtype)
        )
        dist.all_reduce(tensor)
        results.append(tensor.tolist())
    return results


def test_half_precision_is_added_up_in_single(torch_cards: TorchCards) -> None:
    """In its own precision each 1 would be lost: 2048 + 1 is 2048 in half, 256 + 1 is 256 in bfloat16."""
    assert torch_cards(5, rounding) == [[[2052.0] * 3, [260.0] * 3]] * 5


def same_bits(rank: int, n: int) -> bytes:
    torch.manual_seed(rank)
    tensor = torch.randn(10_001) * 10 ** torch.randint(-5, 5, (10_001,))
    first, second = tensor.clone(), tensor.clone()
    dist.all_reduce(first)
    dist.all_reduce(second, async_op=True).wait()
    assert torch.equal(first, second)
    return first.numpy().tobytes()


def test_the_same_bits_on_all_ranks_and_in_all_runs(torch_cards: TorchCards) -> None:
    assert len({*torch_cards(5, same_bits), *torch_cards(5, same_bits)}) == 1


def zeros_of_both_signs(rank: int, n: int) -> list[str]:
    results = []
    for op in (Op.MIN, Op.MAX):
        for dtype in (torch.float32, torch.bfloat16):
            zero = torch.tensor([0.0, -0.0, -0.0] if rank else [-0.0, 0.0, -0.0]).to(dtype)
            dist.all_reduce(zero, op)
            results.append(str(zero.tolist()))
    return results


@pytest.mark.parametrize("n", [2, 3])
def test_zero_has_one_sign_on_all_ranks(torch_cards: TorchCards, n: int) -> None:
    """numpy's minimum of -0 and 0 is the second one, and two ranks may meet them in either order."""
    assert torch_cards(n, zeros_of_both_signs) == [["[0.0, 0.0, 0.0]"] * 4] * n
