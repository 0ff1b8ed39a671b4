"""Whose turn it is to poll: when several threads wait on one card, the leader sleeps in the link, the others on events.

The leader moves everybody's messages. A leader that is done hands on to one of the others.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from superpod.interconnect.link import Link


class _Bell:
    """What one follower sleeps on. Unlike a threading.Event it can be rung in the midst of its own `wait`."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, seconds: float) -> None:
        self._lock.acquire(timeout=max(seconds, 0))

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._lock.release()


class Turns:
    """The threads that wait on one card. `lock` guards the card's whole state; every call here holds it.

    `held()`: this thread has the lock already, so it is in a signal's handler that has interrupted what may be half
    done, and must not go on. The lock is released whenever the thread sleeps; a handler may then sleep itself.
    """

    def __init__(self, link: Link) -> None:
        self.lock = threading.RLock()  # not to be taken twice, but to know who has it
        self.held: Callable[[], bool] = self.lock._is_owned  # type: ignore[attr-defined]  # as Condition asks
        self.leading = False  # somebody sleeps in the link
        self._leader = 0  # which thread, then
        self._link = link
        self._followers: list[_Bell] = []

    @property
    def anyone_else(self) -> bool:
        """Whether any other thread sleeps. No lock needed."""
        me = threading.get_ident()
        return (self.leading and self._leader != me) or any(bell.thread != me for bell in list(self._followers))

    @property
    def mine(self) -> bool:
        """Whether this thread sleeps in the link, below the handler that asks. No lock needed."""
        return self.leading and self._leader == threading.get_ident()

    def sleep(self, seconds: float) -> bool:
        """Give the lock away until something may have happened. True if a descriptor that the link watches fired."""
        me, interrupted = threading.get_ident(), self.leading
        if interrupted and self._leader != me:
            self._follow(seconds)
            return False
        self.leading, self._leader = True, me
        try:  # as in `released`, without the price of a context manager
            self.lock.release()
            return self._link.wait(seconds)
        finally:
            self.lock.acquire()
            self.leading = interrupted
            if interrupted:  # what it sleeps on may be gone
                self._link.wake()

    def _follow(self, seconds: float) -> None:
        bell = _Bell()
        self._followers.append(bell)
        try:
            with self.released():
                bell.wait(seconds)
        finally:
            self._followers.remove(bell)

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """A block in which this thread does not hold the lock."""
        try:  # an interrupt may come as soon as the lock is free
            self.lock.release()
            yield
        finally:
            self.lock.acquire()

    def rouse(self) -> None:
        """Let everybody who sleeps look again."""
        for bell in self._followers:
            bell.ring()
        if self.leading:
            self._link.wake()

    def hand_on(self) -> None:
        """This thread stops waiting: wake one that can lead."""
        if self._followers and not self.leading:
            self._followers[0].ring()
