"""Handles of calls under way, and the thread that carries asynchronous collectives out, in issue order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from superpod.interconnect.errors import DeadlineExceeded, SuperpodError
from superpod.interconnect.group import Group, again
from superpod.interconnect.mesh import Mesh
from superpod.interconnect.streams import Pending


class Work:
    """A call under way on this card. Its arrays must not be touched before `wait` has returned."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.result: Any = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._callbacks: list[Callable[[Work], None]] = []
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> Any:
        """The call's result, waiting for it at most `timeout` seconds.

        Raises what the call raised (a fresh copy each time), or DeadlineExceeded; the call goes on in that case.
        """
        if not self._done.wait(timeout):
            raise DeadlineExceeded(f"{self.what} has not finished within {timeout} s; it goes on")
        if self._error is not None:
            raise again(self._error) if isinstance(self._error, SuperpodError) else self._error
        return self.result

    def is_completed(self) -> bool:
        """Whether `wait` would return or raise at once."""
        return self._done.is_set()

    def exception(self) -> BaseException | None:
        """What the call raised, once it is completed."""
        return self._error

    def when_done(self, callback: Callable[[Work], None]) -> None:
        """Call `callback(self)` once the call has ended, at once if it has; from whichever thread ended it."""
        with self._lock:
            if not self._done.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def carry_out(self, action: Callable[[], Any]) -> None:
        """Run the call, keep its result or error, and tell whoever waits."""
        try:
            self.result = action()
        except BaseException as error:  # noqa: BLE001  it is raised in whoever waits
            self._error = error
        with self._lock:
            self._done.set()
        for callback in self._callbacks:
            callback(self)


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
    ) -> None:
        """`finish` makes the result once all `pendings` are done; `seconds` is how long a wait may take."""
        super().__init__(what)
        self._mesh, self._group, self._pendings, self._seconds = mesh, group, pendings, seconds
        self._outcome = finish

    def wait(self, timeout: float | None = None) -> Any:
        if not self._done.is_set():
            seconds = self._seconds if timeout is None else timeout
            self.carry_out(lambda: self._finish(seconds))
        return super().wait(0)

    def is_completed(self) -> bool:
        if not self._done.is_set() and self._mesh.test(self._pendings, self._group):
            self.carry_out(lambda: self._finish(0.0))
        return self._done.is_set()

    def _finish(self, seconds: float) -> Any:
        self._mesh.wait(self._pendings, self._group, seconds=seconds, what=self.what)
        return self._outcome()


class Worker:
    """One thread that carries out works in the order in which they were put; started when it is first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Work, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.outstanding = 0  # works that were put and have not ended

    def put(self, work: Work, action: Callable[[], Any]) -> None:
        with self._lock:
            self.outstanding += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
                self._thread.start()
        self._queue.put((work, action))

    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def _loop(self) -> None:
        while (item := self._queue.get()) is not None:
            work, action = item
            try:
                work.carry_out(action)
            finally:
                with self._lock:
                    self.outstanding -= 1
            del item, work, action  # or the last call's arrays live until the next call

    def stop(self, timeout: float) -> None:
        """End after what was put before; waits at most `timeout` seconds for it."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            if thread is not threading.current_thread():
                thread.join(timeout)
