"""Whose turn it is to poll: when several threads wait on one card, the leader sleeps in the link, the others on events.

The leader moves everybody's messages. A leader that is done hands on to one of the others.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from superpod.interconnect.link import Link


class Turns:
    """The threads that wait on one card. `lock` guards the card's whole state; every call here holds it."""

    def __init__(self, link: Link) -> None:
        self.lock = threading.Lock()
        self.leading = False  # somebody sleeps in the link
        self._link = link
        self._followers: list[threading.Event] = []

    @property
    def anyone(self) -> bool:
        """Whether anybody sleeps."""
        return self.leading or bool(self._followers)

    def sleep(self, seconds: float) -> bool:
        """Give the lock away until something may have happened. True if a descriptor that the link watches fired."""
        if self.leading:
            self._follow(seconds)
            return False
        self.leading = True
        try:  # as in `released`, without the price of a context manager
            self.lock.release()
            return self._link.wait(seconds)
        finally:
            self.lock.acquire()
            self.leading = False

    def _follow(self, seconds: float) -> None:
        event = threading.Event()
        self._followers.append(event)
        try:
            with self.released():
                event.wait(seconds)
        finally:
            self._followers.remove(event)

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
        for event in self._followers:
            event.set()
        if self.leading:
            self._link.wake()

    def hand_on(self) -> None:
        """This thread stops waiting: wake one that can lead."""
        if self._followers and not self.leading:
            self._followers[0].set()
