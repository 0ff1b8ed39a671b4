"""torch's process groups on the superpod backend: many groups, their life, training, asynchronous work, errors."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch_cards import TorchCards, join
from torch_groups import summed

from superpod.collectives import torch_backend
from superpod.interconnect.errors import (
    CollectiveMismatch,
    DeadlineExceeded,
    LinkClosed,
    RemoteError,
    SuperpodError,
)

LONG = timedelta(seconds=30)


# Groups


def overlapping(rank: int, n: int) -> list[int]:
    low, high = dist.new_group([0, 1, 2]), dist.new_group([2, 3])
    both = [group for group, ranks in ((low, (0, 1, 2)), (high, (2, 3))) if rank in ranks]
    sizes = [summed(group) for group in (both if rank % 2 else reversed(both))]
    assert dist.get_rank(high) == rank - 2 if rank >= 2 else dist.get_rank(high) < 0
    assert (dist.get_backend(both[0]), both[0].size()) == ("superpod", 3 if both[0] is low else 2)
    if rank >= 2:
        tensor = torch.tensor([rank])
        dist.broadcast(tensor, src=3, group=high)  # global ranks
        assert tensor.item() == 3
    return [*sizes, summed()]


def test_overlapping_groups_in_different_order(torch_cards: TorchCards) -> None:
    assert torch_cards(4, overlapping) == [[3, 4], [3, 4], [2, 3, 4], [2, 4]]


def destroyed_and_made_again(rank: int, n: int) -> None:
    for _ in range(3):
        group = dist.new_group([0, 1])
        if rank < 2:
            assert summed(group) == 2
            dist.destroy_process_group(group)
            with pytest.raises(LinkClosed, match="has closed group"):
                group.allreduce([torch.ones(1)]).wait()
        assert summed() == 3


def test_groups_may_end_while_others_go_on(torch_cards: TorchCards) -> None:
    torch_cards(3, destroyed_and_made_again)


def one_after_the_other(rank: int, n: int, folder: str) -> None:
    for _ in range(4):
        join(rank, n, folder)  # the same file, as the same store is there under torchrun
        assert summed() == n
        assert summed(dist.new_group(list(range(n)))) == n
        dist.destroy_process_group()
        assert not dist.is_initialized()
    assert threading.active_count() == 1 + sum(t.daemon for t in threading.enumerate() if t.is_alive())


def test_a_process_may_initialise_again(torch_cards: TorchCards) -> None:
    torch_cards(3, one_after_the_other, backend=None)


def beside_gloo(rank: int, n: int, folder: str) -> None:
    """Subgroups on superpod, some ranks in none, some in two, one after the other."""
    join(rank, n, folder, "gloo")
    low, high = (dist.new_group(ranks, backend="superpod") for ranks in ([0, 1], [1, 2]))
    if rank < 2:
        assert summed(low) == 2
    if rank in (1, 2):
        assert summed(high) == 2
    dist.barrier()
    for group in (low, high):
        if group is not dist.GroupMember.NON_GROUP_MEMBER:
            dist.destroy_process_group(group)
    everybody = dist.new_group(backend="superpod")  # ranks 0 to 2 have been here before, rank 3 has not
    assert summed(everybody) == n
    assert summed() == n
    dist.destroy_process_group()


def test_superpod_groups_beside_a_default_group_of_gloo(torch_cards: TorchCards) -> None:
    torch_cards(4, beside_gloo, backend=None)


def other_stores(rank: int, n: int, folder: str) -> int:
    store: Any = dist.FileStore(f"{folder}/other", n) if n > 1 else dist.HashStore()
    dist.init_process_group("cpu:superpod", store=store, rank=rank, world_size=n)
    size = summed()
    dist.destroy_process_group()
    return size


@pytest.mark.parametrize("n", [1, 3])
def test_a_store_of_the_users_own(torch_cards: TorchCards, n: int) -> None:
    assert torch_cards(n, other_stores, backend=None) == [n] * n


def forked(rank: int, n: int) -> None:
    assert summed() == n
    if (pid := os.fork()) == 0:
        with pytest.raises(LinkClosed, match="this process was forked from rank"):
            summed()
        dist.destroy_process_group()
        dist.init_process_group("superpod", store=dist.HashStore(), rank=0, world_size=1)
        os._exit(3 if summed() == 1 else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert summed() == n


def test_a_forked_child_begins_anew(torch_cards: TorchCards) -> None:
    torch_cards(2, forked)


# Training


def trained(rank: int, n: int) -> list[float]:
    torch.manual_seed(0)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.randn(5, n, 6, 8)
    for step, batch in enumerate(data):
        if step == 2:
            with model.no_sync():
                model(batch[rank]).square().mean().backward()
        model(batch[rank]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def test_ddp_trains_as_with_gloo(torch_cards: TorchCards) -> None:
    ours, theirs = (torch_cards(3, trained, backend=b, preload="torch._dynamo") for b in ("superpod", "gloo"))
    assert ours == [ours[0]] * 3
    assert torch.allclose(torch.tensor(ours[0]), torch.tensor(theirs[0]), rtol=1e-6, atol=1e-7)


def sparse_embedding(rank: int, n: int) -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Embedding(10, 3, sparse=True))
    model(torch.tensor([rank, rank + 1])).sum().backward()
    grad = model.module.weight.grad
    assert grad.is_sparse
    assert torch.equal(grad.to_dense()[:, 0] * n, torch.tensor([1.0, 2, 2, 1, 0, 0, 0, 0, 0, 0]))


def test_ddp_with_sparse_gradients(torch_cards: TorchCards) -> None:
    torch_cards(3, sparse_embedding, preload="torch._dynamo")


# Asynchronous work


def asynchronous(rank: int, n: int) -> None:
    total = torch.ones(1000)
    works = [dist.all_reduce(total, async_op=True) for _ in range(8)]  # each needs the one before
    futures = [work.get_future() for work in works]
    assert futures[0] is works[0].get_future()
    doubled = futures[-1].then(lambda future: future.value()[0] * 2)
    assert torch.equal(doubled.wait(), torch.full((1000,), 2.0 * n**8))
    assert futures[-1].value()[0] is total
    for work in works:
        assert work.wait()
        assert work.is_completed()
        assert work.is_success()
        assert work.exception() is None
    assert works[0].result()[0] is total
    assert torch.futures.wait_all(futures)[3][0] is total
    assert summed() == n

    def in_callback(future: Any) -> int:  # the way of communication hooks
        part = torch.ones(2)
        dist.all_reduce(part)
        return int(part[0])

    begin = dist.barrier(async_op=True)
    assert dist.all_reduce(torch.ones(3), async_op=True).get_future().then(in_callback).wait() == n
    begin.wait(LONG)


def test_asynchronous_work_and_futures(torch_cards: TorchCards) -> None:
    torch_cards(3, asynchronous)


def errors(rank: int, n: int) -> None:
    work = dist.all_reduce(torch.ones(4 + rank), async_op=True)
    heard, future = threading.Event(), work.get_future()
    future.add_done_callback(lambda _: heard.set())
    words = r"rank 0 called all_reduce\(4 × float32, sum\) by .* but rank 1 called all_reduce\(5 × float32, sum\) by"
    with pytest.raises(CollectiveMismatch, match=words):
        work.wait()
    with pytest.raises(RuntimeError, match=r"all_reduce\(5 × float32, sum\)"):
        future.wait()
    assert heard.wait(30)
    assert (work.is_completed(), work.is_success()) == (True, False)
    assert isinstance(work.exception(), CollectiveMismatch)
    with pytest.raises(CollectiveMismatch, match=r"all_reduce\(4 × float32, sum\)"):
        dist.barrier()


def test_an_error_reaches_wait_and_future(torch_cards: TorchCards) -> None:
    torch_cards(2, errors)


def deadline(rank: int, n: int) -> None:
    short = dist.new_group(timeout=timedelta(seconds=0.5))
    if rank == 0:
        with pytest.raises(DeadlineExceeded, match=r"Timed out after 0\.5 s waiting for rank 1 in all_reduce"):
            dist.all_reduce(torch.ones(3), group=short)
    assert summed() == n
    if rank == 1:
        with pytest.raises(RemoteError, match=r"rank 0 failed with DeadlineExceeded: .* waiting for rank 1"):
            dist.all_reduce(torch.ones(3), group=short)


def test_a_groups_own_time_limit(torch_cards: TorchCards) -> None:
    torch_cards(2, deadline)


def released(rank: int, n: int) -> list[bool]:
    seen = []
    for call in (
        lambda t: dist.all_reduce(t),
        lambda t: dist.all_reduce(t, async_op=True).wait(),
        lambda t: dist.all_reduce(t, async_op=True).get_future().wait(),
        lambda t: dist.send(t, 1) if rank == 0 else dist.recv(t, 0),
        lambda t: dist.all_gather([torch.zeros(5000) for _ in range(n)], t),
    ):
        tensor = torch.ones(5000)
        watched = weakref.ref(tensor)
        call(tensor)
        del tensor
        dist.barrier(async_op=True).wait()
        gc.collect()
        seen.append(watched() is None)
    return seen


def test_no_tensor_is_kept_after_the_call(torch_cards: TorchCards) -> None:
    assert torch_cards(2, released) == [[True] * 5] * 2


def test_every_error_is_a_runtime_error() -> None:
    """torch's C++ side passes on what is one."""
    assert issubclass(SuperpodError, RuntimeError)
    assert torch_backend._card._runtime is None  # nothing was opened in this process
