"""ZeroMQ contexts that end with their owner, even if nobody closes it.

pyzmq ends a context that is garbage, and waits until its sockets are closed. If they are garbage with it, nobody closes
them, and whichever line of the program the collector ran in never ends. So a context, its sockets and what holds them
stay in reach until their owner is garbage; then they are closed one after the other.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

import zmq


class OwnContext:
    """Attributes: context: with one thread, which is the owner's alone."""

    def __init__(self, owner: object) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._kept: list[Callable[[], object]] = []
        self._finalizer = weakref.finalize(owner, _end, os.getpid(), self.context, self._kept)
        self._finalizer.atexit = False

    def keep(self, *closings: Callable[[], object]) -> None:
        """What closes the sockets of the context and whatever else is left, but nothing that knows the owner."""
        self._kept.extend(closings)

    def is_closed_by_owner(self) -> None:
        """From now on the owner sees to it."""
        self._finalizer.detach()
        self._kept.clear()


def _end(pid: int, context: zmq.Context[zmq.Socket[bytes]], kept: list[Callable[[], object]]) -> None:
    if os.getpid() != pid:  # a forked child must leave its parent's context alone
        return
    for close in kept:
        close()
    context.destroy(linger=0)
