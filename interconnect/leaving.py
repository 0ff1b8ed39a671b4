"""How a card leaves: a group, or the whole mesh. Also from a signal's handler, in the middle of anything.

A handler that runs in a thread that moves messages, or sleeps for them, cannot wait for that thread: it marks what it
closes, and the interrupted call finds that when it goes on. The link is then released when the interpreter ends.
"""

from __future__ import annotations

import atexit
import contextlib
import time

from superpod.interconnect.group import Group
from superpod.interconnect.trouble import Trouble
from superpod.interconnect.turns import Turns
from superpod.interconnect.wire import Header, Kind, encode

LINGER = 3.0  # seconds that closing may take to deliver what is under way
_LINGER_ABORTED = 0.3  # the same once the launcher has ended the job: everybody has been told, or is out of reach


class Leaving(Trouble):
    """The part of a mesh that ends it."""

    _released = False  # somebody has seen to it that the link is released
    _marked: tuple[int, ...] = ()  # groups that a handler has closed, and whose streams are still there

    def close_group(self, group: Group, *, job: bool = False) -> None:
        """Forget a group and all its streams. Who still waits in it, or uses it later, gets LinkClosed.

        `job`: the card is about to close the mesh.
        """
        if self._held():
            if self._groups.close(group, job=job):
                self._marked = (*self._marked, group.ident)
                self.link.wake()
            return
        with self._turns.lock:
            self._progress()
            self._confess(group)
            if self._groups.close(group, job=job):
                self._marked = (*self._marked, group.ident)
                self._turns.rouse()
            marked, self._marked = self._marked, ()
            for ident in marked:
                self.streams.forget(ident)
                if (farewell := self._groups.farewell(ident)) is not None:
                    for peer in self.link.peers():
                        self.link.post(peer, farewell, b"")

    def close(self) -> None:
        """Leave in order: tell the peers, deliver what is under way, release the link. Idempotent."""
        if self._held():
            self._close_locked()
            self.link.wake()
            atexit.register(self.close)
            return
        with self._turns.lock:
            if self._released:
                return
            self._released = True
            with contextlib.suppress(Exception):  # leaving goes on without what came in last
                self._progress()  # whoever has asked is answered
            for group in self._groups:
                self._confess(group)
            self._groups.part()
            self._close_locked()
            bye = encode(Header(Kind.BYE, 0, 0))
            for peer in self.link.peers():
                self.link.post(peer, bye, b"")
        end = time.monotonic() + LINGER
        while self._turns.anyone_else and time.monotonic() < end:  # whoever waits finds the mesh closed and leaves
            with self._turns.lock:
                self._turns.rouse()
            time.sleep(0.001)
        if self._turns.mine:
            self.link.wake()
            atexit.register(self._release)
        else:
            self._release()

    def _release(self) -> None:
        aborted = self._abort is not None and self._abort.failure() is not None
        self.link.close(_LINGER_ABORTED if aborted else LINGER)
        if self._abort is not None:
            self._abort.close()

    def _close_locked(self) -> None:
        self.closed = True
        self._groups.close_all(self._over)

    def _disown(self) -> None:
        """In a forked child: the connections are the parent's, so nothing can be done here but to say so."""
        self._turns = Turns(self.link)
        self._lock, self._held = self._turns.lock, self._turns.held
        for group in self._groups:
            group.parting = lambda job: None  # it would sign the parent off
        self._over = (
            f"this process was forked from rank {self.rank}, whose connections it cannot use; "
            "make a new communicator or process group"
        )
        self._close_locked()
        self._released = True
