"""Many tensors in one call on the superpod backend: the coalescing manager, joined calls, blocks of calls."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch_cards import TorchCards
from torch_groups import group

from superpod.interconnect.errors import CollectiveMismatch, DeadlineExceeded, InvalidValue

Op = dist.ReduceOp
CPU = torch.device("cpu")
coalescing = dist.distributed_c10d._coalescing_manager
SIZES = (3, 0, 1000, 1, 20_000, 7, 60_000, 60_000, 2, 2)  # elements; 20,000 float32 are more than a small tensor


def calls() -> Counter[str]:
    """How many collectives this card has carried out, by name."""
    counted: Counter[str] = Counter()
    for row in group()._engine.statistics.rows():
        counted[row["operation"]] += row["calls"]
    return counted


def random(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(rank * 1000 + count)
    return (torch.randn(count) * 10 ** torch.randint(-3, 4, (count,))).to(dtype)


# Joined


def joined_and_apart(rank: int, n: int, name: str, op_name: str) -> int:
    """The same bits, whether tensors travel together or each alone; returns how many calls joining has saved."""
    dtype, op = getattr(torch, name), getattr(Op, op_name)
    apart = [random(rank, size, dtype) for size in SIZES]
    together = [tensor.clone() for tensor in apart]
    before = calls()["all_reduce"]
    for tensor in apart:
        dist.all_reduce(tensor, op)
    between = calls()["all_reduce"]
    with coalescing():
        for tensor in together:
            dist.all_reduce(tensor, op)
    after = calls()["all_reduce"]
    assert between - before == len(SIZES)
    for a, b in zip(apart, together, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    return len(SIZES) - (after - between)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("dtype", "op"), [("float32", "SUM"), ("bfloat16", "AVG"), ("int32", "SUM"), ("float64", "MAX")]
)
def test_joined_calls_give_the_same_bits(torch_cards: TorchCards, n: int, dtype: str, op: str) -> None:
    saved = torch_cards(n, joined_and_apart, dtype, op)
    assert saved == [saved[0]] * n
    order_matters = dtype != "int32"  # then it depends on the algorithms what can be joined
    assert saved[0] >= (0 if n == 1 or order_matters else 4)


def block_collectives(rank: int, n: int) -> None:
    shapes = ((2, 3), (5,), (0,), (4, 1))
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.uint8)
    pairs = [(s, d) for s in shapes for d in dtypes]
    inputs = [torch.full(shape, rank + i).to(dtype) for i, (shape, dtype) in enumerate(pairs)]
    outputs = [torch.zeros(n, *shape, dtype=dtype) for shape, dtype in pairs]
    before = calls()["all_gather"]
    with coalescing(async_ops=True) as manager:
        for output, tensor in zip(outputs, inputs, strict=True):
            dist.all_gather_into_tensor(output.view(-1), tensor.view(-1))
    manager.wait()
    assert calls()["all_gather"] - before == (1 if n > 1 else len(pairs))
    for i, output in enumerate(outputs):
        for r in range(n):
            assert torch.equal(output[r], torch.full(output.shape[1:], r + i).to(output.dtype))

    wide = [torch.stack([random(rank, size, torch.float32) + q for q in range(n)]) for size in (5, 1, 300)]
    apart, together = ([torch.zeros(w.shape[1]) for w in wide] for _ in range(2))
    for output, tensor in zip(apart, wide, strict=True):
        dist.reduce_scatter_tensor(output, tensor.view(-1))
    with coalescing():
        for output, tensor in zip(together, wide, strict=True):
            dist.reduce_scatter_tensor(output, tensor.view(-1))
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_joined_gathers_and_scatters(torch_cards: TorchCards, n: int) -> None:
    torch_cards(n, block_collectives)


def refused_together(rank: int, n: int) -> None:
    t = torch.ones(2)
    calls: list[tuple[Any, str]] = [
        (lambda: group().all_gather_single_coalesced([t], [t, t]), "1 outputs and 2 inputs must be as many"),
        (
            lambda: group().all_gather_single_coalesced([t, t], [t, t]),
            "all_gather output of 2 elements must be 2 times the input's 2",
        ),
        (
            lambda: group().reduce_scatter_single_coalesced([t, t], [t, t]),
            "reduce_scatter input of 2 elements must be 2 times the output's 2",
        ),
        (lambda: group().allreduce_coalesced([t, t.int()]), "in one call must have one dtype"),
        (lambda: group()._end_coalescing(CPU), "is in no coalescing block; _start_coalescing begins one"),
    ]
    for call, message in calls:
        with pytest.raises(InvalidValue, match=message):
            call()
    group()._start_coalescing(CPU)
    with pytest.raises(InvalidValue, match="is in a coalescing block already; end it"):
        group()._start_coalescing(CPU)
    group()._end_coalescing(CPU).wait()
    group().allreduce_coalesced([]).wait()
    with pytest.raises(CollectiveMismatch, match=r"float32 in 2 tensors of 2, 1, sum\).* in 2 tensors of 1, 2, sum\)"):
        group().allreduce_coalesced([t[: 2 - rank], t[: 1 + rank]]).wait()


def test_what_cannot_be_joined_is_refused(torch_cards: TorchCards) -> None:
    torch_cards(2, refused_together)


# Blocks


def blocks(rank: int, n: int) -> None:
    left, right = (rank - 1) % n, (rank + 1) % n
    got, copy, total = torch.zeros(5), torch.full((3,), float(rank)), torch.ones(4)
    with coalescing(device=CPU):
        dist.recv(got, left)  # alone it would wait for a send that is made after it
        dist.send(torch.full((5,), float(rank)), right)
        dist.broadcast(copy, 1)
        dist.reduce(total, 0)
    assert torch.equal(got, torch.full((5,), float(left)))
    assert torch.equal(copy, torch.ones(3))
    assert torch.equal(total, torch.full((4,), float(n if rank == 0 else 1)))

    with coalescing(device=CPU, async_ops=True) as manager:
        receive = dist.irecv(got, right)
        assert receive.wait()  # not yet: the block is open
        dist.isend(torch.full((5,), rank + 10.0), left)
        dist.all_reduce(total)
    manager.wait()
    receive.wait()
    assert (receive.is_completed(), receive.is_success(), receive.source_rank()) == (True, True, right)
    assert receive.get_future().wait()[0] is got
    assert torch.equal(got, torch.full((5,), right + 10.0))
    assert total[0] == 2 * n - 1


def test_calls_of_a_block_are_all_under_way(torch_cards: TorchCards) -> None:
    torch_cards(3, blocks)


def failing_block(rank: int, n: int) -> None:
    group()._start_coalescing(CPU)
    first = dist.all_reduce(torch.ones(1), async_op=True)
    dist.all_reduce(torch.ones(1 + rank), async_op=True)
    work = group()._end_coalescing(CPU)
    future = work.get_future()
    with pytest.raises(CollectiveMismatch, match=r"all_reduce\(1 × float32, sum\)"):
        work.wait()
    with pytest.raises(RuntimeError, match=r"all_reduce\(2 × float32, sum\)"):
        future.wait()
    assert first.wait()
    assert isinstance(work.exception(), CollectiveMismatch)


def test_an_error_in_a_block_reaches_its_work(torch_cards: TorchCards) -> None:
    torch_cards(2, failing_block)


def slow_block(rank: int, n: int) -> None:
    store = dist.distributed_c10d._get_default_store()
    if rank == 0:
        group()._start_coalescing(CPU)
        dist.barrier()
        dist.barrier()
        work = group()._end_coalescing(CPU)
        with pytest.raises(DeadlineExceeded, match=r"barrier has not finished within 0\.\d+ s; it goes on"):
            work.wait(timedelta(seconds=0.2))
        assert not work.is_completed()
        store.set("come", "")
        assert work.wait(timedelta(seconds=20))
        assert work.is_completed()
    else:
        store.wait(["come"], timedelta(seconds=20))
        dist.barrier()
        dist.barrier()


def test_a_block_may_be_waited_for_a_while(torch_cards: TorchCards) -> None:
    torch_cards(2, slow_block)


def other_place(rank: int, n: int) -> None:
    """Two coalesced calls that differ are told apart, as single ones are."""
    with pytest.raises(CollectiveMismatch, match=r"all_gather\(1 × float32; 2 × int32 a rank\)"):
        group().all_gather_single_coalesced(
            [torch.zeros(2 * (1 + rank)), torch.zeros(4, dtype=torch.int32)],
            [torch.zeros(1 + rank), torch.zeros(2, dtype=torch.int32)],
        ).wait()


def test_coalesced_calls_that_differ(torch_cards: TorchCards) -> None:
    torch_cards(2, other_place)
