"""Messages on the superpod backend of torch; that a barrier is one; and what is refused."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch_cards import TorchCards, join
from torch_groups import summed

from superpod.interconnect.errors import (
    InvalidValue,
)

LONG = timedelta(seconds=30)


# Messages


def messages(rank: int, n: int) -> None:
    left, right = (rank - 1) % n, (rank + 1) % n
    for tag in (0, 7):
        into = torch.zeros(300_000)
        receive = dist.irecv(into, left, tag=tag)
        send = dist.isend(torch.full((300_000,), float(rank)), right, tag=tag)
        send.wait()
        receive.wait()
        assert torch.equal(into, torch.full((300_000,), float(left)))
    into, back = torch.zeros(3), torch.zeros(3)
    ops = [dist.P2POp(dist.isend, torch.full((3,), float(rank)), peer) for peer in (left, right)]
    ops += [dist.P2POp(dist.irecv, out, peer) for out, peer in ((into, left), (back, right))]
    for work in dist.batch_isend_irecv(ops):
        assert work.wait()
    assert (into[0].item(), back[0].item()) == (left, right)
    strided = torch.zeros(3, 2).T
    receive = dist.irecv(strided, left)
    dist.send((torch.arange(6.0) + rank).reshape(3, 2).T, right)
    assert receive.get_future().wait()[0] is strided  # nobody else waits for it
    assert torch.equal(strided, (torch.arange(6.0) + left).reshape(3, 2).T)
    assert receive.source_rank() == left


def test_messages(torch_cards: TorchCards) -> None:
    torch_cards(3, messages)


def from_anybody(rank: int, n: int) -> list[int]:
    if rank:
        for tag in (1, 2):
            dist.send(torch.tensor([rank, tag]), 0, tag=tag)
        return []
    heard, pair = [], torch.zeros(2, dtype=torch.int64)
    for tag in (2, 1):
        sources = []
        for i in range(n - 1):
            if i:
                source = dist.recv(pair, tag=tag)
            else:
                work = dist.irecv(pair, tag=tag)
                work.wait()
                source = work._source_rank()
            assert pair.tolist() == [source, tag]
            sources.append(source)
        heard += sorted(sources)
    return heard


def test_a_message_from_anybody(torch_cards: TorchCards) -> None:
    assert torch_cards(4, from_anybody)[0] == [1, 2, 3] * 2


# Barrier, and what is refused


def barriers(rank: int, n: int, folder: str) -> list[float]:
    """When the ranks enter and leave: each is late in one of them."""
    join(rank, n, folder)
    times = []
    for late in range(n):
        store = dist.distributed_c10d._get_default_store()
        if rank == late:
            for other in set(range(n)) - {late}:
                store.wait([f"{late}: {other} is about to enter"], LONG)
        else:
            store.set(f"{late}: {rank} is about to enter", "")
        entered = time.monotonic()
        dist.barrier(device_ids=[0]) if late == 0 else dist.barrier()
        times.append((entered, time.monotonic()))
    dist.destroy_process_group()
    return times


def test_nobody_leaves_a_barrier_before_all_have_entered(torch_cards: TorchCards) -> None:
    every = torch_cards(3, barriers, backend=None)
    for one_barrier in zip(*every, strict=True):
        assert min(left for _, left in one_barrier) >= max(entered for entered, _ in one_barrier)


def refused(rank: int, n: int) -> None:
    t = torch.ones(4)
    group = dist.distributed_c10d._get_default_group()
    calls: list[tuple[Any, str]] = [
        (lambda: dist.all_gather([t, t, t], t[:3]), r"the input has 3 elements, but block \d of the list has 4"),
        (lambda: group.allgather([[t]], [t]), "1 tensors in the output list, must be one a rank: 3"),
        (lambda: group.allreduce([t, t]), "2 items in the list, must be 1: one process drives one card"),
        (lambda: dist.all_gather_into_tensor(t, t), "all_gather output of 4 elements must be 3 times the input's 4"),
        (lambda: dist.reduce_scatter_tensor(t, t), "reduce_scatter input of 4 elements must be 3 times the output's 4"),
        (
            lambda: group.reduce_scatter([t[:2]], [[t, t, t]]),
            r"the output has 2 elements, but block \d of the list has 4",
        ),
        (lambda: dist.all_to_all_single(t, t), "input of 4 rows cannot be split evenly over 3 ranks; give input_split"),
        (
            lambda: dist.all_to_all_single(t, t, [1, 1, 2], [4, 1, 1]),
            r"input_split_sizes=\[4, 1, 1\] must be 0 or more and",
        ),
        (lambda: dist.all_to_all_single(t, t, [5, 0, -1], [5, 0, -1]), "must be 0 or more and add up to the 4 rows"),
        (lambda: group.alltoall([t] * 3, [t[:1]] * 3), r"rank \d sends itself 1 elements but expects 4"),
        (lambda: group.alltoall([t] * 2, [t] * 2), "2 output tensors, must be one a rank: 3"),
        (lambda: group.all_gather_single(torch.ones(12, dtype=torch.int32), t), "must have one dtype"),
        (lambda: group.send([t], 7, 0), r"rank 7 must be a rank of the group: 0 to 2 but this card's own \d"),
        (lambda: group.recv([t], rank, 0), "but this card's own"),
        (lambda: group.recv([t], (rank + 1) % 3, -3), "tag=-3 must be a whole number, 0 to"),
        (lambda: group.allreduce([t.to("meta")]), "tensor on meta with layout torch.strided: superpod moves dense CPU"),
        (lambda: group.broadcast([t.to_sparse()]), "layout torch.sparse_coo: superpod moves dense CPU tensors"),
    ]
    if rank == 0:
        own, other = [t] * 3, [t, t, t[:1]]
        calls += [
            (lambda: group.gather([own[:2]], [t]), "2 tensors in the gather list, must be one a rank: 3"),
            (
                lambda: group.scatter([t], [other]),
                "tensor 2 of the scatter list has 1 elements, must be 4 as the others",
            ),
        ]
    for call, message in calls:
        with pytest.raises(InvalidValue, match=message):
            call()
        assert torch.equal(t, torch.ones(4))
    assert summed() == n  # on no rank was anything sent


def test_wrong_arguments_are_refused_and_do_no_harm(torch_cards: TorchCards) -> None:
    torch_cards(3, refused)


def not_there(rank: int, n: int) -> None:
    with pytest.raises(ValueError, match="monitored_barrier is only implemented for GLOO"):
        dist.monitored_barrier()
    group = dist.distributed_c10d._get_default_group()
    assert (repr(group.getBackendName()), group.name(), group.supports_splitting) == ("'superpod'", "superpod", True)
    assert summed() == n


def test_what_is_not_there_fails_clearly(torch_cards: TorchCards) -> None:
    torch_cards(2, not_there)
