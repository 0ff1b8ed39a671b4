"""What a card's mesh does when something goes wrong: whom it asks, whom it tells, when it gives up.

A card that waits for long tells its peers in which call it awaits them (a probe), so that a disagreement shows on both
sides. A failure belongs to a group: it ends every wait in the group and is told to all connected peers, who pass it on.
Only the launcher's abort flag ends the waits of all groups.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import NoReturn

import numpy as np

from superpod.interconnect.control import AbortFlag
from superpod.interconnect.errors import (
    CollectiveMismatch,
    DeadlineExceeded,
    LinkClosed,
    PeerLost,
    SuperpodError,
    ranks_text,
)
from superpod.interconnect.group import Group, Groups, again, error_of, fail_frame, probe_frame
from superpod.interconnect.link import Link
from superpod.interconnect.peers import LEFT_JOB, Peers
from superpod.interconnect.streams import ANYONE, Pending, Receive, Send, Streams
from superpod.interconnect.turns import Turns
from superpod.interconnect.wire import Header

log = logging.getLogger("superpod")

_KNOCK = 0.1  # seconds that a probe may take to find those peers that have not joined yet
_SETTLED = 10.0  # seconds after which a suspicion has been a failure for long
_LOOK_AGAIN = 1.0  # seconds between two looks at who has ended


class Trouble(ABC):
    """The half of a mesh that is for bad days; Mesh is the other one, and makes all of this one's attributes."""

    link: Link
    rank: int
    streams: Streams
    closed: bool
    _peers: Peers
    _groups: Groups
    _turns: Turns
    _held: Callable[[], bool]  # see turns.py
    _lock: threading.RLock
    _abort: AbortFlag | None
    _failure: SuperpodError | None
    _over: str
    _gone_due = 0.0  # when to look again at who has ended, by time.monotonic()
    inquire: Callable[[str, Collection[int]], list[str]] | None = None
    """A group's name and ranks that are late in it → lines that say what they are doing. May take a second."""

    @abstractmethod
    def _progress(self, until: Sequence[Pending] = ()) -> bool:
        """See Mesh."""

    @abstractmethod
    def _connect(self, peer: int, group: Group | None, seconds: float, what: str = "") -> None:
        """See Mesh."""

    @abstractmethod
    def advance(self, pendings: Sequence[Pending], group: Group, *, seconds: float) -> bool:
        """See Mesh."""

    def fail_group(self, group: Group, error: SuperpodError, tell: Collection[int] = ()) -> None:
        """Every wait in the group, on every card that can be reached, ends with `error`. The first failure counts.

        Whoever calls this raises it, too.

        `tell`: who is to hear of it even if this card has never met them.
        """
        if self._held():  # a signal's handler: the call that it has interrupted will fail and tell
            return
        group.told = True
        with self._lock:
            if not self.closed:
                self._progress()  # first, to know everybody who has connected
                self.fail_group_locked(group, error)
                if self._failure is None:  # else the launcher has told everybody
                    self._tell_failure(group, group.failure or error, self._knock(tell))

    def too_late(self, pendings: Sequence[Pending], seconds: float, what: str) -> DeadlineExceeded:
        """The error for a wait in `what` that has taken `seconds`: it names the ranks that are late."""
        late = {rank for p in pendings if not p.done for rank in p.awaited}
        group = self._groups.get(pendings[0].key[1]) if pendings else None
        text = f"rank {self.rank}: Timed out after {seconds:.1f} s waiting for {ranks_text(late)} in {what}"
        return self.with_report(DeadlineExceeded(text), group, late)

    def with_report(self, error: DeadlineExceeded, group: Group | None, late: Collection[int]) -> DeadlineExceeded:
        """The error, and what those are doing who are late."""
        if self.inquire is None or group is None:
            return error
        return DeadlineExceeded("\n  ".join([str(error), *self.inquire(group.name, late)]))

    # Everything from here on holds the lock

    def _probe(self, pendings: Sequence[Pending]) -> None:
        """Tell the peers that are late what they are awaited in, so that a mismatch shows on both sides."""
        waits = [p for p in pendings if not p.done and p.peer != ANYONE]
        waits.sort(key=lambda p: isinstance(p, Send))  # which waits for credit, so the peer receives something else
        late = {p.key: p for p in reversed(waits)}.values()  # the first of each stream
        self._knock({p.peer for p in late})  # in vain if they are not there yet: the next probe tries again
        for p in late:
            if self.link.reaches(p.peer) and p.peer not in self._peers.lost:
                group = self._groups.get(p.key[1])
                self.link.post(p.peer, probe_frame(p, group), b"")

    def _on_mismatch(self, receive: Receive, header: Header) -> None:
        """A message has come that is not the one that `receive` awaits."""
        group = self._groups.get(receive.key[1])
        if group is not None and group.due == inf:
            self._complain(receive.peer, group.judge(self.rank, receive, header))

    def _on_early(self, peer: int, header: Header) -> None:
        """A message of a numbered call has come, and nobody awaits it: has this card called something else, or may it?

        Otherwise cards that only send, or only to one another, would never learn that they disagree.
        """
        group = self._groups.get(header.group)
        if group is None or group.failure is not None:
            return
        called = group.text(header.sequence)
        if not called:
            group.on_probe(peer, header)
        elif called != header.text and group.due == inf:
            self._complain(peer, group.dispute(self.rank, peer, header, called))

    def _confess(self, group: Group) -> None:
        """The group ends here: if the ranks seem to disagree in it, no call will say so any more."""
        error = group.failure or group.suspicion
        if not group.told and isinstance(error, CollectiveMismatch):
            log.warning("rank %d: %s", self.rank, error)
            self.fail_group_locked(group, error)

    def _complain(self, peer: int, complaint: bytes) -> None:
        if self.link.reaches(peer):  # it knows more, and will answer by failing the group
            self.link.post(peer, complaint, b"")

    def dispute(self, group: Group, peer: int, header: Header, mine: str) -> NoReturn:
        """`peer` has sent `header` for a call that is `mine` on this card. Raises what it answers, or the mismatch."""
        with self._lock:
            if group.due == inf and group.failure is None:
                self._complain(peer, group.dispute(self.rank, peer, header, mine))
        self.settle(group)

    def settle(self, group: Group) -> NoReturn:
        """Raise the failure of a group that has failed or is suspected to have."""
        never = Receive((ANYONE, group.ident, 0), np.empty(0, np.uint8), None, 0, 0, "")
        self.advance((never,), group, seconds=_SETTLED)
        raise SuperpodError(f"group {group.name} has failed on rank {self.rank}")

    def _knock(self, peers: Collection[int]) -> list[int]:
        """Connect to those of `peers` that this card has never met, without much ado; returns those that it now has."""
        strangers = [p for p in peers if p != self.rank and p not in self._peers.lost and not self.link.reaches(p)]
        with self._turns.released():
            for peer in strangers:
                with contextlib.suppress(SuperpodError):
                    self._connect(peer, None, _KNOCK / len(strangers))
        return [p for p in strangers if self.link.reaches(p)]

    def _meet_the_gone(self, pendings: Sequence[Pending]) -> None:
        """Of those awaited whom this card has never met, connect to who has ended: in vain, and then it is lost.

        Once a second: it costs a system call for each of them.
        """
        if (now := time.monotonic()) < self._gone_due:
            return
        self._gone_due = now + _LOOK_AGAIN
        strangers = {r for p in pendings if not p.done for r in p.awaited if not self.link.reaches(r)}
        self._knock([r for r in strangers if r not in self._peers.lost and self._peers.gone(r) is not None])

    def fail_group_locked(self, group: Group, error: SuperpodError) -> None:
        """As `fail_group`, for a probe handler, which holds the lock."""
        if group.failure is not None:
            return
        group.failure = error
        self._tell_failure(group, error, self.link.peers())
        self._turns.rouse()

    def _tell_failure(self, group: Group, error: SuperpodError, peers: Sequence[int]) -> None:
        for peer in peers:
            if peer not in self._peers.lost:
                self.link.post(peer, fail_frame(group, self.rank, error), b"")

    def _look_at_abort_flag(self) -> None:
        if self._abort is not None and self._failure is None and (failure := self._abort.failure()) is not None:
            self._failure = error_of(failure)
            self._turns.rouse()

    def is_interrupted(self) -> bool:
        """Whether this is a signal's handler that has interrupted its thread while that moved messages."""
        return self._held()

    def refuse_interrupted(self) -> None:
        """Raise if it is."""
        if self._held():
            raise self._reentered()

    def _reentered(self) -> SuperpodError:
        return SuperpodError(
            f"a signal's handler interrupted rank {self.rank} while it moved messages, and cannot exchange any itself; "
            "let it set a flag, or close the communicator"
        )

    def _refuse_if_over(self, group: Group | None) -> None:
        if self.closed:
            raise LinkClosed(self._over)
        if self._failure is not None:
            raise again(self._failure)
        if group is not None and group.failure is not None:
            group.told = True
            raise again(group.failure)

    def _in_doubt(self, group: Group) -> bool:
        """Whether anything has happened that may keep somebody waiting for good."""
        return bool(
            group.failure is not None
            or group.due < inf
            or self._failure is not None
            or self._peers.lost
            or group.left
            or self.streams.spoilt
        )

    def _refuse(self, pendings: Sequence[Pending], group: Group) -> None:
        """Raise when `pendings` can never be done."""
        if (error := group.confirmed()) is not None:
            self.fail_group_locked(group, error)
        self._refuse_if_over(group)
        for p in pendings:
            if isinstance(p, Receive) and p.error is not None:
                raise again(p.error)
            if not p.done and (self._peers.lost or group.left):
                self._suspect_loss(p, group)

    def _suspect_loss(self, pending: Pending, group: Group) -> None:
        """Does nobody remain who can make `pending` done?

        Whoever went may have gone because of something that others, or the launcher, are about to tell.
        """
        needed = f"but rank {self.rank} needs it in {pending.call()}"
        if self._peers.lost and (how := self._peers.all_lost(pending.awaited)) is not None:
            missed = min(pending.awaited, default=None)
            if missed is not None and group.left.get(missed) == LEFT_JOB:  # that it is gone now, says less
                how = f"rank {missed} {LEFT_JOB}"
            group.suspect(PeerLost(f"{how}, {needed}"), missed=missed)
        elif (left := pending.awaited & group.left.keys()) and pending.awaited <= {*group.left, *self._peers.lost}:
            peer = min(left)
            group.suspect(PeerLost(f"rank {peer} {group.left[peer]}, {needed}"), weak=True)
