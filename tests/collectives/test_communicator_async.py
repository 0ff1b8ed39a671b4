"""Collectives that go on while the card does something else: issue order, callbacks, errors, deadlines."""

from __future__ import annotations

import re
import signal
import threading

import numpy as np
import pytest
from collective_cases import brought, same
from communicator_cards import LONG, cards, ended, links

from superpod.collectives import algorithms
from superpod.collectives.communicator import Communicator, Work
from superpod.interconnect.errors import (
    CollectiveMismatch,
    DeadlineExceeded,
    RemoteError,
    SuperpodError,
)
from superpod.launcher.testing import run_ranks

# Collectives


@links
def test_many_outstanding_calls_are_carried_out_in_issue_order(link: str) -> None:
    def card(comm: Communicator) -> int:
        total, works = np.array([comm.rank + 1.0]), []
        for i in range(30):
            works.append(comm.all_reduce(total, ("sum", "max")[i % 2], async_op=True))  # each needs the one before
            works.append(comm.broadcast(total, i % comm.world_size, async_op=True))
        assert comm.all_reduce(np.array(1)) == 3  # comes after all of them
        assert all(work.is_completed() for work in works)
        assert all(work.wait(0.001) is total for work in works)
        return int(total[0])

    assert run_ranks(3, card, link=link) == [6 * 3**14] * 3


def test_every_collective_can_be_asynchronous() -> None:
    def card(comm: Communicator) -> None:
        me, own, root = comm.rank, brought(comm.rank, 6), np.zeros((3, 2), np.float32)
        everything = np.stack([brought(r, 6) for r in range(3)])
        works: list[Work] = [
            comm.all_reduce(own.copy(), async_op=True),
            comm.all_gather(own, async_op=True),
            comm.reduce_scatter(own, async_op=True),
            comm.all_to_all(own, async_op=True),
            comm.gather(own, 1, async_op=True),
            comm.reduce(own.copy(), 1, async_op=True),
            comm.broadcast(own.copy(), 1, async_op=True),
            comm.scatter(root + 5 if me == 1 else None, 1, np.zeros(2, np.float32), async_op=True),
            comm.barrier(async_op=True),
        ]
        results = [work.wait(LONG) for work in works]
        same(results[0], everything.sum(axis=0))
        same(results[1], everything)
        same(results[2], everything.sum(axis=0)[2 * me : 2 * me + 2])
        same(results[3], np.concatenate([one[2 * me : 2 * me + 2] for one in everything]))
        same(results[6], everything[1])
        assert results[7].tolist() == [5, 5]
        assert [results[4] is None, results[5] is None, results[8]] == [me != 1, me != 1, None]

    cards(3, card)


@pytest.mark.parametrize("algorithm", algorithms.names("barrier"))
@pytest.mark.parametrize("n", [2, 3, 5])
def test_nobody_leaves_a_barrier_before_all_have_entered(algorithm: str, n: int) -> None:
    def card(comm: Communicator) -> None:
        for late in range(n):
            if comm.rank == late:
                for _ in range(n - 1):
                    ended_waiting.acquire()
                comm.barrier(algorithm=algorithm)
            else:
                work = comm.barrier(algorithm=algorithm, async_op=True)
                with pytest.raises(DeadlineExceeded, match=r"barrier has not finished within 0\.01 s; it goes on"):
                    work.wait(0.01)
                ended_waiting.release()
                work.wait(LONG)

    ended_waiting = threading.Semaphore(0)
    cards(n, card)


def test_a_callback_may_make_calls_of_its_own() -> None:
    """At once if they are synchronous: what was queued behind the callback's work begins after it, on every rank."""

    def card(comm: Communicator) -> list[float]:
        value, done = np.array([1.0]), threading.Event()
        begin = threading.Event()
        comm.barrier(async_op=True).when_done(lambda _: ended(begin))  # until the callback below is in place

        def callback(work: Work) -> None:
            comm.all_reduce(value, "max")
            np.add(value, comm.rank, out=value)
            comm.all_reduce(value, async_op=True).when_done(lambda _: done.set())

        comm.all_reduce(value, async_op=True).when_done(callback)  # 1 → 2
        queued = comm.broadcast(value, 1, async_op=True)
        begin.set()
        queued.wait(LONG)
        ended(done)
        return value.tolist()

    assert cards(2, card) == [[6.0]] * 2  # 2 and 2, 2 and 3, both 3, sum 6


def test_a_callback_comes_at_once_when_the_call_has_ended() -> None:
    def card(comm: Communicator) -> None:
        work, seen = comm.barrier(async_op=True), []
        work.wait(LONG)
        work.when_done(seen.append)
        assert seen == [work]

    cards(2, card)


def test_a_callback_that_fails_is_logged_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def card(comm: Communicator) -> None:
        begin = threading.Event()
        comm.barrier(async_op=True).when_done(lambda _: ended(begin))
        comm.barrier(async_op=True).when_done(lambda _: 1 // 0)
        begin.set()
        assert comm.all_reduce(np.array(1)) == 2

    cards(2, card)
    assert "a callback of barrier failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_several_threads_may_call() -> None:
    """Each with a group of its own, as their calls have no order among themselves."""

    def card(comm: Communicator) -> list[int]:
        groups = [comm.group(range(3)) for _ in range(4)]
        results = [0] * 4

        def work(i: int) -> None:
            for _ in range(20):
                results[i] += int(groups[i].all_reduce(np.array(i)))
                results[i] += int(groups[i].all_reduce(np.array(1), async_op=True).wait(LONG))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        return results

    for link in ("memory", "zmq", "shm"):
        assert run_ranks(3, card, link=link) == [[20 * (3 * i + 3) for i in range(4)]] * 3


def test_an_error_reaches_every_waiter() -> None:
    def card(comm: Communicator) -> None:
        works = [comm.all_reduce(np.ones(10 + comm.rank), algorithm="ring", async_op=True), comm.barrier(async_op=True)]
        errors: list[Exception] = []

        def waiter(work: Work) -> None:
            try:
                work.wait(LONG)
            except CollectiveMismatch as error:
                errors.append(error)

        threads = [threading.Thread(target=waiter, args=(work,)) for work in works * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert len(errors) == 4
        assert len({id(error) for error in errors}) == 4  # each with a traceback of its own
        assert {re.sub(r" in card\(\) at \S+\.py:\d+", "", str(error)) for error in errors} == {
            "in group world: rank 0 called all_reduce(10 × float64, sum) by ring (#0), "
            "but rank 1 called all_reduce(11 × float64, sum) by ring (#0)"
        }
        for work in works:
            assert work.is_completed()
            assert isinstance(work.exception(), CollectiveMismatch)

    cards(2, card)


# Deadlines


@links
def test_a_deadline_names_the_ranks_and_the_call(link: str) -> None:
    def card(comm: Communicator) -> str:
        comm.all_gather(np.ones(4), algorithm="direct")  # the others know one another
        if comm.rank == 2:  # comes when the others have given up
            with pytest.raises(SuperpodError) as caught:
                comm.recv(np.zeros(1), 0, timeout=LONG)
        else:
            with pytest.raises((DeadlineExceeded, RemoteError)) as caught:
                comm.all_gather(np.ones(4), timeout=1.5, algorithm="direct")
        return f"{type(caught.value).__name__}: {caught.value}"

    first, second, third = run_ranks(3, card, link=link)
    words = "Timed out after 1.5 s waiting for rank 2 in all_gather(4 × float64) by direct"
    assert any(f"DeadlineExceeded: rank {rank}: {words}" in text for rank, text in enumerate((first, second)))
    for text in (first, second, third):
        assert words in text
    assert third.startswith("RemoteError: rank ")


def test_who_never_came_is_named_too() -> None:
    def card(comm: Communicator) -> str:
        if comm.rank == 1:
            return ""
        with pytest.raises(DeadlineExceeded) as caught:
            comm.barrier(timeout=0.3, algorithm="dissemination")
        return str(caught.value)

    assert cards(2, card)[0] == "rank 0: Timed out after 0.3 s waiting for rank 1 in barrier() by dissemination"


def test_after_a_deadline_the_group_is_of_no_use_but_others_are() -> None:
    def card(comm: Communicator) -> None:
        group = comm.group([0, 1])
        if comm.rank == 0:
            with pytest.raises(DeadlineExceeded):
                group.barrier(timeout=0.05)
        comm.barrier()
        with pytest.raises(RemoteError if comm.rank else DeadlineExceeded, match=r"Timed out after 0\.1 s"):
            group.barrier()
        with pytest.raises((RemoteError, DeadlineExceeded)):
            group.all_reduce(np.ones(3), async_op=True).wait(LONG)
        assert comm.all_reduce(np.array(1)) == 2

    cards(2, card)


def test_an_interrupt_ends_the_call_on_every_rank() -> None:
    def card(comm: Communicator) -> str:
        if comm.rank == 0:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            with pytest.raises(KeyboardInterrupt):
                comm.all_reduce(np.ones(3))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            with pytest.raises(SuperpodError) as caught:
                comm.barrier()
        else:
            with pytest.raises(RemoteError) as caught:
                comm.recv(np.ones(3), 0)
        return str(caught.value)

    mine, theirs = run_ranks(2, card)
    assert mine.startswith("KeyboardInterrupt in all_reduce")
    assert theirs.startswith("rank 0 failed with SuperpodError: KeyboardInterrupt in all_reduce")
