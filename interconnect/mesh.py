"""One card's view of the others: peers on demand, messages in ordered streams, deadlines, failure.

The caller is the engine: there is no progress thread. Whoever waits, moves everybody's messages (see turns.py).

A failure belongs to a group: it ends every wait in the group and is told to all connected peers, who pass it on. Only
the launcher's abort flag ends the waits of all groups.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Sequence

import numpy as np

from superpod.interconnect.control import AbortFlag
from superpod.interconnect.errors import (
    BadFrame,
    DeadlineExceeded,
    InvalidValue,
    LinkClosed,
    PeerLost,
    SuperpodError,
    ranks_text,
)
from superpod.interconnect.group import Group, ProbeHandler, again, error_from, error_text, mismatch
from superpod.interconnect.link import Arrival, Broken, Link
from superpod.interconnect.rendezvous import AddressBook
from superpod.interconnect.streams import ANYONE, Array, Pending, Receive, Send, Streams
from superpod.interconnect.turns import Turns
from superpod.interconnect.wire import Header, Kind, decode, encode

log = logging.getLogger("superpod")

PROBE_AFTER = 0.25  # seconds of waiting before a card tells its peers what it awaits from them
LINGER = 3.0  # seconds that closing may take to deliver what is under way
_SLICE = 1.0  # seconds; the longest sleep between two looks at deadline and failures
_MAX_REFUSED = 100  # refused messages that are kept for whoever asks


class Mesh:
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
        self.refused: list[BadFrame] = []
        self.streams = Streams(link, segment, window, self._on_mismatch)
        self._books: list[tuple[frozenset[int], AddressBook]] = []
        self._book = book
        self._patience = patience
        self._abort = abort
        self._groups: dict[int, Group] = {}
        self._failed_before: dict[int, SuperpodError] = {}  # failures of groups that are not open here
        self._lost: dict[int, str] = {}  # peer → how it was lost
        self._failure: SuperpodError | None = None
        self._ended: set[int] = set()  # groups that were closed here: what still arrives for them is dropped
        self._closed = False
        self._over = f"rank {link.rank} has closed its mesh; make a new communicator or process group"
        self._turns = Turns(link)
        self._lock = self._turns.lock
        _meshes.add(self)
        if abort is not None:
            link.watch(abort.fileno())

    @property
    def closed(self) -> bool:
        return self._closed

    # Groups

    def open_group(self, ident: int, name: str, on_probe: ProbeHandler) -> Group:
        """Register a group. `on_probe(peer, header)` hears, under the mesh's lock, that `peer` waits for this card."""
        group = Group(ident, name, on_probe)
        with self._lock:
            self._refuse_if_closed()
            if ident in self._groups:
                raise InvalidValue(f"group {name} exists on rank {self.rank}; give the new one another name")
            self._groups[ident] = group
            self._ended.discard(ident)
            group.failure = self._failed_before.pop(ident, None)
        return group

    def close_group(self, group: Group) -> None:
        """Forget a group and all its streams. Who still waits in it, or uses it later, gets LinkClosed."""
        with self._lock:
            if self._groups.pop(group.ident, None) is not None:
                group.failure = group.failure or LinkClosed(
                    f"rank {self.rank} has closed group {group.name}; make a new communicator or process group"
                )
                self._ended.add(group.ident)
                self.streams.forget(group.ident)
                self._turns.rouse()

    def fail_group(self, group: Group, error: SuperpodError) -> None:
        """Every wait in the group, on every card that can be reached, ends with `error`. The first failure counts."""
        with self._lock:
            if not self._closed:
                self._progress()  # first, to know everybody who has connected
                self.fail_group_locked(group, error)
                self._turns.rouse()

    def learn(self, ranks: Sequence[int], book: AddressBook) -> None:
        """Look for the addresses of `ranks` in `book` from now on."""
        with self._lock:
            self._books.append((frozenset(ranks), book))

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
        if not self.link.reaches(peer):
            self._connect(peer, self._patience if seconds is None else min(seconds, self._patience))
        header = Header(Kind.DATA, group.ident, tag, sequence, step, payload.nbytes, 0, text)
        send = Send((peer, group.ident, tag), header, payload)
        with self._lock:
            self._refuse_if_over(group)
            self.streams.send(send)
            if self._turns.leading:  # posting may have swallowed the leader's signal
                self._progress()
        return send

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
        receive = Receive((peer, group.ident, tag), into, reduce, sequence, step, text)
        with self._lock:
            self._refuse_if_over(group)
            self.streams.receive(receive)
            if self._turns.leading:
                self._progress()
        return receive

    def receive_any(self, group: Group, peers: Sequence[int], tag: int, into: Array, text: str) -> Receive:
        """As `receive`, from whichever of `peers` sends first; the receive's `peer` then says who it was."""
        receive = Receive((ANYONE, group.ident, tag), into, None, 0, 0, text, frozenset(peers) - {self.rank})
        with self._lock:
            self._refuse_if_over(group)
            self.streams.receive_any(receive)
            if self._turns.leading:
                self._progress()
        return receive

    def wait(self, pendings: Sequence[Pending], group: Group, *, seconds: float, what: str) -> None:
        """Return when all `pendings` are done.

        Raises the group's failure (PeerLost, RemoteError, CollectiveMismatch), or DeadlineExceeded after `seconds`,
        naming the ranks that are late in `what`. After an error none of the pendings' buffers is touched any more.
        """
        try:
            if not self.advance(pendings, group, seconds=seconds):
                late = ranks_text(rank for p in pendings if not p.done for rank in p.awaited)
                raise DeadlineExceeded(
                    f"rank {self.rank}: Timed out after {seconds:.1f} s waiting for {late} in {what}"
                )
        except BaseException:
            with self._lock:
                self.streams.cancel(pendings)
            raise

    def advance(self, pendings: Sequence[Pending], group: Group, *, seconds: float) -> bool:
        """Move messages for at most `seconds`; whether all `pendings` are done. Raises the group's failure."""
        start = time.monotonic()
        probe_at = start + PROBE_AFTER
        with self._lock:
            try:
                self._progress()
                while not all(p.done for p in pendings):
                    self._refuse(pendings, group)
                    now = time.monotonic()
                    if now >= start + seconds:
                        return False
                    if now >= probe_at:
                        probe_at = now + max(_SLICE, now - start)
                        self._probe(pendings)
                        self._progress()
                        continue
                    self._sleep(min(start + seconds, probe_at) - now)
                return True
            finally:
                self._turns.hand_on()

    def test(self, pendings: Sequence[Pending], group: Group) -> bool:
        """Move what can be moved without waiting; whether a `wait` for `pendings` would return or raise at once."""
        try:
            return self.advance(pendings, group, seconds=0.0)
        except SuperpodError:
            return True

    def close(self) -> None:
        """Leave in order: tell the peers, deliver what is under way, release the link. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._close_locked()
            bye = encode(Header(Kind.BYE, 0, 0))
            for peer in self.link.peers():
                self.link.post(peer, bye, b"")
        end = time.monotonic() + LINGER
        while self._turns.anyone and time.monotonic() < end:  # whoever waits finds the mesh closed and leaves
            with self._lock:
                self._turns.rouse()
            time.sleep(0.001)
        self.link.close(LINGER)
        if self._abort is not None:
            self._abort.close()

    def _close_locked(self) -> None:
        self._closed = True
        for group in self._groups.values():
            group.failure = group.failure or LinkClosed(self._over)

    def disown(self) -> None:
        """In a forked child: the connections are the parent's, so nothing can be done here but to say so."""
        self._turns = Turns(self.link)
        self._lock = self._turns.lock
        self._over = (
            f"this process was forked from rank {self.rank}, whose connections it cannot use; "
            "make a new communicator or process group"
        )
        self._close_locked()

    # Connections

    def _connect(self, peer: int, seconds: float) -> None:
        """Find `peer` and connect to it, heeding the abort flag. Raises DeadlineExceeded when it never joined."""
        if peer == self.rank:
            raise InvalidValue(_SELF.format(peer))
        book = next((b for ranks, b in reversed(self._books) if peer in ranks), self._book)
        end = time.monotonic() + seconds
        while True:
            rest = end - time.monotonic()
            try:
                address = book.find(peer, min(max(rest, 0.001), _SLICE))
                break
            except DeadlineExceeded as error:
                if rest <= _SLICE:
                    raise DeadlineExceeded(
                        f"rank {peer} has not joined within {seconds:.1f} s: it was not started, or it is dead"
                    ) from error
            with self._lock:
                self._look_at_abort_flag()
                self._refuse_if_over(None)
        with self._lock:
            self._refuse_if_closed()
            if not self.link.reaches(peer):
                self.link.connect(peer, address)

    # Progress; everything from here on holds the lock

    def _progress(self) -> None:
        """Handle everything that has arrived, without waiting."""
        take = self.link.take
        moved = False
        while (event := take()) is not None:
            moved = True
            if isinstance(event, Arrival):
                self._arrive(event)
            elif isinstance(event, Broken):
                self._lost.setdefault(event.peer, "died: its connection broke without a farewell")
            else:
                self._refuse_frame(event.error)
        if moved:
            self._turns.rouse()

    def _arrive(self, arrival: Arrival) -> None:
        peer = arrival.peer
        try:
            header = decode(arrival.header, len(arrival.payload))
        except BadFrame as error:
            self._refuse_frame(BadFrame(f"from rank {peer}: {error}"))
            return
        key = (peer, header.group, header.tag)
        if header.group in self._ended:
            return
        if header.kind is Kind.DATA:
            self.streams.arrive(key, header, arrival.payload)
        elif header.kind is Kind.CREDIT:
            self.streams.credit(key, header.nbytes)
        elif header.kind is Kind.BYE:
            self._lost[peer] = "left the job"
        elif (group := self._groups.get(header.group)) is None:
            if header.kind is Kind.FAIL:  # this card is late: it has not opened the group yet
                self._failed_before[header.group] = error_from(header.text)
        elif header.kind is Kind.PROBE:
            group.on_probe(peer, header)
        else:
            self.fail_group_locked(group, error_from(header.text))

    def _on_mismatch(self, receive: Receive, header: Header) -> None:
        group = self._groups[receive.key[1]]
        theirs, ours = f"{header.text} (#{header.sequence})", receive.call()
        if theirs == ours:
            theirs += f" with {header.nbytes} B at {header.offset} in step {header.step}"
            ours += f" with {receive.into.nbytes} B at {receive.got} in step {receive.step}"
        self.fail_group_locked(group, mismatch(group, (receive.peer, theirs), (self.rank, ours)))

    # Waiting

    def _sleep(self, seconds: float) -> None:
        """Give the lock away and wait for something to happen."""
        if self._turns.sleep(min(seconds, _SLICE)):
            self._look_at_abort_flag()
            self._progress()

    def _probe(self, pendings: Sequence[Pending]) -> None:
        """Tell the peers that are late what they are awaited in, so that a mismatch shows on both sides."""
        late = [p for p in pendings if isinstance(p, Receive) and not p.done and p.peer != ANYONE]
        strangers = {p.peer for p in late if not self.link.reaches(p.peer)}
        if strangers:
            self._lock.release()
            try:
                for peer in strangers:
                    with contextlib.suppress(DeadlineExceeded):  # not there yet: the next probe tries again
                        self._connect(peer, 0.05)
            finally:
                self._lock.acquire()
        for p in late:
            if self.link.reaches(p.peer) and p.peer not in self._lost:
                _, group, tag = p.key
                self.link.post(p.peer, encode(Header(Kind.PROBE, group, tag, p.sequence, p.step, text=p.text)), b"")

    # Failure

    def fail_group_locked(self, group: Group, error: SuperpodError) -> None:
        """As `fail_group`, for a probe handler, which holds the lock."""
        if group.failure is not None:
            return
        group.failure = error
        frame = encode(Header(Kind.FAIL, group.ident, 0, text=error_text(self.rank, error)))
        for peer in self.link.peers():
            if peer not in self._lost:
                self.link.post(peer, frame, b"")

    def _look_at_abort_flag(self) -> None:
        if self._abort is not None and self._failure is None and (failure := self._abort.failure()) is not None:
            self._failure = PeerLost(str(failure))
            self._turns.rouse()

    def _refuse_frame(self, error: BadFrame) -> None:
        if not self.refused:
            log.warning("rank %d refused a message: %s", self.rank, error)
        if len(self.refused) < _MAX_REFUSED:
            self.refused.append(error)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise LinkClosed(self._over)

    def _refuse_if_over(self, group: Group | None) -> None:
        self._refuse_if_closed()
        if self._failure is not None:
            raise again(self._failure)
        if group is not None and group.failure is not None:
            raise again(group.failure)

    def _refuse(self, pendings: Sequence[Pending], group: Group) -> None:
        """Raise when `pendings` can never be done."""
        self._refuse_if_over(group)
        for p in pendings:
            if not p.done and self._lost.keys() >= p.awaited:
                rank = min(p.awaited, default=ANYONE)
                how = self._lost.get(rank, "is alone")
                error = PeerLost(f"rank {rank} {how}, but rank {self.rank} needs it in {p.call()}")
                self.fail_group_locked(group, error)
                raise again(error)


def _after_fork() -> None:
    for mesh in _meshes:
        mesh.disown()


_meshes: weakref.WeakSet[Mesh] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)

_SELF = "rank {} cannot exchange messages with itself; copy the array instead"
