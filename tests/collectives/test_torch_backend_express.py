"""torch's calls on their short ways: what the first call does, the next ones do, however their tensors lie."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch_cards import TorchCards

from superpod.collectives import flat
from superpod.collectives.express import Express
from superpod.interconnect import board
from superpod.interconnect.errors import InvalidValue, PeerLost, RemoteError

pytestmark = pytest.mark.skipif(not board.possible(), reason="boards need x86-64, futex and memfd_create")

CODES = ["compiled", "plain", "mixed"]
COUNTS = (0, 1, 7, 5000, 150_001, 300_000)  # elements of a block: by one meeting, by several, read where they lie


def set_code(rank: int, code: str) -> None:
    """Without compiled code on all cards, or on every other one: in this process, which ends with the job."""
    if code == "plain" or (code == "mixed" and rank % 2):
        board.Seat = None  # type: ignore[assignment, misc]


def on(torch_cards: TorchCards, n: int, card: Any, code: str, *args: Any) -> list[Any]:
    if code != "plain" and board.Seat is None:
        pytest.skip("superpod was installed without a C compiler")
    return torch_cards(n, card, code, *args)


def block(source: int, target: int, count: int, dtype: torch.dtype, turn: int) -> torch.Tensor:
    """What a rank has for another: small whole numbers, whose sums every dtype here holds."""
    return ((torch.arange(count) * (source + 2) + 3 * target + turn) % 11).to(dtype)


def ways(group: Any) -> set[str]:
    """The collectives that have a short way in compiled code."""
    return {key[0] for key, way in group._engine.expresses.items() if not isinstance(way, Express)}


def copies(rank: int, n: int, code: str, name: str) -> set[str]:
    set_code(rank, code)
    dtype = getattr(torch, name)
    for count in COUNTS:
        for turn in range(3):
            root = (count + 1) % n
            given = [block(rank, target, count, dtype, turn) for target in range(n)]
            got = [block(source, rank, count, dtype, turn) for source in range(n)]
            same = [block(source, 0, count, dtype, turn) for source in range(n)]
            own = given[0].clone().requires_grad_(dtype.is_floating_point)

            tensor = given[0].clone()
            dist.broadcast(tensor, root)
            assert torch.equal(tensor, same[root])
            apart = [torch.zeros(count, dtype=dtype) for _ in range(n)]
            dist.all_gather(apart, own)
            assert all(map(torch.equal, apart, same))
            whole = torch.zeros(n * count, dtype=dtype)
            dist.all_gather_single(whole, own)
            assert torch.equal(whole, torch.cat(same))
            at_home = torch.zeros(n * count, dtype=dtype)  # its own block is in place already
            at_home[rank * count : (rank + 1) * count] = given[0]
            dist.all_gather_single(at_home, at_home[rank * count : (rank + 1) * count])
            assert torch.equal(at_home, torch.cat(same))
            crossed = torch.cat([given[0], torch.zeros(n * count, dtype=dtype)])  # where others' blocks go
            dist.all_gather_single(crossed[: n * count], crossed[count // 2 : count // 2 + count].clone())
            dist.all_to_all_single(whole, torch.cat(given))
            assert torch.equal(whole, torch.cat(got))
            apart = [torch.zeros(count, dtype=dtype) for _ in range(n)]
            dist.gather(own, apart if rank == root else None, root)
            assert rank != root or all(map(torch.equal, apart, same))
            dist.scatter(tensor, given if rank == root else None, root)
            assert torch.equal(tensor, block(root, rank, count, dtype, turn))
            lists = [part.clone() for part in given]
            dist.scatter(lists[rank] if rank == root else tensor, lists if rank == root else None, root)
            assert torch.equal(lists[rank] if rank == root else tensor, block(root, rank, count, dtype, turn))
            dist.barrier()
    return ways(dist.group.WORLD)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_copies_again_and_again(torch_cards: TorchCards, n: int, code: str, dtype: str) -> None:
    found = on(torch_cards, n, copies, code, dtype)
    every = {"broadcast", "all_gather", "all_to_all", "gather", "scatter", "barrier"}
    for rank, kept in enumerate(found):
        assert kept == (every if code == "compiled" or (code == "mixed" and rank % 2 == 0) else set())


def sums(rank: int, n: int, code: str, name: str) -> set[str]:
    set_code(rank, code)
    dtype = getattr(torch, name)
    for count in COUNTS:
        for turn in range(3):
            root = (count + 1) % n
            given = [block(rank, target, count, dtype, turn) for target in range(n)]
            total = [sum(block(source, target, count, dtype, turn) for source in range(n)) for target in range(n)]

            tensor = given[0].clone()
            dist.all_reduce(tensor)
            assert torch.equal(tensor, total[0])
            tensor = given[0].clone()
            dist.reduce(tensor, root)
            assert torch.equal(tensor, total[0] if rank == root else given[0])
            whole = torch.cat(given)
            dist.reduce_scatter_single(tensor, whole)
            assert torch.equal(tensor, total[rank])
            assert torch.equal(whole, torch.cat(given))
            tensor.zero_()
            dist.reduce_scatter(tensor, given)
            assert torch.equal(tensor, total[rank])
            dist.reduce_scatter_single(whole[rank * count : (rank + 1) * count], whole)  # into its own input
            assert torch.equal(whole[rank * count : (rank + 1) * count], total[rank])
    return ways(dist.group.WORLD)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bfloat16"])
def test_sums_again_and_again(torch_cards: TorchCards, n: int, code: str, dtype: str) -> None:
    found = on(torch_cards, n, sums, code, dtype)
    every = {"all_reduce", "reduce", "reduce_scatter"} if dtype != "bfloat16" else set()
    for rank, kept in enumerate(found):
        assert kept == (every if code == "compiled" or (code == "mixed" and rank % 2 == 0) else set())


def otherwise(rank: int, n: int) -> None:
    """Calls of a length that has a short way, which cannot go it."""
    group = dist.group.WORLD
    count, dtype = 6, torch.float32
    for _ in range(2):
        dist.all_reduce(torch.ones(count))
        dist.all_gather([torch.zeros(count) for _ in range(n)], torch.ones(count))
        dist.scatter(torch.zeros(count), [torch.ones(count)] * n if rank == 0 else None, 0)
    assert ways(group) == {"all_reduce", "all_gather", "scatter"}
    begun = group._get_sequence_number_for_group()
    strided = torch.ones(count, 2).T[0]
    dist.all_reduce(strided)
    assert strided.tolist() == [n] * count
    into = torch.zeros(n, count, 2)
    dist.all_gather([part[:, 0] for part in into], torch.full((count,), float(rank)))
    assert into[:, :, 0].tolist() == [[float(r)] * count for r in range(n)]
    assert not into[:, :, 1].any()
    works = [dist.all_reduce(torch.ones(count), async_op=True) for _ in range(2)]
    dist.all_reduce(last := torch.ones(count))
    assert all(work.wait() for work in works)
    assert last.tolist() == [n] * count
    dist.broadcast(torch.zeros(count, dtype=dtype), 0)
    assert group._get_sequence_number_for_group() == begun + 6
    for call in (
        lambda: dist.all_gather([torch.zeros(count)] * (n + 1), torch.ones(count)),
        lambda: group.allgather([[torch.zeros(count, dtype=torch.int32)] * n], [torch.ones(count)], _sync()),
        lambda: dist.all_gather_single(torch.zeros(count * n + 1), torch.ones(count)),
    ):
        with pytest.raises((InvalidValue, ValueError, RuntimeError)):
            call()
    dist.barrier()


def _sync() -> Any:
    opts = dist.distributed_c10d.AllgatherOptions()
    opts.asyncOp = False
    return opts


def test_what_cannot_go_a_short_way_goes_the_long_one(torch_cards: TorchCards) -> None:
    if board.Seat is None:
        pytest.skip("superpod was installed without a C compiler")
    torch_cards(2, otherwise)


def not_waited_for(rank: int, n: int, code: str) -> set[str]:
    """Several calls under way at once, again and again, with synchronous ones between them."""
    set_code(rank, code)
    group, count = dist.group.WORLD, 5000
    for turn in range(4):
        given = [block(rank, target, count, torch.float32, turn) for target in range(n)]
        total = [sum(block(source, target, count, torch.float32, turn) for source in range(n)) for target in range(n)]
        same = [block(source, 0, count, torch.float32, turn) for source in range(n)]
        summed, home, part = given[0].clone(), torch.zeros(n * count), torch.zeros(count)
        swapped, sent = torch.zeros(n * count), given[0].clone()
        works = [
            dist.all_reduce(summed, async_op=True),
            dist.all_gather_single(home, given[0], async_op=True),
            dist.reduce_scatter_single(part, torch.cat(given), async_op=True),
            dist.all_to_all_single(swapped, torch.cat(given), async_op=True),
            dist.broadcast(sent, turn % n, async_op=True),
            dist.barrier(async_op=True),
        ]
        futures = [work.get_future() for work in works[::2] if work is not None]
        dist.all_reduce(after := given[0].clone())
        assert all(work.wait() for work in works if work is not None)
        for future in futures:
            future.wait()
        assert torch.equal(summed, total[0])
        assert torch.equal(after, total[0])
        assert torch.equal(home, torch.cat(same))
        assert torch.equal(part, total[rank])
        assert torch.equal(swapped, torch.cat([block(r, rank, count, torch.float32, turn) for r in range(n)]))
        assert torch.equal(sent, same[turn % n])
    records = group._engine._recorder.records()
    assert [r.number for r in records] == list(range(28))
    assert all(r.state == "done" and "not_waited_for() at" in r.place for r in records)
    return ways(group)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [2, 5])
def test_calls_that_are_not_waited_for(torch_cards: TorchCards, n: int, code: str) -> None:
    found = on(torch_cards, n, not_waited_for, code)
    for rank, kept in enumerate(found):
        assert ("all_reduce" in kept) == (code == "compiled" or (code == "mixed" and rank % 2 == 0))


def left_alone(rank: int, n: int) -> list[str]:
    for _ in range(3):
        dist.all_reduce(torch.ones(4), async_op=True).wait()
    if rank == 1:
        return []
    work = dist.all_reduce(torch.ones(4), async_op=True)
    with pytest.raises((PeerLost, RemoteError), match="rank 1"):
        work.wait()
    with pytest.raises((PeerLost, RemoteError), match="rank 1"):
        dist.all_reduce(torch.ones(4), async_op=True).wait()
    return [r.state for r in dist.group.WORLD._engine._recorder.records()]


def test_a_call_that_is_not_waited_for_fails_as_others_do(torch_cards: TorchCards) -> None:
    assert torch_cards(2, left_alone)[0] == ["done"] * 3 + ["failed"]


def overlapping(rank: int, n: int, code: str) -> None:
    """Each call three times: with arrays apart, so that there is a short way, and with those that overlap."""
    set_code(rank, code)
    count = 600_000
    for turn in range(3):
        whole = torch.cat([torch.full((count,), 100.0 * rank + target) for target in range(n)])
        dist.all_to_all_single(whole if turn else torch.zeros(n * count), whole)
        if turn:
            assert torch.equal(whole, torch.cat([torch.full((count,), 100.0 * r + rank) for r in range(n)]))
        for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
            whole = torch.cat([torch.full((count,), 100.0 * rank + target) for target in range(n)])
            other = (rank + 1) % n
            home = whole[other * count : (other + 1) * count] if turn else torch.zeros(count)
            dist.reduce_scatter_single(home, whole, op)
            every = torch.tensor([100.0 * r + rank for r in range(n)])
            assert (home == (every.sum() if op == dist.ReduceOp.SUM else every.max())).all()
        same = torch.zeros(count)
        dist.all_gather(
            [same] * n if turn else [torch.zeros(count) for _ in range(n)], torch.full((count,), float(rank))
        )
        assert not turn or (same == n - 1).all()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [2, 3])
def test_tensors_that_overlap(torch_cards: TorchCards, n: int, code: str) -> None:
    on(torch_cards, n, overlapping, code)


def emptied(rank: int, n: int) -> None:
    """The list for a gather loses its tensors while the call waits for the other rank."""
    own = torch.full((1000,), rank + 1.0)
    for _ in range(2):
        dist.gather(own, [torch.zeros(1000) for _ in range(n)] if rank == 0 else None, 0)
    if rank:
        time.sleep(0.3)
        dist.gather(own, None, 0)
        return
    blocks, later = [torch.zeros(1000) for _ in range(n)], []

    def empty() -> None:
        time.sleep(0.1)
        blocks.clear()
        later.extend(torch.zeros(1000) for _ in range(n))

    thread = threading.Thread(target=empty)
    thread.start()
    dist.gather(own, blocks, 0)
    thread.join()
    assert not any(tensor.any() for tensor in later)


def test_a_list_that_is_emptied_meanwhile(torch_cards: TorchCards) -> None:
    torch_cards(2, emptied)


def refused(rank: int, n: int, code: str) -> None:
    set_code(rank, code)
    for _ in range(2):
        dist.reduce_scatter(torch.zeros(8), [torch.ones(8)] * n)
        dist.all_reduce(torch.ones(8), dist.ReduceOp.MAX)
    with pytest.raises(InvalidValue, match="0 tensors in the input list, must be one a rank: 2"):
        dist.reduce_scatter(torch.zeros(8), [])
    start = time.monotonic()
    without_memory = torch._efficientzerotensor(8)
    with pytest.raises((RuntimeError, RemoteError), match="ZeroTensor"):
        dist.all_reduce(without_memory if rank == 0 else torch.ones(8), dist.ReduceOp.MAX)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("code", CODES)
def test_what_cannot_be_sent_is_said_to_all(torch_cards: TorchCards, code: str) -> None:
    on(torch_cards, 2, refused, code)


def interrupted(rank: int, n: int) -> set[tuple[str, ...]]:
    """A signal's handler makes a call just after another one has run."""
    engine = dist.group.WORLD._engine
    run = flat.broadcast
    signal.signal(signal.SIGUSR1, lambda *_: dist.all_reduce(torch.ones(3)))

    def run_and_raise(*args: Any) -> None:
        run(*args)
        signal.raise_signal(signal.SIGUSR1)

    flat.broadcast = run_and_raise
    dist.broadcast(torch.ones(4), 0)
    flat.broadcast = run
    dist.broadcast(second := torch.full((4,), rank + 1.0), 0)
    assert second.tolist() == [1.0] * 4
    return {key[0] for key in engine.expresses}


def test_a_call_of_a_handler_leaves_the_short_way_of_the_one_it_interrupts(torch_cards: TorchCards) -> None:
    assert torch_cards(2, interrupted) == [{"broadcast", "all_reduce"}] * 2
