"""What else torch.distributed offers, on superpod: functional collectives, meshes, splits, reductions."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch_cards import TorchCards
from torch_groups import group, summed

from superpod.collectives.torch_backend_options import reduction
from superpod.interconnect.errors import (
    InvalidValue,
    LinkClosed,
)

Op = dist.ReduceOp


# Functional collectives


def functional(rank: int, n: int) -> None:
    from torch.distributed import _functional_collectives as fc

    world, own = dist.group.WORLD, torch.arange(6.0).reshape(2, 3) + rank
    total = sum(torch.arange(6.0).reshape(2, 3) + r for r in range(n))
    every = torch.cat([torch.arange(6.0).reshape(2, 3) + r for r in range(n)])
    assert torch.equal(fc.all_reduce(own, "sum", world) + 0, total)
    assert torch.equal(fc.all_reduce(own, "avg", world) + 0, total / n)
    assert torch.equal(fc.all_gather_tensor(own, 0, world) + 0, every)
    assert torch.equal(fc.all_gather_tensor(own, 1, world) + 0, torch.cat(every.split(2), 1))
    assert torch.equal(fc.reduce_scatter_tensor(every, "sum", 0, world) + 0, n * every.split(2)[rank])
    assert torch.equal(fc.broadcast(own, 1, world) + 0, own - rank + 1)
    taken = fc.all_to_all_single(every, None, None, world)
    assert torch.equal(taken + 0, torch.cat([every.split(2)[rank]] * n))
    passed_on = fc.permute_tensor(own.view(-1), [(r + 1) % n for r in range(n)], world)
    assert torch.equal(passed_on + 0, own.view(-1) - rank + (rank - 1) % n)
    sums = fc.all_reduce_coalesced([own, own[0]], "sum", world)
    assert torch.equal(sums[0] + 0, total)
    assert torch.equal(sums[1] + 0, total[0])
    gathered = fc.all_gather_into_tensor_coalesced([own, own * 2], world)
    assert torch.equal(gathered[1] + 0, every * 2)
    scattered = fc.reduce_scatter_tensor_coalesced([every, every * 2], "sum", [0, 0], world)
    assert torch.equal(scattered[1] + 0, 2 * n * every.split(2)[rank])
    leaf = own.clone().requires_grad_()
    fc.all_gather_tensor_autograd(leaf, 0, world).sum().backward()
    assert torch.equal(leaf.grad, torch.full((2, 3), float(n)))


def test_functional_collectives(torch_cards: TorchCards) -> None:
    torch_cards(3, functional)


# Groups by every route


def meshes(rank: int, n: int) -> list[int]:
    sizes = []
    for shape, names in (((8,), ("x",)), ((2, 4), ("y", "x")), ((2, 2, 2), ("z", "y", "x"))):
        mesh = dist.init_device_mesh("cpu", shape, mesh_dim_names=names)
        for axis in range(mesh.ndim):
            own = torch.tensor([2.0**rank])
            dist.all_reduce(own, group=mesh.get_group(axis))
            members = mesh.mesh.moveaxis(axis, -1).reshape(-1, shape[axis])
            mine = next(row for row in members.tolist() if rank in row)
            assert own.item() == sum(2.0**r for r in mine)
            sizes.append(len(mine))
    if rank % 4 == 0:
        assert dist.get_process_group_ranks(mesh["x"].get_group()) == [rank, rank + 1]
    flat = mesh["y", "x"]._flatten("yx")
    return [*sizes, summed(flat.get_group())]


def test_device_meshes_of_one_to_three_dimensions(torch_cards: TorchCards) -> None:
    assert torch_cards(8, meshes) == [[8, 2, 4, 2, 2, 2, 4]] * 8


def subgroups(rank: int, n: int) -> list[int]:
    own, halves = dist.new_subgroups(2)
    assert len(halves) == 2
    other, _ = dist.new_subgroups_by_enumeration([[0, 3], [1, 2]])
    assert dist.get_process_group_ranks(other) == ([0, 3] if rank in (0, 3) else [1, 2])
    objects: list[Any] = [None, None]
    dist.all_gather_object(objects, rank, group=other)
    return [summed(own), summed(other), summed(), *objects]


def test_subgroups(torch_cards: TorchCards) -> None:
    assert torch_cards(4, subgroups) == [[2, 2, 4, *((0, 3) if r in (0, 3) else (1, 2))] for r in range(4)]


def splits(rank: int, n: int) -> list[int]:
    whole = group()
    ranks = [2, 0] if rank in (0, 2) else [1, 3]
    part = whole.split_group(ranks, timeout=timedelta(seconds=20), group_desc="half")
    assert (part.rank(), part.size(), part.group_desc) == (sorted(ranks).index(rank), 2, "half")
    part.allreduce([total := torch.tensor([rank])]).wait()
    single = part.split_group([0])
    assert (single is None) == (part.rank() == 1)
    again = part.split_group([0, 1])  # the same ranks, another group
    again.allreduce([once := torch.ones(1)]).wait()
    assert (once.item(), again.options._timeout) == (2, timedelta(seconds=20))
    part.shutdown()
    with pytest.raises(LinkClosed, match="has closed group"):  # it has ended with the one it was split from
        again.barrier().wait()
    for wrong in ([], [0, 0], [0, 4], [-1]):
        with pytest.raises(InvalidValue, match=r"new_ranks=.* must be distinct ranks of the group, 0 to 3"):
            whole.split_group(wrong)
    with pytest.raises(InvalidValue, match="was destroyed; split one that was not"):
        part.split_group([0, 1])
    return [int(total), summed()]


def test_a_group_can_be_split(torch_cards: TorchCards) -> None:
    assert torch_cards(4, splits) == [[2, 4], [4, 4], [2, 4], [4, 4]]


def split_by_torch(rank: int, n: int) -> int:
    """torch's function asks for an accelerator before it asks the group."""
    with pytest.raises(RuntimeError, match="No device associated with the default pg"):
        dist.split_group(split_ranks=[[0, 1], [2]])
    group().bound_device_id = torch.device("cpu", 0)
    torch.accelerator.is_available = lambda: True
    torch.accelerator.current_accelerator = lambda: torch.device("cpu")
    part = dist.split_group(split_ranks=[[0, 1], [2]], timeout=timedelta(seconds=20))
    size = summed(part)
    dist.destroy_process_group(part)
    return size


def test_torchs_split_group_where_it_gets_that_far(torch_cards: TorchCards) -> None:
    assert torch_cards(3, split_by_torch) == [2, 2, 1]


def numbers(rank: int, n: int) -> list[int]:
    """The group's sequence number after each call."""
    tensor, taken = torch.ones(n), torch.empty(n)
    pair = [tensor.clone(), tensor.clone()]
    calls: list[Any] = [
        lambda: dist.all_reduce(tensor),
        lambda: dist.all_reduce(tensor, async_op=True).wait(),
        lambda: dist.barrier(),
        lambda: dist.all_gather([torch.empty(n) for _ in range(n)], tensor),
        lambda: dist.all_to_all_single(taken, tensor),
        lambda: dist.send(tensor, 1) if rank == 0 else dist.recv(taken, 0),
        lambda: dist.all_reduce_coalesced(pair),
    ]
    found = [group()._get_sequence_number_for_group()]
    for call in calls:
        call()
        found.append(group()._get_sequence_number_for_group())
    return found


@pytest.mark.parametrize("backend", ["superpod", "gloo"])
def test_calls_are_numbered_as_gloo_does(torch_cards: TorchCards, backend: str) -> None:
    assert torch_cards(2, numbers, backend=backend) == [list(range(8))] * 2


# Reductions


def premultiplied(rank: int, n: int) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2):
        for factor in (rank + 1.0, torch.tensor([rank + 1.0])):
            op = dist._make_nccl_premul_sum(factor)
            total = torch.tensor([n * (n + 1) / 2.0] * 4).to(dtype)
            tensor = torch.ones(4).to(dtype)
            dist.all_reduce(tensor, op)
            assert torch.equal(tensor.float(), total.float())
            tensor = torch.ones(4).to(dtype)
            dist.reduce(tensor, 0, op)
            assert torch.equal(tensor.float(), total.float() if rank == 0 else torch.ones(4))
            out = torch.zeros(2).to(dtype)
            dist.reduce_scatter_tensor(out, torch.ones(2 * n).to(dtype), op)
            assert torch.equal(out.float(), total.float()[:2])
            group().allreduce_coalesced([tensor[:1], tensor[1:]], op).wait()
    whole = torch.ones(2, dtype=torch.int32)
    with pytest.raises(
        InvalidValue, match=r"op='premul_sum' with factor=2\.0 makes no sense for integers int32; it works"
    ):
        dist.all_reduce(whole, dist._make_nccl_premul_sum(2.0))
    with pytest.raises(
        InvalidValue, match=r"product of all is not supported; superpod reduces with sum, avg, .*premul_sum"
    ):
        reduction("product of all", torch.float32)
    assert summed() == n


def test_premul_sum(torch_cards: TorchCards) -> None:
    torch_cards(3, premultiplied)


def test_reductions_are_told_apart_by_hash() -> None:
    kinds = list(Op.RedOpType.__members__.values())
    ops = [Op(kind) for kind in kinds if kind != Op.RedOpType.PREMUL_SUM] + [dist._make_nccl_premul_sum(2.0)]
    assert len({hash(op) for op in ops}) == len(kinds) == 9
    assert [hash(Op(op.op)) for op in ops[:-1]] == [hash(op) for op in ops[:-1]]


def test_the_table_of_the_documentation_is_true() -> None:
    """docs/torch.md: dtypes × reductions; "no" means that the combination is refused."""
    lines = (Path(__file__).parents[2] / "docs" / "torch.md").read_text().splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("| dtype |")) :]
    head, _, *rows = ([cell.strip() for cell in row.split("|")[1:-1]] for row in takewhile(str.strip, table))
    seen = 0
    for row in rows:
        for name in row[0].split(", "):
            for ops, cell in zip(head[2:6], row[2:6], strict=True):
                for op_name in ops.split(", "):
                    op = dist._make_nccl_premul_sum(2.0) if op_name == "PREMUL_SUM" else getattr(Op, op_name)
                    with pytest.raises(InvalidValue, match="makes no sense") if cell == "no" else nullcontext():
                        reduction(Op(op) if op_name != "PREMUL_SUM" else op, getattr(torch, name))
                    seen += 1
    assert seen == 17 * 9


UNIT = {  # half an ulp, relative; the smallest step near 0
    "float16": (2.0**-11, 2.0**-24),
    "bfloat16": (2.0**-8, 2.0**-133),
    "float8_e4m3fn": (2.0**-4, 2.0**-9),
    "float8_e5m2": (2.0**-3, 2.0**-16),
}


def rounding(rank: int, n: int, name: str) -> list[float]:
    """The largest error of a sum, in units of what n − 1 additions in float32 and one rounding may make."""
    dtype, (unit, tiny) = getattr(torch, name), UNIT[name]
    brought = []
    for r in range(n):
        torch.manual_seed(r)
        brought.append((torch.randn(5_000) * 2.0 ** torch.randint(-6, 4, (5_000,))).to(dtype))
    exact, magnitude = (sum(f(t.double()) for t in brought) for f in (lambda t: t, torch.abs))
    # n − 1 additions err by 2^-24 of a partial sum each, which is at most the sum of magnitudes, to first order
    added = (n - 1) * 2.0**-24 * (1 + 1e-6) * magnitude
    bound = added + unit * (exact.abs() + added) + tiny / 2
    worst = []
    for op, scale in ((Op.SUM, 1), (Op.AVG, n)):
        tensor = brought[rank].clone()
        dist.all_reduce(tensor, op)
        error = (tensor.double() - exact / scale).abs()
        worst.append(float((error / (bound / scale + (tiny / 2 if scale > 1 else 0) + 2.0**-24 * exact.abs())).max()))
    return worst


@pytest.mark.parametrize("dtype", UNIT)
def test_small_floats_are_rounded_once(torch_cards: TorchCards, dtype: str) -> None:
    results = torch_cards(5, rounding, dtype)
    assert results == [results[0]] * 5
    assert 0.5 < max(results[0]) <= 1  # the bound holds, and is not a loose one


# The group's own methods, as ProcessGroup has them


def short_signatures(rank: int, n: int) -> None:
    g, limit = group(), timedelta(seconds=20)
    ones = torch.ones(3)
    g.allreduce(ones).wait()
    g.allreduce(ones, Op.MAX, limit).wait()
    g.allreduce([ones], op=Op.SUM, timeout=limit).wait()
    assert torch.equal(ones, torch.full((3,), float(n * n)))
    own = torch.full((3,), float(rank))
    g.broadcast(copy := own.clone(), 1, limit).wait()
    g.broadcast(copy, root=1).wait()
    assert torch.equal(copy, torch.ones(3))
    g.reduce(total := own.clone(), 2, Op.SUM, limit).wait()
    assert total[0] == (sum(range(n)) if rank == 2 else rank)
    every = [torch.zeros(3) for _ in range(n)]
    g.allgather(every, own, limit).wait()
    assert [int(t[0]) for t in every] == list(range(n))
    gathered = [torch.zeros(3) for _ in range(n)]
    g.gather(gathered if rank == 1 else [], own, 1, limit).wait()
    assert rank != 1 or torch.equal(torch.stack(gathered), torch.stack(every))
    g.scatter(part := torch.zeros(3), every if rank == 0 else [], 0, limit).wait()
    assert torch.equal(part, own)
    g.reduce_scatter(part, every, Op.SUM, limit).wait()
    assert torch.equal(part, n * own)
    g.alltoall(gathered, every, timeout=limit).wait()
    assert torch.equal(torch.cat(gathered), own.repeat(n))
    g.all_to_all_single(out := torch.zeros(n), torch.arange(float(n)), [], [], limit).wait()
    assert torch.equal(out, torch.full((n,), float(rank)))
    g.barrier(limit).wait()
    g.barrier(timeout=limit).wait()


def test_short_signatures(torch_cards: TorchCards) -> None:
    torch_cards(3, short_signatures)


def alone(rank: int, n: int) -> None:
    t = torch.arange(4.0)
    for op in (Op.SUM, Op.AVG, Op.PRODUCT, Op.MIN, Op.MAX, dist._make_nccl_premul_sum(1.0)):
        dist.all_reduce(t, op)
    dist.broadcast(t, 0)
    dist.reduce(t, 0)
    outs = [torch.zeros(4)]
    dist.all_gather(outs, t)
    dist.gather(t, outs, 0)
    dist.scatter(t, outs, 0)
    dist.reduce_scatter(t, outs)
    dist.all_to_all(outs, [t])
    dist.all_gather_into_tensor(outs[0], t)
    dist.reduce_scatter_tensor(t, outs[0])
    dist.all_to_all_single(outs[0], t, [4], [4])
    dist.barrier()
    group().monitored_barrier()
    assert torch.equal(t, torch.arange(4.0))
    assert torch.equal(outs[0], t)


def test_a_world_of_one(torch_cards: TorchCards) -> None:
    torch_cards(1, alone)


def large(rank: int, n: int) -> None:
    count = (1 << 31) + 4097  # more than 2 GiB, and an index beyond 32 bits
    tensor = torch.full((count,), rank + 1, dtype=torch.int8)
    tensor[-1] = 10 * (rank + 1)
    dist.all_reduce(tensor)
    assert (int(tensor[0]), int(tensor[1 << 30]), int(tensor[-2]), int(tensor[-1])) == (3, 3, 3, 30)
    assert int(tensor[: 1 << 20].sum(dtype=torch.int64)) == 3 << 20
    tensor[-1] = rank
    dist.broadcast(tensor, 1)
    assert int(tensor[-1]) == 1
    if rank == 0:
        dist.send(tensor, 1)
    else:
        tensor[-1] = 7
        dist.recv(tensor, 0)
        assert int(tensor[-1]) == 1


@pytest.mark.slow
def test_a_tensor_above_two_gib(torch_cards: TorchCards) -> None:
    torch_cards(2, large, timeout=110)
