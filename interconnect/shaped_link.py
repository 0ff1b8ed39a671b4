"""A link that takes its time: frames arrive when they would on a machine, latency and bandwidth scaled to be felt.

It wraps any other link. Whoever posts a frame books the links of its way in a calendar that all cards share: each one
carries what crosses it one after the other, and the frame is there when the last of them has carried it and its latency
has passed. That moment travels in front of the frame's header; the receiver takes the frame from the link below when it
comes, and shows it when it is due. So nobody has to be awake to send, and a busy link queues.

How well that went is counted (`report`): a host that is too slow delivers late, and it is said.
"""

from __future__ import annotations

import heapq
import math
import os
import struct
import time
from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from superpod.interconnect.calendar import Calendar
from superpod.interconnect.errors import BadFrame
from superpod.interconnect.link import Arrival, Broken, Buffer, Link, Refused
from superpod.interconnect.topology_faults import Wires
from superpod.interconnect.wires import FloatArray, IntArray

_STAMP = struct.Struct("<dd")  # when it was posted, when it is due
_LONGEST = 3600.0  # seconds from one to the other; more is no stamp
_FINE = 0.0002  # seconds; what is left to wait for is slept through at once when it is below a millisecond and this
_EARLY = 0.0001  # seconds: so much later a sleeper comes round on a host of two cores, so the rest is yielded through
TOLERANCE = 0.1  # of what was asked for: a frame within it counts as on time


@dataclass(frozen=True, slots=True)
class Way:
    """From one card to another: its links, seconds that each works for a byte, latency [s]; all scaled."""

    links: IntArray
    seconds: FloatArray
    latency: float


class Roads:
    """The ways between the cards of ranks on a machine whose times are `scale` times as long."""

    def __init__(self, wires: Wires, cards: IntArray, scale: float) -> None:
        """`cards`: the card of each rank."""
        self._wires, self._cards, self._scale = wires, cards, scale
        self._ways: dict[tuple[int, int], Way] = {}

    def way(self, source: int, target: int) -> Way:
        """The way from one rank to another; raises InvalidValue when a cut leaves none."""
        key = (source, target)
        if key not in self._ways:
            ends = (self._cards[[source]], self._cards[[target]])
            load, latency = self._wires.carry(*ends, np.ones(1))
            links = np.flatnonzero(load)
            seconds = self._scale * load[links] / self._wires.rate[links]
            self._ways[key] = Way(links, seconds, self._scale * latency)
        return self._ways[key]


class ShapedLink:
    """A card's end. Satisfies the Link contract."""

    def __init__(self, inner: Link, roads: Roads, calendar: Calendar) -> None:
        """Take over `inner`, which carries the frames."""
        self.name, self.rank, self.fleeting = inner.name, inner.rank, inner.fleeting
        self._inner, self._roads, self._calendar = inner, roads, calendar
        self._due: dict[int, float] = {}  # peer → when the last frame to it is due: they keep their order
        self._held: list[tuple[float, int, float, Arrival | Broken]] = []  # heap of (due, serial, posted, what)
        self._last: dict[int, float] = {}  # peer → when the last frame of its that was held is due
        self._holds: Counter[int] = Counter()  # peer → how many of its frames are held
        self._serials = count()
        self._since = math.inf  # when this card began to wait for what it now takes
        self._frames = self._on_time = 0
        self._asked = self._took = 0.0
        self.connect, self.reaches, self.peers = inner.connect, inner.reaches, inner.peers
        self.wake, self.watch = inner.wake, inner.watch

    @property
    def address(self) -> str:
        return self._inner.address

    def post(self, peer: int, header: bytes, payload: Buffer) -> None:
        self._since = math.inf
        now, way = time.monotonic(), self._roads.way(self.rank, peer)
        carried = self._calendar.reserve(way.links, way.seconds * len(payload), now) if len(payload) else now
        due = self._due[peer] = max(carried + way.latency, self._due.get(peer, 0.0))
        self._inner.post(peer, _STAMP.pack(now, due) + header, payload)

    def take(self) -> Arrival | Refused | Broken | None:
        while not self._held or self._held[0][0] > time.monotonic():
            event = self._inner.take()
            if event is None:
                self._since = math.inf
                return None
            if type(event) is Arrival:
                event = self._received(event)
            elif isinstance(event, Broken) and self._holds[event.peer]:  # it comes after what the peer sent before
                due = self._last[event.peer]
                heapq.heappush(self._held, (due, next(self._serials), due, event))
                continue
            if event is not None:
                return event
        due, _, posted, what = heapq.heappop(self._held)
        if isinstance(what, Arrival):
            self._holds[what.peer] -= 1
            self._count(posted, due)
        return what

    def _received(self, arrival: Arrival) -> Arrival | Refused | None:
        """The frame without its stamp if it is due; else it is kept."""
        now, header = time.monotonic(), memoryview(arrival.header)
        posted, due = _STAMP.unpack(header[: _STAMP.size]) if len(header) >= _STAMP.size else (math.nan, math.nan)
        if not (posted <= now and 0 <= due - posted < _LONGEST):
            return Refused(
                BadFrame(f"frame from rank {arrival.peer} does not say when it is due; are its links shaped?")
            )
        if due <= now and not self._holds[arrival.peer]:
            self._count(posted, due)
            return Arrival(arrival.peer, header[_STAMP.size :], arrival.payload)
        payload = bytes(arrival.payload) if self.fleeting else arrival.payload
        frame = Arrival(arrival.peer, bytes(header[_STAMP.size :]), payload)
        heapq.heappush(self._held, (due, next(self._serials), posted, frame))
        self._last[arrival.peer] = due
        self._holds[arrival.peer] += 1
        if self._held[0][3] is frame:
            self._inner.wake()  # whoever sleeps would sleep too long
        return None

    def _count(self, posted: float, due: float) -> None:
        """Was it on time? Only where the card was waiting when it was due: else nobody can tell."""
        if self._since <= due:
            took, asked = time.monotonic() - posted, due - posted
            self._frames += 1
            self._on_time += took <= asked * (1 + TOLERANCE)
            self._asked += asked
            self._took += took

    def wait(self, seconds: float) -> bool:
        now = time.monotonic()
        self._since = min(self._since, now)
        rest = self._held[0][0] - now if self._held else math.inf
        if rest >= seconds:
            return self._inner.wait(seconds)
        whole = math.floor((rest - _FINE) * 1000) / 1000  # links below count in milliseconds, and round up
        if whole > 0:
            return self._inner.wait(whole)
        if rest > _EARLY:
            time.sleep(rest - _EARLY)
        due = now + rest
        while time.monotonic() < due:
            os.sched_yield()
        return False

    def report(self) -> dict[str, Any]:
        """Of the frames that this card waited for: how many, how many on time, and what all of them together should
        have taken and took [s]."""
        return {"frames": self._frames, "on_time": self._on_time, "asked": self._asked, "took": self._took}

    def close(self, linger: float) -> None:
        self._inner.close(linger)
        self._calendar.close()
