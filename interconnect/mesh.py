"""One card's view of the others: peers on demand, messages in ordered streams, deadlines, failure.

The caller is the engine: there is no progress thread. Whoever waits, moves everybody's messages (see turns.py). What
happens when something goes wrong is in trouble.py.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from superpod.interconnect.control import AbortFlag
from superpod.interconnect.elsewhere import Elsewhere
from superpod.interconnect.errors import (
    BadFrame,
    DeadlineExceeded,
    InvalidValue,
    SuperpodError,
)
from superpod.interconnect.forked import call_in_child
from superpod.interconnect.group import Group, Groups, ProbeHandler, error_from
from superpod.interconnect.leaving import Leaving
from superpod.interconnect.link import Arrival, Broken, Buffer, Link, Refused
from superpod.interconnect.passage import NO_PASSAGE, NoPassage, Passage, near_link
from superpod.interconnect.peers import Peers, Refusals
from superpod.interconnect.rendezvous import AddressBook
from superpod.interconnect.streams import ANYONE, Array, Pending, Receive, Send, StreamKey, Streams
from superpod.interconnect.turns import Turns
from superpod.interconnect.wire import Header, Kind, decode

PROBE_AFTER = 0.25  # seconds of waiting before a card tells its peers what it awaits from them
_SLICE = 1.0  # seconds; the longest sleep between two looks at deadline and failures


class Mesh(Elsewhere, Leaving):
    """The card's end of the interconnect. Every public call may come from any thread."""

    def __init__(
        self,
        link: Link,
        book: AddressBook,
        *,
        segment: int = 1 << 20,
        window: int = 4 << 20,
        patience: float = 1800.0,
        abort: AbortFlag | None = None,
    ) -> None:
        """Take over `link`.

        Args:
            book: where the peers' addresses stand.
            segment: a large message travels in frames of so many bytes.
            window: bytes that may be under way in one stream.
            patience: seconds to wait for a peer to publish its address.
            abort: the launcher's flag, if there is a launcher.
        """
        self.link = link
        self.rank = link.rank
        self.refused = Refusals(link.rank)
        self.streams = Streams(link, segment, window, self._on_mismatch, self._on_early)
        self._peers = Peers(book) if abort is None else Peers(book, abort.gone)
        self._patience = patience
        self._abort = abort
        self._groups = Groups(link.rank)
        self._failure: SuperpodError | None = None
        self.closed = False
        self._over = f"rank {link.rank} has closed its mesh; make a new communicator or process group"
        self._turns = Turns(link)
        self._lock, self._held = self._turns.lock, self._turns.held
        call_in_child(self._disown)
        if abort is not None:
            link.watch(abort.fileno())
            self._look_at_abort_flag()

    # Groups

    def open_group(self, ident: int, name: str, on_probe: ProbeHandler) -> Group:
        """Register a group.

        `on_probe(peer, header)` hears, under the mesh's lock, that `peer` waits for this card, or has sent a numbered
        message for a call that this card has not made.
        """
        if self._held():
            raise self._reentered()
        with self._lock:
            self._refuse_if_over(None)
            group = self._groups.open(ident, name, on_probe)
            for peer, header in self.streams.early(ident):
                self._on_early(peer, header)
            return group

    def learn(self, ranks: Sequence[int], book: AddressBook) -> None:
        """Look for the addresses of `ranks` in `book` from now on."""
        if self._held():
            raise self._reentered()
        with self._lock:
            self._peers.learn(frozenset(ranks), book)

    # Messages

    def send(
        self,
        group: Group,
        peer: int,
        tag: int,
        payload: memoryview,
        *,
        sequence: int = 0,
        step: int = 0,
        text: str = "",
        seconds: float | None = None,
    ) -> Send:
        """Start sending `payload` (contiguous bytes) to `peer`; it must not change until the send is done.

        Blocks only until a peer that is met for the first time has joined, for at most `seconds`, and then raises
        DeadlineExceeded.
        """
        header = Header(Kind.DATA, group.ident, tag, sequence, step, payload.nbytes, 0, text)
        send = Send((peer, group.ident, tag), header, payload)
        self.start(group, (send,), seconds)
        return send

    def start(self, group: Group, sends: Sequence[Send], seconds: float | None = None) -> None:
        """Start several sends in their order; blocks as `send` does, for `seconds` in all."""
        if strangers := [send for send in sends if not self.link.reaches(send.peer)]:
            end = time.monotonic() + (self._patience if seconds is None else min(seconds, self._patience))
            for send in strangers:
                what = send.call() if send.header.text else ""
                self._connect(send.peer, group, max(end - time.monotonic(), 0.0), what)
        if self._held():
            raise self._reentered()
        with self._lock:
            self._refuse_if_over(group)
            for send in sends:
                self.streams.send(send)
            if self._turns.leading:  # posting may have swallowed the leader's signal
                self._progress()

    def post(self, group: Group, key: StreamKey, header: bytes, payload: Buffer) -> bool:
        """Send a message of one frame, whose encoded `header` and key say the same, at once.

        False, and nothing has happened, when it must wait for something, or `start` would raise: that is the way then.
        """
        if self._held():
            return False
        with self._lock:
            if self.closed or self._failure is not None or group.failure is not None or not self.link.reaches(key[0]):
                return False
            if not self.streams.post(key, header, payload):
                return False
            if self._turns.leading:  # as in `start`
                self._progress()
        return True

    def passage(self, group: Group, key: StreamKey, header: bytes, nbytes: int) -> Passage | NoPassage | None:
        """The short way of whole messages with this stream, header and length [B]; None: there may be one later."""
        if self._held() or nbytes > self.streams.segment:
            return NO_PASSAGE if nbytes > self.streams.segment else None
        with self._lock:
            if self.closed or self._failure is not None or group.failure is not None:
                return None
            near = near_link(self.link, key[0])
            if near is None or isinstance(near, NoPassage):
                return near
            connection = near.compiled(key[0])
            if self._turns.leading:  # looking may have swallowed the leader's signal
                self._progress()
            if connection is None:
                return None
            turns = {"turns": self._turns, "acquire": self._lock.acquire, "release": self._lock.release}
            stream = {"streams": self.streams, "key": key, "header": header, "nbytes": nbytes} | self.streams.compiled()
            return Passage(mesh=self, group=group, owned=self._held, **turns, **stream, **connection)

    def receive(
        self,
        group: Group,
        peer: int,
        tag: int,
        into: Array,
        *,
        reduce: np.ufunc | None = None,
        sequence: int = 0,
        step: int = 0,
        text: str = "",
    ) -> Receive:
        """Expect the next message of the stream in `into`, a contiguous 1-D array of the message's length."""
        if peer == self.rank:
            raise InvalidValue(_SELF.format(peer))
        return self.expect(group, Receive((peer, group.ident, tag), into, reduce, sequence, step, text))

    def receive_any(self, group: Group, peers: Sequence[int], tag: int, into: Array, text: str) -> Receive:
        """As `receive`, from whichever of `peers` sends first; the receive's `peer` then says who it was."""
        candidates = frozenset(peers) - {self.rank}
        return self.expect(group, Receive((ANYONE, group.ident, tag), into, None, 0, 0, text, candidates))

    def expect(self, group: Group, receive: Receive) -> Receive:
        """Post `receive`, which is from another card."""
        if self._held():
            raise self._reentered()
        with self._lock:
            self._refuse_if_over(group)
            self.streams.receive(receive)
            if self._turns.leading:
                self._progress()
        return receive

    def wait(
        self,
        pendings: Sequence[Pending],
        group: Group,
        *,
        seconds: float,
        what: str,
        limit: float | None = None,
        expect: Sequence[Receive] = (),
    ) -> None:
        """Return when all `pendings` are done; those in `expect` among them are yet to be posted.

        Raises the group's failure (PeerLost, RemoteError, CollectiveMismatch), or DeadlineExceeded after `seconds`,
        naming the ranks that are late in `what`, and its `limit` if `seconds` are only what was left of that. After
        an error none of the pendings' buffers is touched any more.
        """
        try:
            if not self.advance(pendings, group, seconds=seconds, expect=expect):
                raise self.too_late(pendings, seconds if limit is None else limit, what)
        except BaseException:
            self.cancel(pendings)
            raise

    def cancel(self, pendings: Sequence[Pending]) -> None:
        """Let go of the buffers of what is not done."""
        if self._held():
            raise self._reentered()
        with self._lock:
            self.streams.cancel(pendings)

    def advance(
        self, pendings: Sequence[Pending], group: Group, *, seconds: float, expect: Sequence[Receive] = ()
    ) -> bool:
        """Move messages for at most `seconds`; whether all `pendings` are done. Raises the group's failure."""
        start = time.monotonic()
        end, probe_at = start + seconds, start + PROBE_AFTER
        if self._held():
            raise self._reentered()
        with self._lock:
            if expect:
                self._refuse_if_over(group)
                for receive in expect:
                    self.streams.receive(receive)
            try:
                self._progress(pendings)
                while not _all_done(pendings):
                    if self._in_doubt(group):
                        self._refuse(pendings, group)
                    now = time.monotonic()
                    if now >= probe_at:
                        probe_at = now + max(_SLICE, now - start)
                        self._probe(pendings)
                        self._progress()
                        continue
                    if now >= end:
                        self._look_at_abort_flag()
                        return False
                    self._sleep(min(end, probe_at, group.due) - now, pendings)
                return True
            finally:
                self._turns.hand_on()

    def find(self, peer: int, group: Group | None, seconds: float, what: str = "") -> str:
        """The address of `peer`'s mesh; waits for it. `what` is the call that needs it.

        Raises DeadlineExceeded after `seconds`, PeerLost when it has ended without one, and the group's failure.
        """

        def check() -> None:
            if self._held():
                raise self._reentered()
            with self._lock:
                self._look_at_abort_flag()
                self._progress()
                self._refuse_if_over(group)

        try:
            check()  # a store that has been left would tell less
            return self._peers.find(peer, seconds, check)
        except DeadlineExceeded as error:
            needed = f", but rank {self.rank} needs it in {what}" if what else ""
            raise self.with_report(DeadlineExceeded(f"{error}{needed}"), group, [peer]) from None

    def _connect(self, peer: int, group: Group | None, seconds: float, what: str = "") -> None:
        """Find `peer` and connect to it. Raises DeadlineExceeded when it never joined, and the group's failure."""
        if peer == self.rank:
            raise InvalidValue(_SELF.format(peer))

        address = self.find(peer, group, seconds, what=what)
        if self._held():
            raise self._reentered()
        with self._lock:
            self._refuse_if_over(None)
            if not self.link.reaches(peer):
                self.link.connect(peer, address)
                if self._turns.leading:
                    self._progress()

    # Progress; everything from here on holds the lock

    def _progress(self, until: Sequence[Pending] = ()) -> bool:
        """Handle everything that has arrived, without waiting, or enough to make `until` done. Was there anything?

        What is left then is for whoever waits next; a thread that sleeps now is roused.
        """
        if self.closed or (until and _all_done(until)):
            return False
        take = self.link.take
        moved = False
        try:
            while (event := take()) is not None:
                moved = True
                if type(event) is Arrival:
                    self._arrive(event)
                    if until and _all_done(until):
                        break
                elif isinstance(event, Broken):
                    self._peers.broke(event)
                elif isinstance(event, Refused):
                    self.refused.add(event.error)
        except BaseException as error:  # what was in hand is lost, so no stream can be trusted any more
            self._failure = SuperpodError(f"{type(error).__name__} stopped rank {self.rank} in the middle of a message")
            raise
        if moved:
            self._turns.rouse()
        return moved

    def _arrive(self, arrival: Arrival) -> None:
        peer = arrival.peer
        try:
            header = decode(arrival.header, len(arrival.payload))
        except BadFrame as error:
            self.refused.add(BadFrame(f"from rank {peer}: {error}"))
            return
        key = (peer, header.group, header.tag)
        if self._groups.have_ended(header.group):
            if header.kind is Kind.PROBE and (farewell := self._groups.farewell(header.group)) is not None:
                self.link.post(peer, farewell, b"")
            return
        if header.kind is Kind.DATA:
            self.streams.arrive(key, header, arrival.payload)
        elif header.kind is Kind.CREDIT:
            self.streams.credit(key, header.nbytes)
        elif header.kind is Kind.BYE:
            if not header.group:
                self._peers.left(peer)
            elif (left := self._groups.get(header.group)) is not None and left.life == header.sequence:
                left.leaves(peer)
        elif (group := self._groups.get(header.group)) is None:
            if header.kind is Kind.FAIL:  # this card is late: it has not opened the group yet
                self._groups.remember_failure(header.group, error_from(header.text))
        elif header.kind is Kind.FAIL:
            self.fail_group_locked(group, error_from(header.text))
        elif group.failure is None:
            group.on_probe(peer, header)
        else:  # it has not heard of it, or it would not wait
            self._tell_failure(group, group.failure, [peer])

    # Waiting

    def _sleep(self, seconds: float, pendings: Sequence[Pending]) -> None:
        """Give the lock away and wait for something to happen."""
        if self._turns.sleep(min(seconds, _SLICE)):
            self._look_at_abort_flag()
        elif seconds >= _SLICE:
            self._meet_the_gone(pendings)
        self._progress(pendings)  # also before a follower leads: a signal may have been swallowed while nobody did


def _all_done(pendings: Sequence[Pending]) -> bool:
    for p in pendings:  # noqa: SIM110  a generator costs more than most waits have to look at
        if not p.done:
            return False
    return True


_SELF = "rank {} cannot exchange messages with itself; copy the array instead"
