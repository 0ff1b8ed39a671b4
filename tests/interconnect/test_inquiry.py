"""Questions to cards: who answers, who cannot, and what is said of those."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time

import pytest

from superpod.interconnect.inquiry import Desk, Inquiry, ask, desks, silence, state_of

WAIT = 10  # seconds


@contextlib.contextmanager
def answering(directory, ranks, awaited=()):
    """A desk with a thread for each of `ranks`; yields their addresses. `awaited`: rank → the ranks it names."""
    offices = {rank: Desk(directory, rank) for rank in ranks}
    over = threading.Event()

    def serve(rank, desk):
        while not over.is_set():
            if (asked := desk.wait(0.05)) is not None:
                desk.answer(*asked, {"rank": rank, "awaited": dict(awaited).get(rank, [])})

    threads = [threading.Thread(target=serve, args=item) for item in offices.items()]
    for thread in threads:
        thread.start()
    try:
        yield {rank: desk.address for rank, desk in offices.items()}
    finally:
        over.set()
        for thread in threads:
            thread.join(WAIT)
        for desk in offices.values():
            desk.abandon()


@pytest.mark.parametrize("with_directory", [True, False])
def test_those_who_are_there_answer(tmp_path, with_directory):
    with answering(tmp_path if with_directory else None, range(20)) as addresses:
        answers, absent = ask(range(21), addresses.get, lambda answer: [], seconds=WAIT)
    assert sorted(answers) == list(range(20))
    assert absent == {20}


def test_answers_lead_to_others():
    with answering(None, range(5), {0: [1], 1: [2, 3]}) as addresses:
        answers, _ = ask([0], addresses.get, lambda answer: answer["awaited"], seconds=WAIT)
    assert sorted(answers) == [0, 1, 2, 3]


def test_who_does_not_answer_costs_no_more_than_the_time_limit(tmp_path):
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        start = time.monotonic()
        answers, absent = ask([3], lambda rank: str(tmp_path / "deaf"), lambda answer: [], seconds=0.2)
    assert (answers, absent) == ({}, set())
    assert 0.2 <= time.monotonic() - start < 2


def test_a_card_whose_queue_is_full_is_asked_again(tmp_path):
    """Many ask the same card at once, more than the kernel queues."""
    with contextlib.ExitStack() as opened:
        desk = Desk(tmp_path, 0)
        opened.callback(desk.abandon)
        inquiries = [opened.enter_context(contextlib.closing(Inquiry())) for _ in range(700)]
        for inquiry in inquiries:
            inquiry.ask(0, desk.address)
        crowded = [inquiry for inquiry in inquiries if inquiry.patience is not None]
        assert crowded, "the kernel has queued all of them; ask more"
        served, end = 0, time.monotonic() + WAIT
        while served < len(inquiries) and time.monotonic() < end:
            if (asked := desk.wait(0.01)) is not None:
                desk.answer(*asked, {"rank": 0})
                served += 1
            for inquiry in crowded:
                inquiry.read()
        assert served == len(inquiries)


def test_strangers_and_nonsense_are_not_answers():
    with contextlib.closing(Inquiry()) as inquiry, answering(None, [0]) as addresses:
        name = inquiry._socket.getsockname()
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as stranger:
            for datagram in (b"", b"\xc1", b"\x80", b"\x82\xa4word\xc4\x01x\xa4rank\x00"):
                stranger.sendto(datagram, name)
        assert inquiry.read() == []
        inquiry.ask(0, addresses[0])
        end = time.monotonic() + WAIT
        while not (answers := inquiry.read()) and time.monotonic() < end:
            pass
        assert [rank for rank, _ in answers] == [0]


def test_a_desk_is_not_disturbed_by_nonsense(tmp_path):
    desk = Desk(tmp_path, 0)
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as stranger:
        stranger.bind("")
        for datagram in (b"", b"\xc1", b"\x80"):
            stranger.sendto(datagram, desk.address)
            assert desk.wait(WAIT) is None
    assert desk.wait(0) is None
    desk.abandon()


def test_desks_are_found_in_the_jobs_directory(tmp_path):
    offices = [Desk(tmp_path, rank) for rank in (0, 12)]
    (tmp_path / "askme-3").touch()
    assert desks(tmp_path) == {rank: (str(tmp_path / f"ask{rank}-{os.getpid()}"), os.getpid()) for rank in (0, 12)}
    offices.append(Desk(tmp_path, 12))  # a second program in the same process takes the name over
    assert len(desks(tmp_path)) == 2
    for desk in offices:
        desk.abandon()


def test_what_the_kernel_says_of_a_process():
    if (pid := os.fork()) == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    assert state_of(pid) == "is stopped by a signal"
    assert silence(pid, has_desk=True) == f"does not answer: it is stopped by a signal (pid {pid})"
    assert silence(pid, has_desk=False) == f"has not called superpod yet: it is stopped by a signal (pid {pid})"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert state_of(pid) == "has ended"
    gone = "is not there: it has not called superpod yet, or has ended"
    assert silence(pid, has_desk=False) == silence(0, has_desk=False) == gone
    assert silence(0, has_desk=True) == "does not answer, and may be stopped"
