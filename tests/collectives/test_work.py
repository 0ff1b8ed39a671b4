"""Handles of calls and the thread that carries them out, without any card."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from superpod.collectives.work import Work, Worker
from superpod.interconnect.errors import DeadlineExceeded, LinkClosed, PeerLost

LONG = 30.0  # seconds that nothing here takes


def test_only_the_first_to_come_carries_a_call_out() -> None:
    work, seen = Work("a call"), []
    work.when_done(seen.append)
    for result in (1, 2):
        work.carry_out(lambda result=result: result)  # type: ignore[misc]
    assert (work.wait(), seen) == (1, [work])


def test_a_wait_that_runs_out_of_time() -> None:
    work = Work("a call")
    assert not work.is_completed()
    with pytest.raises(DeadlineExceeded, match=r"^a call has not finished within 0\.01 s; it goes on$"):
        work.wait(0.01)
    work.carry_out(lambda: 7)
    assert work.is_completed()
    assert work.wait(0.01) == 7


def test_each_wait_raises_a_copy_of_its_own_of_superpods_errors_and_others_as_they_are() -> None:
    for error, same in ((PeerLost("rank 3 left"), False), (OSError(28, "No space left on device"), True)):
        work = Work("a call")

        def fail(error: Exception = error) -> None:
            raise error

        work.carry_out(fail)
        for _ in range(2):
            with pytest.raises(type(error), match="left") as caught:
                work.wait()
            assert (caught.value is error) is same
        assert work.exception() is error


def test_the_worker_keeps_the_order_and_counts_what_is_outstanding() -> None:
    worker, seen, begin = Worker("a worker"), [], threading.Event()
    works = [Work(f"{i}") for i in range(50)]
    worker.put(first := Work("first"), lambda: begin.wait(LONG))
    for i, work in enumerate(works):
        worker.put(work, lambda i=i: seen.append((i, worker.is_current_thread())))  # type: ignore[misc]
    assert worker.outstanding == 51
    assert not worker.is_current_thread()
    begin.set()
    works[-1].wait(LONG)
    assert first.wait(LONG) is True
    assert seen == [(i, True) for i in range(50)]
    worker.stop(LONG)
    assert worker.outstanding == 0


def test_a_callback_that_fails_does_not_stop_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    worker, begin, first, second = Worker("a worker"), threading.Event(), Work("first"), Work("second")
    first.when_done(lambda _: 1 // 0)
    worker.put(first, lambda: begin.wait(LONG))
    worker.put(second, lambda: 2)
    begin.set()
    assert second.wait(LONG) == 2
    assert "a callback of first failed" in caplog.text
    worker.stop(LONG)


def test_stopping_waits_for_what_was_put_before_but_not_for_ever() -> None:
    worker, begin, works = Worker("a worker"), threading.Event(), [Work("first"), Work("second")]
    for work in works:
        worker.put(work, lambda: begin.wait(LONG))
    worker.stop(0.01)
    assert not works[0].is_completed()
    begin.set()
    worker.stop(LONG)
    assert all(work.is_completed() for work in works)


def test_what_is_put_after_the_stop_is_carried_out_by_who_puts_it() -> None:
    worker, late = Worker("a worker"), Work("late")
    worker.stop(LONG)
    worker.put(late, threading.current_thread)
    assert late.wait(0) is threading.current_thread()


def test_a_call_that_the_worker_makes_after_the_stop_is_not_waited_for_in_vain() -> None:
    worker, work, inner, stopped = Worker("a worker"), Work("outer"), Work("inner"), threading.Event()

    def outer() -> Any:
        assert stopped.wait(LONG)
        worker.put(inner, lambda: 5)
        return inner.wait(LONG)

    worker.put(work, outer)
    worker.stop(0.01)
    stopped.set()
    assert work.wait(LONG) == 5


def test_a_callback_may_put_works_and_wait_for_them_and_the_order_stays() -> None:
    """As torch's PowerSGD hook does, a level deeper still."""
    worker, seen = Worker("a worker"), []
    first, last, ended = Work("first"), Work("last"), threading.Event()

    def nested(depth: int) -> None:
        inner = Work(f"inner {depth}")
        if depth:
            inner.when_done(lambda _: nested(depth - 1))
        worker.put(inner, lambda: seen.append(depth))
        inner.wait(LONG)
        if not depth:
            ended.set()

    begin = threading.Event()
    first.when_done(lambda _: nested(2))
    worker.put(first, lambda: begin.wait(LONG))
    worker.put(last, lambda: seen.append("last"))
    begin.set()
    assert ended.wait(LONG)
    last.wait(LONG)
    assert seen == ["last", 2, 1, 0]
    worker.stop(LONG)
    assert worker.outstanding == 0


def test_stopping_waits_for_callbacks_that_another_thread_went_on_without() -> None:
    worker, first, inner, going_on, hold = Worker("a worker"), Work("first"), Work("inner"), [], threading.Event()

    def callback(_: Work) -> None:
        worker.put(inner, lambda: 5)
        going_on.append(inner.wait(LONG))
        hold.wait(LONG)

    begin = threading.Event()
    first.when_done(callback)
    worker.put(first, lambda: begin.wait(LONG))
    begin.set()
    inner.wait(LONG)
    worker.stop(0.01)
    assert worker.outstanding == 1  # its time was up
    hold.set()
    worker.stop(LONG)
    assert (worker.outstanding, going_on) == (0, [5])


def test_a_callback_that_exits_does_not_end_the_thread_of_the_calls_to_come(caplog: pytest.LogCaptureFixture) -> None:
    def leave(_: Work) -> None:
        raise SystemExit(3)

    worker, first, second = Worker("worker"), Work("first"), Work("second")
    first.when_done(leave)
    for work in (first, second):
        worker.put(work, lambda: 1)
    assert second.wait(LONG) == 1
    worker.stop(LONG)
    assert "a callback of first failed" in caplog.text


def test_a_ctrl_c_in_a_callback_is_not_lost() -> None:
    def interrupt(_: Work) -> None:
        raise KeyboardInterrupt

    work = Work("a call")
    work.when_done(interrupt)
    with pytest.raises(KeyboardInterrupt):
        work.carry_out(lambda: 1)
    assert work.is_completed()


@pytest.mark.parametrize("timeout", [1e12, float("inf")])
def test_a_wait_may_be_longer_than_a_lock_can_wait(timeout: float) -> None:
    work = Work("a call")
    threading.Timer(0.01, work.carry_out, [lambda: 7]).start()
    assert work.wait(timeout) == 7


def test_a_worker_in_a_forked_child_is_free_and_idle() -> None:
    worker, begun, over = Worker("worker"), threading.Event(), threading.Event()

    def action() -> None:
        begun.set()
        over.wait(LONG)

    parents = Work("the parent's")
    worker.put(parents, action)
    assert begun.wait(LONG)
    with worker._lock:
        pid = os.fork()
        if pid == 0:
            mine = Work("the child's")
            free = worker.outstanding == 0 and worker._lock.acquire(timeout=1)
            if free:
                worker._lock.release()
                worker.put(mine, lambda: 1)
            refused = False
            try:
                parents.wait(LONG)
            except LinkClosed as error:
                refused = str(error).startswith("the parent's is a call of the process that this one was forked from")
            os._exit(0 if free and refused and mine.wait(LONG) == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    over.set()
    worker.stop(LONG)


def test_a_handler_that_puts_a_work_while_the_worker_starts_its_thread_keeps_the_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two threads would carry works out side by side."""
    worker, log = Worker("works"), list[tuple[str, str]]()
    make, signals = threading.Thread.__init__, iter([signal.SIGUSR1])

    def run(name: str) -> Callable[[], None]:
        def action() -> None:
            log.append(("begin", name))
            time.sleep(0.05)
            log.append(("end", name))

        return action

    def made(self: threading.Thread, *args: Any, **how: Any) -> None:
        for number in signals:
            signal.raise_signal(number)
        make(self, *args, **how)

    inner, outer = Work("inner"), Work("outer")
    monkeypatch.setattr(threading.Thread, "__init__", made)
    before = signal.signal(signal.SIGUSR1, lambda *_: worker.put(inner, run("inner")))
    try:
        worker.put(outer, run("outer"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    for work in (inner, outer):
        work.wait(20)
    worker.stop(20)
    assert log == [("begin", "inner"), ("end", "inner"), ("begin", "outer"), ("end", "outer")]


def test_a_worker_that_could_start_no_thread_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, work = Worker("works"), Work("a call")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            worker.put(Work("another call"), lambda: None)
    worker.put(work, lambda: 5)
    assert work.wait(LONG) == 5
    worker.stop(LONG)


def test_an_interrupt_at_the_end_of_a_call_leaves_nobody_waiting() -> None:
    class Interrupted(Work):
        def _conclude(self) -> None:
            raise KeyboardInterrupt

    work = Interrupted("a call")
    with pytest.raises(KeyboardInterrupt):
        work.carry_out(lambda: 5)
    assert work.wait(LONG) == 5
