"""Handles of calls under way, and the thread that carries asynchronous collectives out, in issue order."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from superpod.collectives.recorder import DONE, FAILED, POSTED, WAITING
from superpod.interconnect.errors import DeadlineExceeded, LinkClosed, SuperpodError
from superpod.interconnect.forked import call_in_child
from superpod.interconnect.group import Group, again
from superpod.interconnect.mesh import Mesh
from superpod.interconnect.streams import Pending

log = logging.getLogger("superpod")


class Work:
    """A call under way on this card. Its arrays must not be touched before `wait` has returned."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.result: Any = None
        self._error: BaseException | None = None
        self._begun = self._ended = False
        self._carrier = 0  # the thread that carries it out
        self._end: threading.Event | None = None  # made by the first who has to wait: most works end before that
        self._callbacks: list[Callable[[Work], None]] = []
        self._lock = threading.RLock()  # a signal's handler may ask in the middle of anything

    def wait(self, timeout: float | None = None) -> Any:
        """The call's result, waiting for it at most `timeout` seconds.

        Raises what the call raised (a fresh copy each time), or DeadlineExceeded; the call goes on in that case.
        """
        if not self._ended and not self._await_end(timeout):
            raise DeadlineExceeded(_unfinished(self.what, timeout))
        if self._error is not None:
            raise again(self._error) if isinstance(self._error, SuperpodError) else self._error
        return self.result

    def _await_end(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until the call has ended; whether it has."""
        with self._lock:
            if self._ended:
                return True
            if self._carrier == threading.get_ident():
                raise SuperpodError(
                    f"a signal's handler interrupted {self.what} at its end, and cannot wait for it; let it set a flag"
                )
            end = self._end = self._end or threading.Event()
        return end.wait(timeout if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def is_completed(self) -> bool:
        """Whether `wait` would return or raise at once."""
        return self._ended

    def exception(self) -> BaseException | None:
        """What the call raised, once it is completed."""
        return self._error

    def when_done(self, callback: Callable[[Work], None]) -> None:
        """Call `callback(self)` once the call has ended, at once if it has; from whichever thread ended it.

        What the callback raises in another thread than this one is logged.
        """
        with self._lock:
            if not self._ended:
                self._callbacks.append(callback)
                return
        callback(self)

    def carry_out(self, action: Callable[[], Any]) -> None:
        """Run the call, keep its result or error, and tell whoever waits. Only the first thread to come does it."""
        with self._lock:
            if self._begun:
                return
            self._begun, self._carrier = True, threading.get_ident()
        try:
            self.result = action()
        except BaseException as error:  # noqa: BLE001  it is raised in whoever waits
            self._error = error
        try:
            self._conclude()
        finally:  # also if a signal's handler raises something there
            with self._lock:
                self._ended = True
                if self._end is not None:
                    self._end.set()
                callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except BaseException as error:  # a SystemExit, too, would end the thread that others wait for
                log.exception("a callback of %s failed", self.what)
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    raise  # a Ctrl-C that came in the middle of it

    def _conclude(self) -> None:
        """The call has ended; nobody has been told yet."""

    def disown(self) -> None:
        """In a forked child: it is the parent's, so nothing here will ever end it."""
        self._lock, self._end, self._begun, self._callbacks = threading.RLock(), None, True, []
        self._error = LinkClosed(
            f"{self.what} is a call of the process that this one was forked from; make a new communicator here"
        )
        self._ended = True


def _unfinished(what: str, timeout: float | None) -> str:
    return f"{what} has not finished within {timeout} s; it goes on"


def _cannot(_waits: bool) -> bool:
    return False


class MessageWork(Work):
    """A send or receive under way: no thread carries it, whoever waits does."""

    def __init__(
        self,
        what: str,
        mesh: Mesh,
        group: Group,
        pendings: Sequence[Pending],
        seconds: float,
        finish: Callable[[], Any],
        note: Callable[[int], None],
    ) -> None:
        """`finish` makes the result once all `pendings` are done; `seconds` is how long a wait may take.

        `note` is told of the work's states, see recorder.py.
        """
        super().__init__(what)
        self._note = note
        self._mesh, self._group, self._pendings, self._seconds = mesh, group, pendings, seconds
        self._finish = finish
        self._watched = False
        self.fetch: Callable[[bool], bool] = _cannot  # a receive's short way, at once or within moments

    def wait(self, timeout: float | None = None) -> Any:
        """As Work.wait. Without a timeout, running out of the group's own time is a failure of the group."""
        if not self._ended:
            self._mesh.refuse_interrupted()
        if not self._ended and not self._wait_for(self._seconds if timeout is None else timeout):
            if timeout is not None:
                if not self._ended:
                    raise DeadlineExceeded(_unfinished(self.what, timeout))
                return super().wait()
            self._note(WAITING)  # so that this card says what it waits for
            self.carry_out(partial(self._fail, self._mesh.too_late(self._pendings, self._seconds, self.what)))
        return super().wait()

    def _wait_for(self, seconds: float) -> bool:
        self._note(WAITING)
        ended = self._advance(seconds)
        if not ended:
            self._note(POSTED)
        return ended

    def _conclude(self) -> None:
        self._note(DONE if self._error is None else FAILED)

    def is_completed(self) -> bool:
        if self._ended or self._carrier == threading.get_ident() or self._mesh.is_interrupted():
            return self._ended
        return self._advance(0.0)

    def when_done(self, callback: Callable[[Work], None]) -> None:
        """As Work.when_done; if nothing has moved the message by then, a thread of its own does."""
        super().when_done(callback)
        if not self._ended and not self._watched:
            self._watched = True
            threading.Thread(target=self._watch, name=f"superpod {self.what}", daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(Exception):  # it is the work's, and raised in whoever waits for it
            self.wait()

    def _advance(self, seconds: float) -> bool:
        """Whether the call has ended, after moving messages for at most `seconds`. An interrupt leaves it going on."""
        try:
            if not self.fetch(seconds > 0) and not self._mesh.advance(self._pendings, self._group, seconds=seconds):
                return False
        except SuperpodError as error:
            self.carry_out(partial(self._fail, error))
        else:
            self.carry_out(self._finish)
        return self._ended or self._await_end()  # another thread may just be carrying it out

    def _fail(self, error: SuperpodError) -> None:
        self._mesh.cancel(self._pendings)
        self._mesh.fail_group(self._group, error, tell={rank for p in self._pendings for rank in p.awaited})
        raise error


class Worker:
    """A thread that carries out works in the order in which they were put; started when it is first needed.

    A callback of a work runs in that thread and may put works and wait for them: another thread then goes on with the
    queue, and the callback's ends with it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Work, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None  # that goes on with the queue
        self._threads: set[threading.Thread] = set()  # with those whose callbacks have not ended
        self._lock = threading.RLock()
        self._stopped = False
        self._unended: set[Work] = set()  # works that were put
        self.outstanding = 0  # how many those are
        call_in_child(self._disown)

    def _disown(self) -> None:
        """In a forked child: the thread is the parent's, and so is what it has to do."""
        self._lock, self._thread, self.outstanding = threading.RLock(), None, 0
        self._threads, self._queue = set(), queue.SimpleQueue()
        for work in self._unended:
            work.disown()
        self._unended = set()

    def put(self, work: Work, action: Callable[[], Any]) -> None:
        """Queue the work; after `stop` it is carried out, to fail in a closed group, by the caller."""
        with self._lock:
            if not self._stopped:
                before = self._thread
                if before is None or self.is_current_thread():
                    decided = threading.Event()
                    thread = threading.Thread(target=self._loop, args=(decided,), name=self._name, daemon=True)
                    thread.start()
                    try:
                        if self._thread is before:  # no signal's handler has put something meanwhile
                            self._thread = thread
                            self._threads.add(thread)
                    finally:
                        decided.set()
                self.outstanding += 1
                self._unended.add(work)
                self._queue.put((work, action))
                return
        work.carry_out(action)

    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def _loop(self, decided: threading.Event) -> None:
        decided.wait()
        while self.is_current_thread() and (item := self._queue.get()) is not None:
            work, action = item
            try:
                work.carry_out(action)
            finally:
                with self._lock:
                    self.outstanding -= 1
                    self._unended.discard(work)
            del item, work, action  # or the last call's arrays live until the next call
        with self._lock:
            self._threads.discard(threading.current_thread())

    def stop(self, timeout: float) -> None:
        """End after what was put before; waits at most `timeout` seconds for it, a callback not at all. Idempotent."""
        with self._lock:
            stopped, self._stopped = self._stopped, True
            if not stopped:
                self._queue.put(None)
            threads = set(self._threads)
        if threading.current_thread() in threads:
            return
        until = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
