"""Ordered streams of messages with flow control: what a card has been asked to send and receive, and has not finished.

A stream is (peer, group, tag). Each has a window: so many bytes may be under way and not yet consumed by a receive.
Messages that nobody has asked for yet wait in the receiver's memory, never more than a window a stream. Credit goes
back half a window at a time, so that small messages cost no acknowledgements. Streams that lie idle are forgotten when
there are many, so that a tag of its own for every message costs no memory.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from superpod.interconnect.errors import SuperpodError
from superpod.interconnect.link import Buffer, Link
from superpod.interconnect.wire import Header, Kind, encode

Array = npt.NDArray[Any]
StreamKey = tuple[int, int, int]  # (peer, group, tag)

ANYONE = -1  # as a peer: whoever sends first
FRAME_COST = 256  # bytes that a frame takes from its window beyond its payload, so that empty ones are bounded too
_MANY = 1024  # streams; with more of them those that lie idle are looked for


@dataclass(slots=True, eq=False)
class Send:
    """A message on its way out: done when its last segment was handed to the link, which has its own copy by then."""

    key: StreamKey
    header: Header
    payload: memoryview
    offset: int = 0
    done: bool = False

    @property
    def peer(self) -> int:
        return self.key[0]

    @property
    def awaited(self) -> frozenset[int]:
        """The ranks of which one must do something."""
        return frozenset(self.key[:1])

    def call(self) -> str:
        return f"{self.header.text} (#{self.header.sequence})"


@dataclass(slots=True, eq=False)
class Receive:
    """A message that is expected: where it goes, and whether it is added there.

    Attributes:
        key: the stream that it comes on.
        into: 1-D contiguous array that takes it; its bytes are the message's length.
        reduce: ufunc that combines what is there with what arrives; None overwrites.
        sequence, step, text: the receiver's own call, compared with the sender's.
        candidates: the ranks that it may come from, as long as `key` leaves that open.
        error: why it will never be done, though its message has come.
        before: what arrives is the first operand of the reduction: two that exchange must agree which one it is, for
            NaNs, zeros and products of complex numbers are not the same bits the other way round.
    """

    key: StreamKey
    into: Array
    reduce: np.ufunc | None
    sequence: int
    step: int
    text: str
    candidates: frozenset[int] = frozenset()
    got: int = 0
    done: bool = False
    error: SuperpodError | None = None
    before: bool = False

    @property
    def peer(self) -> int:
        return self.key[0]

    @property
    def awaited(self) -> frozenset[int]:
        """The ranks of which one must do something."""
        return self.candidates if self.key[0] == ANYONE else frozenset(self.key[:1])

    def call(self) -> str:
        return f"{self.text} (#{self.sequence})"

    def expects(self, header: Header, nbytes: int) -> bool:
        """Whether a segment of `nbytes` under `header` is the awaited one of the awaited message."""
        return (
            header.offset == self.got
            and header.nbytes == self.into.nbytes
            and header.sequence == self.sequence
            and header.step == self.step
            and (header.text == self.text or self.got > 0)
            and nbytes % self.into.itemsize == 0
        )

    def accept(self, header: Header, payload: Buffer) -> None:
        """Put one segment in its place; the last one makes the receive done."""
        into = self.into
        if payload:
            start = header.offset // into.itemsize
            part = into[start : start + len(payload) // into.itemsize]
            incoming = np.frombuffer(payload, into.dtype)
            if self.reduce is None:
                part[...] = incoming
            else:
                one, other = (incoming, part) if self.before else (part, incoming)
                with np.errstate(all="ignore"):  # an overflow is the result; in whose thread it arises is chance
                    self.reduce(one, other, out=part)
        self.got += len(payload)
        self.done = self.got == into.nbytes


Pending = Send | Receive


@dataclass(slots=True)
class _Outlet:
    outstanding: int = 0  # bytes sent that the receiver has not consumed, with FRAME_COST a frame
    backlog: deque[Send] = field(default_factory=deque)


@dataclass(slots=True)
class _Inlet:
    posted: deque[Receive] = field(default_factory=deque)
    early: deque[tuple[Header, Buffer]] = field(default_factory=deque)
    consumed: int = 0  # bytes consumed that the sender has not been credited with yet
    rest: int = 0  # bytes still to come of a message whose receiver has given up

    @property
    def idle(self) -> bool:
        return not (self.posted or self.early or self.rest)


class Streams:
    """All streams of one card. One thread at a time."""

    def __init__(
        self,
        link: Link,
        segment: int,
        window: int,
        on_mismatch: Callable[[Receive, Header], None],
        on_early: Callable[[int, Header], None],
    ) -> None:
        """`segment` and `window` in bytes; `on_mismatch` hears of a message that is not the one that was awaited.

        `on_early(peer, header)` hears of a numbered message (its tag is below 0) that comes before it is awaited.
        """
        self.bytes_sent = 0  # payload bytes handed to the link
        self.spoilt = False  # some receive has an error
        self._link = link
        self.segment = max(64, segment // 64 * 64)  # bytes; whole elements of every dtype
        self._window = max(window, self.segment)
        # a sender that must wait has more than `window` − one frame under way: all of that must be worth a credit
        self._credit_at = max(1, min(self._window // 2, self._window - self.segment - FRAME_COST))
        self._on_mismatch, self._on_early = on_mismatch, on_early
        self._outlets: dict[StreamKey, _Outlet] = defaultdict(_Outlet)
        self._inlets: dict[StreamKey, _Inlet] = defaultdict(_Inlet)
        self._open: list[Receive] = []  # receives from ANYONE, in the order in which they were posted
        self._sweep_at = _MANY

    def compiled(self) -> dict[str, int]:
        """What compiled code needs to keep to the windows: see _passage.h."""
        return {"window": self._window, "credit_at": self._credit_at, "cost": FRAME_COST}

    def send(self, send: Send) -> None:
        if send.header.nbytes <= self.segment and self.post(send.key, encode(send.header), send.payload):
            send.done = True
            return
        outlet = self._outlets[send.key]
        outlet.backlog.append(send)
        if len(outlet.backlog) == 1:
            self._push(outlet)

    def post(self, key: StreamKey, header: bytes, payload: Buffer) -> bool:
        """Hand a message of one frame to the link; False, and nothing has happened, if it must wait for its turn."""
        outlet, nbytes = self._outlets[key], len(payload)
        under_way = outlet.outstanding + nbytes + FRAME_COST
        if nbytes > self.segment or under_way > self._window or outlet.backlog:
            return False
        outlet.outstanding = under_way
        self._link.post(key[0], header, payload)
        self.bytes_sent += nbytes
        return True

    def receive(self, receive: Receive) -> None:
        """Expect a message on the receive's stream, or one of whichever candidate's that nobody has asked for."""
        if receive.peer == ANYONE:
            self._receive_any(receive)
            return
        if len(self._inlets) >= self._sweep_at:
            self._sweep()
        inlet = self._inlets[receive.key]
        inlet.posted.append(receive)
        if inlet.early and inlet.posted[0] is receive:
            self._match(receive.key, inlet)

    def _receive_any(self, receive: Receive) -> None:
        self._open.append(receive)
        _, group, tag = receive.key
        for peer in sorted(receive.candidates):
            if receive.peer == ANYONE and (inlet := self._inlets.get((peer, group, tag))) is not None:
                self._match((peer, group, tag), inlet)

    def arrive(self, key: StreamKey, header: Header, payload: Buffer) -> None:
        """A DATA frame has come in."""
        inlet = self._inlets[key]
        if inlet.posted and not inlet.early and not inlet.rest:  # most messages: awaited, and in one frame
            receive = inlet.posted[0]
            if receive.expects(header, len(payload)):
                self._accept(inlet, receive, header, payload)
                inlet.consumed += len(payload) + FRAME_COST
                if inlet.consumed >= self._credit_at:
                    self._give_credit(key, inlet)
                return
        inlet.early.append((header, bytes(payload) if self._link.fleeting else payload))
        if key[2] < 0 and not header.offset and not inlet.posted:
            self._on_early(key[0], header)
        self._match(key, inlet)

    def early(self, group: int) -> list[tuple[int, Header]]:
        """The group's numbered messages that nobody has asked for yet: (peer, header of the first frame) each."""
        return [
            (key[0], header)
            for key, inlet in self._inlets.items()
            if key[1] == group and key[2] < 0
            for header, _ in inlet.early
            if not header.offset
        ]

    def credit(self, key: StreamKey, nbytes: int) -> None:
        """The receiver has consumed `nbytes` of the stream."""
        outlet = self._outlets.get(key)
        if outlet is None:
            return
        outlet.outstanding = max(0, outlet.outstanding - nbytes)
        self._push(outlet)
        if not outlet.outstanding and not outlet.backlog:
            del self._outlets[key]

    def cancel(self, pendings: Sequence[Pending]) -> None:
        """Let go of the callers' buffers. What is still to come of a message half received will be dropped; a message
        half sent stays half sent, so whoever cancels a send must fail the group."""
        for p in pendings:
            if isinstance(p, Receive):
                if p.peer == ANYONE:
                    if p in self._open:
                        self._open.remove(p)
                elif (inlet := self._inlets.get(p.key)) and p in inlet.posted:
                    self._give_up(inlet, p)
            elif (outlet := self._outlets.get(p.key)) and p in outlet.backlog:
                outlet.backlog.remove(p)

    def awaited(self, group: int, tag: int) -> list[int]:
        """The peers who must do something for the group's calls with `tag` to go on. Any thread, no lock."""
        late = {key[0] for key, inlet in list(self._inlets.items()) if key[1:] == (group, tag) and inlet.posted}
        late |= {key[0] for key, outlet in list(self._outlets.items()) if key[1:] == (group, tag) and outlet.backlog}
        return sorted(late)

    def forget(self, group: int) -> None:
        """Drop all streams of a group."""
        self._outlets = defaultdict(_Outlet, {k: v for k, v in self._outlets.items() if k[1] != group})
        self._inlets = defaultdict(_Inlet, {k: v for k, v in self._inlets.items() if k[1] != group})
        self._open = [receive for receive in self._open if receive.key[1] != group]

    def _match(self, key: StreamKey, inlet: _Inlet) -> None:
        """Hand early segments to the receives that wait for them."""
        while inlet.early and (inlet.rest or inlet.posted or self._adopt(key, inlet)):
            header, payload = inlet.early[0]
            if inlet.rest:
                inlet.rest -= len(payload)
            elif not (receive := inlet.posted[0]).expects(header, len(payload)):
                self._on_mismatch(receive, header)
                return
            else:
                self._accept(inlet, receive, header, payload)
            inlet.early.popleft()
            inlet.consumed += len(payload) + FRAME_COST
        if inlet.consumed >= self._credit_at:
            self._give_credit(key, inlet)

    def _accept(self, inlet: _Inlet, receive: Receive, header: Header, payload: Buffer) -> None:
        try:
            receive.accept(header, payload)
        except Exception as error:  # noqa: BLE001  it is the receiver's, not whose turn it is to move messages
            receive.error = SuperpodError(
                f"{type(error).__name__} in {receive.call()} with what rank {receive.peer} sent: {error}"
            )
            self.spoilt = True
            self._give_up(inlet, receive)
            inlet.rest -= len(payload)
        if receive.done:
            inlet.posted.popleft()

    def _give_up(self, inlet: _Inlet, receive: Receive) -> None:
        if receive is inlet.posted[0] and (receive.got or receive.error):
            inlet.rest = receive.into.nbytes - receive.got
        inlet.posted.remove(receive)

    def _give_credit(self, key: StreamKey, inlet: _Inlet) -> None:
        peer, group, tag = key
        self._link.post(peer, encode(Header(Kind.CREDIT, group, tag, nbytes=inlet.consumed)), b"")
        inlet.consumed = 0

    def _sweep(self) -> None:
        """Forget the inlets that lie idle, with all credit given; that makes the senders forget the outlets."""
        for key, inlet in [item for item in self._inlets.items() if item[1].idle]:
            if inlet.consumed:
                self._give_credit(key, inlet)
            del self._inlets[key]
        self._sweep_at = max(_MANY, 2 * len(self._inlets))

    def _adopt(self, key: StreamKey, inlet: _Inlet) -> bool:
        """Give the stream, which nobody waits for, the first receive from ANYONE that it may serve."""
        for receive in self._open:
            if key[1:] == receive.key[1:] and key[0] in receive.candidates:
                self._open.remove(receive)
                receive.key = key
                inlet.posted.append(receive)
                return True
        return False

    def _push(self, outlet: _Outlet) -> None:
        """Hand to the link what the stream's window lets through."""
        while outlet.backlog:
            send = outlet.backlog[0]
            size = min(self.segment, send.header.nbytes - send.offset)
            cost = size + FRAME_COST
            if outlet.outstanding and outlet.outstanding + cost > self._window:
                return
            outlet.outstanding += cost
            h = send.header
            head = h if send.offset == 0 else Header(h.kind, h.group, h.tag, h.sequence, h.step, h.nbytes, send.offset)
            self._link.post(send.peer, encode(head), send.payload[send.offset : send.offset + size])
            self.bytes_sent += size
            send.offset += size
            if send.offset == h.nbytes:
                send.done = True
                outlet.backlog.popleft()
