"""Cards as threads of one process, frames as list items: deterministic, the tests' link, and a verified one."""

from __future__ import annotations

import select
import threading
import time
from collections import deque

from superpod.interconnect.link import Arrival, Broken, Buffer, Refused

Event = Arrival | Refused | Broken


class MemoryFabric:
    """What joins the memory links of `world_size` cards."""

    def __init__(self, world_size: int) -> None:
        self.links = [MemoryLink(self, rank) for rank in range(world_size)]


class MemoryLink:
    """A card's end of a MemoryFabric. Satisfies the Link contract."""

    name = "memory"
    fleeting = False

    def __init__(self, fabric: MemoryFabric, rank: int) -> None:
        self.rank = rank
        self._fabric = fabric
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._woken = False
        self._peers: set[int] = set()
        self._broken: set[int] = set()
        self._watched: list[int] = []
        self._closed = False

    @property
    def address(self) -> str:
        return f"memory:{self.rank}"

    def connect(self, peer: int, address: str) -> None:
        self._peers.add(peer)
        other = self._fabric.links[peer]
        other._peers.add(self.rank)
        if other._closed:
            self.push(Broken(peer, "is gone: nobody listens at its address"))

    def reaches(self, peer: int) -> bool:
        return peer in self._peers

    def peers(self) -> list[int]:
        return sorted(self._peers)

    def post(self, peer: int, header: bytes, payload: Buffer) -> None:
        self._fabric.links[peer].push(Arrival(self.rank, header, bytes(payload)))

    def push(self, event: Event) -> None:
        """Let `event` happen at this card; tests use it for what a healthy peer would never send."""
        with self._changed:
            if self._closed:
                return
            if isinstance(event, Broken):
                if event.peer in self._broken:
                    return
                self._broken.add(event.peer)
            self._events.append(event)
            self._changed.notify_all()

    def take(self) -> Event | None:
        return self._events.popleft() if self._events else None

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        with self._changed:
            while not self._events and not self._woken and (rest := end - time.monotonic()) > 0:
                if self._readable():
                    return True
                self._changed.wait(min(rest, 0.02) if self._watched else rest)
            self._woken = False
        return False

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def watch(self, fd: int) -> None:
        self._watched.append(fd)

    def _readable(self) -> bool:
        ready = select.select(self._watched, [], [], 0)[0] if self._watched else []
        self._watched = [fd for fd in self._watched if fd not in ready]
        return bool(ready)

    def close(self, linger: float) -> None:
        with self._changed:
            self._closed = True
        for peer in self.peers():
            self._fabric.links[peer].push(Broken(self.rank))
