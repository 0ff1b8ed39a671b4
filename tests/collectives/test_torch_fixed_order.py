"""SUPERPOD_DETERMINISTIC=1 through torch: the bits of a sum from rank 0 to the last, for every way to ask for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch_cards import TorchCards, join

from superpod.collectives import algorithms
from superpod.interconnect.shm_link import possible

_Op: Any = dist.ReduceOp
DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
]
SIZES = [1, 3, 40, 3_001]
LINKS = ["zmq", pytest.param("shm", marks=pytest.mark.skipif(not possible(), reason="no such link here"))]


def brought(rank: int, count: int, dtype: torch.dtype) -> Tensor:
    random = torch.Generator().manual_seed(100 * rank + count)
    values = torch.randn(count, generator=random) * 10.0 ** torch.randint(-2, 2, (count,), generator=random)
    return torch.complex(values, values.flip(0)).to(dtype) if dtype.is_complex else values.to(dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype


def folded(n: int, count: int, dtype: torch.dtype, finish: Callable[[Tensor], Tensor] = Tensor.clone) -> Tensor:
    total = brought(0, count, dtype).to(wide(dtype))
    for rank in range(1, n):
        total = total + brought(rank, count, dtype).to(wide(dtype))
    return finish(total).to(dtype)


def average(total: Tensor, n: int) -> Tensor:
    """torch's functions hand complex numbers on as pairs of real ones."""
    return torch.view_as_complex(torch.view_as_real(total) / n) if total.is_complex() else total / n


def same(result: Tensor, expected: Tensor, what: str) -> None:
    assert result.dtype == expected.dtype
    bits = (result.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))
    assert torch.equal(*bits), f"{what}: {result.tolist()[:4]} instead of {expected.tolist()[:4]}"


def sums(rank: int, n: int, dtype: torch.dtype) -> None:
    for count in SIZES:
        expected, own = folded(n, count, dtype), brought(rank, count, dtype)
        dist.all_reduce(result := own.clone())
        same(result, expected, f"all_reduce of {count} {dtype}")
        dist.all_reduce(result := own.clone(), op=_Op.AVG)
        same(
            result,
            folded(n, count, dtype, lambda total: average(total, n)),
            f"average of {count} {dtype}",
        )
        for root in {0, n - 1}:
            dist.reduce(result := own.clone(), root)
            if rank == root:
                same(result, expected, f"reduce of {count} {dtype} to {root}")
        dist.all_reduce(result := torch.stack([own, own]).t(), async_op=True).wait()
        same(result[:, 1].contiguous(), expected, f"all_reduce of a view of {count} {dtype}")


def scattered(rank: int, n: int, dtype: torch.dtype) -> None:
    """Blocks of one length, and uneven ones of which some are empty."""
    for counts in ([5] * n, [700] * n, list(range(n)), [2_000 * (r % 2) for r in range(n)]):
        expected = folded(n, sum(counts), dtype).split(counts)[rank]
        blocks = list(brought(rank, sum(counts), dtype).split(counts))
        result = torch.empty(counts[rank], dtype=dtype)
        dist.reduce_scatter(result, blocks)
        same(result, expected, f"reduce_scatter of {counts} {dtype}")
        if len(set(counts)) == 1:
            dist.reduce_scatter_tensor(result, torch.cat(blocks))
            same(result, expected, f"reduce_scatter_tensor of {counts} {dtype}")


def together(rank: int, n: int, dtype: torch.dtype) -> None:
    """Small and large tensors in one call: some travel together, with the bits of calls of their own."""
    group: Any = dist.group.WORLD
    counts = [1, 40, 3_001, 7, 40_000, 2]
    tensors = [brought(rank, count, dtype) for count in counts]
    group.allreduce_coalesced(tensors).wait()
    for count, tensor in zip(counts, tensors, strict=True):
        same(tensor, folded(n, count, dtype), f"coalesced all_reduce of {count} {dtype}")
    outputs = [torch.empty(count, dtype=dtype) for count in counts]
    inputs = [brought(rank, count * n, dtype) for count in counts]
    group.reduce_scatter_tensor_coalesced(outputs, inputs).wait()
    for count, tensor in zip(counts, outputs, strict=True):
        expected = folded(n, count * n, dtype)[rank * count : (rank + 1) * count]
        same(tensor, expected, f"coalesced reduce_scatter of {count} {dtype}")


def scaled(rank: int, n: int, dtype: torch.dtype) -> None:
    """Every rank's own factor; and products, in which no two roundings are alike."""
    for count in SIZES:
        total = None
        for r in range(n):
            term = brought(r, count, dtype).to(wide(dtype)) * (0.1 + r)
            total = term if total is None else total + term
        dist.all_reduce(result := brought(rank, count, dtype), op=dist._make_nccl_premul_sum(0.1 + rank))
        same(result, total.to(dtype), f"premul_sum of {count} {dtype}")


def every_way(rank: int, n: int, folder: str, link: str, override: dict[str, str]) -> dict[str, str]:
    os.environ.update({"SUPERPOD_DETERMINISTIC": "1", "SUPERPOD_LINK": link, "SUPERPOD_SEGMENT": "4K", **override})
    join(rank, n, folder)
    for dtype in DTYPES:
        for check in (sums, scattered, together, *([] if dtype.is_complex else [scaled])):
            check(rank, n, dtype)
    group: Any = dist.group.WORLD
    product = brought(rank, 40, torch.complex64)
    group.allreduce([product], _Op.PRODUCT).wait()
    single = [brought(rank, 40, torch.complex64)[i : i + 1] for i in range(40)]
    for element in single:
        group.allreduce([element], _Op.PRODUCT).wait()
    same(torch.cat(single), product, "a product of complex numbers, one by one")
    dist.destroy_process_group()
    return override


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_every_way_to_reduce(torch_cards: TorchCards, n: int, link: str) -> None:
    torch_cards(n, every_way, link, {}, backend=None)


@pytest.mark.slow
@pytest.mark.parametrize("link", LINKS)
def test_by_every_algorithm(torch_cards: TorchCards, link: str) -> None:
    for all_reduce in algorithms.in_fixed_order("all_reduce"):
        for reduce_scatter in algorithms.in_fixed_order("reduce_scatter"):
            override = {"SUPERPOD_ALL_REDUCE": all_reduce, "SUPERPOD_REDUCE_SCATTER": reduce_scatter}
            torch_cards(4, every_way, link, override, backend=None)
