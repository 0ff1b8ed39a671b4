"""Messages from card to card: order, sizes, waits from several threads, callbacks, deadlines."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from collective_cases import brought, same
from communicator_cards import LONG, cards, ended, links

from superpod.collectives.communicator import Communicator
from superpod.interconnect.errors import (
    CollectiveMismatch,
    DeadlineExceeded,
    InvalidValue,
    LinkClosed,
    RemoteError,
)
from superpod.launcher.testing import run_ranks


@links
def test_messages_keep_their_order_by_peer_and_tag(link: str) -> None:
    def card(comm: Communicator) -> None:
        n, me = comm.world_size, comm.rank
        works = []
        for peer in range(n):
            for tag in (5, 0, 2**31 - 1):
                for i in range(4):
                    if peer != me:
                        works.append(comm.send(np.array([me, tag, i]), peer, tag, async_op=True))
        for tag in (0, 2**31 - 1, 5):
            for peer in reversed(range(n)):
                for i in range(4):
                    if peer != me:
                        assert comm.recv(np.zeros(3, int), peer, tag).tolist() == [peer, tag, i]
        assert [work.wait(LONG) for work in works] == [None] * len(works)

    run_ranks(3, card, link=link)


@links
def test_messages_of_any_size_beside_collectives(link: str) -> None:
    def card(comm: Communicator) -> None:
        other = 1 - comm.rank
        for count in (0, 1, 1_500_000):
            into = np.zeros(count, np.float32)
            expected = comm.recv(into, other, 3, async_op=True)
            sent = comm.send(brought(comm.rank, count), other, 3, async_op=True)
            assert comm.all_reduce(np.array(1)) == 2
            assert expected.wait(LONG) is into
            sent.wait(LONG)
            same(into, brought(other, count))
        same(comm.recv(np.zeros((), bool), other) if comm.rank else np.array(True), np.array(True))
        if comm.rank == 0:
            comm.send(np.array(True), other)

    run_ranks(2, card, link=link)


def test_a_message_may_be_sent_from_any_layout() -> None:
    def card(comm: Communicator) -> None:
        matrix = np.arange(12).reshape(3, 4)
        if comm.rank == 0:
            comm.send(matrix.T, 1)
        else:
            assert np.array_equal(comm.recv(np.zeros((4, 3), int), 0), matrix.T)

    cards(2, card)


def test_a_wait_that_times_out_leaves_the_message_under_way() -> None:
    def card(comm: Communicator) -> None:
        if comm.rank == 0:
            work = comm.recv(np.zeros(3), 1, async_op=True)
            assert not work.is_completed()
            with pytest.raises(DeadlineExceeded, match=r"send/recv\(3 × float64, tag 0\) from rank 1 has not finished"):
                work.wait(0.01)
            comm.barrier()
            assert work.wait(LONG).tolist() == [7, 7, 7]
            assert work.is_completed()
        else:
            comm.barrier()
            comm.send(np.full(3, 7.0), 0)

    cards(2, card)


def test_waiting_for_a_message_in_the_middle_of_collectives_is_no_mismatch() -> None:
    """The card that waits asks its peer, after a moment, what it is doing: another thing, and that is fine."""

    def card(comm: Communicator) -> None:
        comm.barrier()
        if comm.rank == 0:
            comm.recv(np.zeros(3), 1)
        else:
            end = time.monotonic() + 0.6
            work = comm.recv(np.zeros(1), 0, 9, async_op=True)
            while time.monotonic() < end:  # handles what comes from rank 0
                with pytest.raises(DeadlineExceeded):
                    work.wait(0.1)
            comm.send(np.zeros(3), 0)
        comm.barrier()
        if comm.rank == 0:
            comm.send(np.zeros(1), 1, 9)

    cards(2, card)


def test_the_deadline_of_a_message_ends_the_group() -> None:
    def card(comm: Communicator) -> str:
        with pytest.raises((DeadlineExceeded, RemoteError)) as caught:
            comm.recv(np.zeros(3), 1 - comm.rank, timeout=LONG if comm.rank else 0.1)
        return str(caught.value)

    words = "rank 0: Timed out after 0.1 s waiting for rank 1 in send/recv(3 × float64, tag 0) from rank 1"
    assert cards(2, card) == [words, f"rank 0 failed with DeadlineExceeded: {words}"]


def test_two_threads_may_wait_for_one_message() -> None:
    def card(comm: Communicator) -> None:
        if comm.rank == 1:
            comm.barrier()
            comm.send(np.full(3, 7.0), 0)
            return
        work, calls, results = comm.recv(np.zeros(3), 1, async_op=True), [], []
        work.when_done(calls.append)  # a third one
        threads = [threading.Thread(target=lambda: results.append(work.wait(LONG))) for _ in range(2)]
        for thread in threads:
            thread.start()
        comm.barrier()
        for thread in threads:
            thread.join(LONG)
        assert [result.tolist() for result in results] == [[7, 7, 7]] * 2
        assert calls == [work]

    for _ in range(5):
        cards(2, card)


@links
def test_a_callback_of_a_message_needs_nobody_to_wait(link: str) -> None:
    def card(comm: Communicator) -> None:
        other, done = 1 - comm.rank, threading.Event()
        array = np.zeros(700_000)
        comm.recv(array, other, async_op=True).when_done(lambda _: done.set())
        comm.send(np.full(700_000, comm.rank + 5.0), other, async_op=True).wait(LONG)
        ended(done)
        assert array.tolist() == [other + 5.0] * 700_000

    run_ranks(2, card, link=link)


def test_closing_ends_what_is_under_way() -> None:
    def card(comm: Communicator) -> None:
        group, seen = comm.group([0, 1]), []
        message = group.recv(np.zeros(1), 1 - comm.rank, async_op=True)
        message.when_done(seen.append)
        collective = group.broadcast(np.zeros(1), 1 - comm.rank, async_op=True)  # each waits for the other
        comm.barrier()
        start = time.monotonic()
        group.close()
        for work in (message, collective):
            with pytest.raises((LinkClosed, CollectiveMismatch)):
                work.wait(LONG)
        assert time.monotonic() - start < 5
        with pytest.raises((LinkClosed, CollectiveMismatch)):
            group.barrier(async_op=True).wait(LONG)
        comm.barrier()

    cards(2, card)


def test_a_wrong_argument_of_an_asynchronous_call_is_told_at_once() -> None:
    def card(comm: Communicator) -> None:
        with pytest.raises(InvalidValue, match="algorithm='none' does not exist"):
            comm.all_reduce(np.zeros(3), algorithm="none", async_op=True)

    cards(1, card)
