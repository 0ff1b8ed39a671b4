"""Time limits on the superpod backend, monitored_barrier, and how groups are ended from without."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch_cards import TorchCards
from torch_groups import group, summed

from superpod.interconnect.errors import DeadlineExceeded, LinkClosed, RemoteError, SuperpodError

Op = dist.ReduceOp


# Limits


def limits(rank: int, n: int) -> None:
    """Of the call, of wait, of the group."""
    quick, again, store = timedelta(seconds=0.3), dist.new_group(), dist.distributed_c10d._get_default_store()
    if rank == 0:
        words = r"Timed out after 0\.3 s waiting for rank 1 in all_reduce\(3 × float32"
        with pytest.raises(DeadlineExceeded, match=words):
            group().allreduce(torch.ones(3), Op.SUM, quick).wait()
        late = again.barrier()
        with pytest.raises(DeadlineExceeded, match=r"barrier has not finished within 0\.3 s; it goes on"):
            late.wait(quick)
        store.set("a barrier", "")
        assert late.wait()
        again.set_timeout(quick)
        with pytest.raises(DeadlineExceeded, match=r"Timed out after 0\.3 s waiting for rank 1 in barrier\(\)"):
            dist.barrier(again)
    else:
        store.wait(["a barrier"], timedelta(seconds=20))
        dist.barrier(again)
    store.set(f"{rank} is done", "")
    store.wait(["0 is done"], timedelta(seconds=20))  # rank 1 is there, but does not come


def test_time_limits_of_call_wait_and_group(torch_cards: TorchCards) -> None:
    torch_cards(2, limits)


# monitored_barrier


def monitored(rank: int, n: int) -> list[str]:
    g, said = group(), []
    g.monitored_barrier()
    g.monitored_barrier(timedelta(seconds=20), wait_all_ranks=True)
    for late, every in (({2}, False), ({1, 3}, True), ({1, 3}, False)):
        if rank not in late:
            with pytest.raises(SuperpodError) as caught:
                g.monitored_barrier(timedelta(seconds=0.4), wait_all_ranks=every)
            said.append(f"{type(caught.value).__name__}: {caught.value}")
        else:
            g._monitored += 1
        assert summed() == n  # the group goes on
    return said


def test_monitored_barrier_names_the_late(torch_cards: TorchCards) -> None:
    said = torch_cards(4, monitored)
    assert said[0] == [
        "DeadlineExceeded: Rank 2 failed to pass monitoredBarrier in 400 ms",
        "DeadlineExceeded: Ranks 1, 3 failed to pass monitoredBarrier in 400 ms",
        "DeadlineExceeded: Rank 1 failed to pass monitoredBarrier in 400 ms",
    ]
    reached = "monitoredBarrier, but received errors while waiting for send/recv from rank 0: "
    assert said[1] == [f"DeadlineExceeded: Rank 1 successfully reached {reached}{said[0][0].partition(': ')[2]}"]
    assert [text.partition(reached)[2] for text in said[2]] == [text.partition(": ")[2] for text in said[0][1:]]


def without_rank_0(rank: int, n: int) -> None:
    if rank == 1:
        with pytest.raises(
            DeadlineExceeded, match=r"Rank 1 success.* waiting for send/recv from rank 0: it said nothing"
        ):
            group().monitored_barrier(timedelta(seconds=0.1))
    else:
        with pytest.raises(DeadlineExceeded, match="Rank 0 timed out in monitoredBarrier after 0 ms"):
            group().monitored_barrier(timedelta(0))
    assert summed() == n


def test_monitored_barrier_without_rank_0(torch_cards: TorchCards) -> None:
    torch_cards(2, without_rank_0)


# Endings


def aborted(rank: int, n: int) -> None:
    part = dist.new_group()
    assert summed(part) == n
    if rank == 1:
        dist.distributed_c10d._abort_process_group(part)
    else:
        with pytest.raises(RemoteError, match="rank 1 has aborted group"):
            dist.barrier(part)
    assert summed() == n


def test_abort_ends_the_waits_of_the_others(torch_cards: TorchCards) -> None:
    torch_cards(3, aborted)


def aborted_in_a_thread(rank: int, n: int) -> None:
    part, heard = dist.new_group(), []
    if rank == 0:

        def wait() -> None:
            try:
                part.barrier().wait()
            except RuntimeError as error:
                heard.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        part.abort()
        thread.join(20)
        assert not thread.is_alive()
        assert isinstance(heard[0], RemoteError | LinkClosed)
        part.abort()  # again: nothing
    assert summed() == n


def test_abort_ends_the_waits_of_other_threads(torch_cards: TorchCards) -> None:
    torch_cards(2, aborted_in_a_thread)
