"""Which failure was the first, what the exit code is, and how the report says it: pure functions of what was heard."""

from __future__ import annotations

import signal

import pytest

from superpod.launcher.outcome import Outcome
from superpod.launcher.report import failure_report, summary, summary_table


def error(rank, time, text="no", kind="ValueError", consequence=False):
    trace = f"Traceback:\n{kind}: {text}\n"
    fields = {"type": kind, "message": text, "traceback": trace, "consequence": consequence}
    return {"event": "error", "rank": rank, "time": float(time), **fields}


def job(n, *news, ended=()):
    outcome = Outcome(n)
    for rank in range(n):
        outcome.started(rank, 100 + rank)
        outcome.hear({"event": "up", "rank": rank})
    for item in news:
        outcome.hear(item)
    for rank, code, time in ended:
        outcome.ended(rank, code, time)
    return outcome


def test_all_well():
    outcome = job(2, ended=[(0, 0, 5.0), (1, 0, 4.0)])
    assert outcome.first_failure() is None
    assert outcome.exit_code == 0
    assert failure_report(outcome, "here", 0.0, "") == ""


def test_first_by_time_whatever_came_first():
    outcome = job(3, error(2, 7.0, "late"), error(1, 6.0, "early"), ended=[(2, 1, 7.1), (1, 4, 6.2), (0, -9, 6.1)])
    assert outcome.first_failure().rank == 1
    assert outcome.exit_code == 4


def test_consequences_come_last():
    heard = error(0, 1.0, "rank 1 left", "PeerLost", consequence=True)
    assert job(2, heard, ended=[(0, 1, 1.1)]).first_failure().rank == 0
    assert job(2, heard, ended=[(0, 1, 1.1), (1, -11, 2.0)]).first_failure().cause == "was killed by SIGSEGV"
    assert job(2, heard, error(1, 3.0)).first_failure().rank == 1


def test_cards_ended_by_the_launcher_have_not_failed():
    outcome = job(3, error(0, 1.0))
    outcome.signalled(signal.SIGTERM)
    outcome.ended(1, -15, 1.5)
    outcome.ended(0, -15, 1.6)  # hung after it had raised
    outcome.signalled(signal.SIGKILL)
    outcome.ended(2, -9, 2.0)
    assert [card.failed_at for card in outcome.cards] == [1.0, None, None]
    assert outcome.exit_code == 1
    assert [card.doing for card in outcome.cards[1:]] == [
        "still running, ended by SIGTERM",
        "still running, ended by SIGKILL",
    ]


@pytest.mark.parametrize(("code", "shell"), [(3, 3), (255, 255), (-9, 137), (-15, 143)])
def test_exit_codes(code, shell):
    assert job(1, ended=[(0, code, 1.0)]).exit_code == shell


def test_interrupt():
    outcome = job(2)
    outcome.interrupt(signal.SIGINT, 5.0)
    outcome.hear(error(0, 5.1, "", "KeyboardInterrupt"))
    assert (outcome.exit_code, outcome.first_failure()) == (130, None)
    assert failure_report(outcome, "here", 0.0, "") == (
        "superpod-run: interrupted (Ctrl-C); all cards have been ended\n"
    )


def test_interrupt_after_a_failure_does_not_hide_it():
    outcome = job(2, error(0, 5.0), ended=[(0, 1, 5.0)])
    outcome.interrupt(signal.SIGINT, 5.1)
    assert (outcome.exit_code, outcome.interrupted) == (1, None)


def test_failure_of_the_launcher_itself():
    outcome = job(3, ended=[(0, 0, 1.0)])
    outcome.launcher_failed("rank 2 cannot be started: Cannot allocate memory", 1)
    outcome.launcher_failed("later", 2)
    assert outcome.exit_code == 1
    assert failure_report(outcome, "here", 0.0, "").splitlines()[0] == (
        "superpod-run: the job failed: rank 2 cannot be started: Cannot allocate memory"
    )


def test_news_that_make_no_sense_are_left_out():
    outcome = job(1)
    sense = {"operation": "a", "algorithm": "b", "calls": "many"}
    for item in (
        {"event": "up", "rank": 1},
        {"event": "up", "rank": "0"},
        {"event": "error", "rank": 0},
        {"event": "x"},
        {"event": "summary", "rank": 0, "operations": [1, {"operation": 2}, sense]},
    ):
        outcome.hear(item)
    outcome.hear({"event": "first_collective", "rank": 0, "time": "soon"})
    assert outcome.first_failure() is None
    assert outcome.up == 1
    assert outcome.first_collective() is None
    assert outcome.operations == [{"operation": "a", "algorithm": "b", "calls": 0, "bytes": 0, "seconds": 0.0}]


def test_report():
    heard = [error(rank, 3.0, f"rank {rank} heard", "PeerLost", consequence=True) for rank in range(3, 12)]
    outcome = job(14, error(1, 2.5, "bad\nsecond line"), *heard, ended=[(1, 1, 2.6), (2, 0, 1.0), (12, 5, 3.0)])
    assert failure_report(outcome, "here", 0.5, "never shown") == (
        "superpod-run: the first failure: rank 1 (host here, pid 101) raised ValueError: bad\n"
        "  2 s after the start; the job's exit code is 1\n"
        "  | Traceback:\n"
        "  | ValueError: bad\n"
        "  | second line\n"
        "  ranks 0, 13: lost with the launcher's zygote\n"
        "  rank 2: had ended normally\n"
        "  rank 3: PeerLost: rank 3 heard\n"
        "  rank 4: PeerLost: rank 4 heard\n"
        "  rank 5: PeerLost: rank 5 heard\n"
        "  rank 6: PeerLost: rank 6 heard\n"
        "  ranks 7-12: other endings, each in its own words above\n"
    )


def test_report_of_a_card_that_told_nothing():
    outcome = Outcome(2)
    outcome.started(0, 100)
    outcome.ended(0, -4, 1.0)
    assert failure_report(outcome, "here", 0.0, "one\ntwo") == (
        "superpod-run: the first failure: rank 0 (host here, pid 100) was killed by SIGILL before it was up\n"
        "  1 s after the start; the job's exit code is 132\n"
        "  its last lines on stderr:\n"
        "  | one\n"
        "  | two\n"
        "  rank 1: not started\n"
    )


def test_summary_takes_the_most_of_every_number():
    def row(calls, nbytes, seconds, operation="all_reduce"):
        return {"operation": operation, "algorithm": "ring", "calls": calls, "bytes": nbytes, "seconds": seconds}

    outcome = job(2)
    outcome.hear({"event": "first_collective", "rank": 0, "time": 12.0})
    outcome.hear({"event": "first_collective", "rank": 1, "time": 13.0})
    outcome.hear({"event": "summary", "rank": 0, "operations": [row(3, 4096, 0.5), row(1, 8, 0.25, "barrier")]})
    outcome.hear({"event": "summary", "rank": 1, "operations": [row(3, 4096, 0.75)]})
    numbers = summary(outcome, 10.0, 20.0)
    assert numbers == {
        "world_size": 2,
        "exit_code": 0,
        "seconds": 10.0,
        "seconds_to_first_collective": 3.0,
        "first_failure": None,
        "operations": [row(3, 4096, 0.75), row(1, 8, 0.25, "barrier")],
    }
    assert summary_table(numbers) == (
        "superpod-run: 2 cards, first collective after 3 s, 10 s in all\n"
        "  operation   algorithm  calls  bytes  seconds\n"
        "  all_reduce  ring           3  4 KiB   750 ms\n"
        "  barrier     ring           1    8 B   250 ms\n"
    )


def told(rank, calls, seconds, time):
    row = {"operation": "barrier", "algorithm": "tree", "calls": calls, "bytes": calls, "seconds": seconds}
    return [
        {"event": "first_collective", "rank": rank, "time": float(time)},
        {"event": "summary", "rank": rank, "operations": [row]},
    ]


def test_what_a_cards_communicators_tell_adds_up_and_the_first_of_them_was_first():
    outcome = job(2, *told(0, 10, 1.0, 5), *told(1, 10, 1.5, 6), *told(0, 10, 2.0, 8), *told(1, 10, 1.0, 9))
    row = {"operation": "barrier", "algorithm": "tree", "calls": 20, "bytes": 20, "seconds": 3.0}
    assert outcome.operations == [row]
    assert outcome.first_collective() == 6.0
