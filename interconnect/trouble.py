"""What a card's mesh does when something goes wrong: whom it asks, whom it tells, when it gives up.

A card that waits for long tells its peers in which call it awaits them (a probe), so that a disagreement shows on both
sides. A failure belongs to a group: it ends every wait in the group and is told to all connected peers, who pass it on.
Only the launcher's abort flag ends the waits of all groups.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from math import inf

from superpod.interconnect.control import AbortFlag
from superpod.interconnect.errors import DeadlineExceeded, LinkClosed, PeerLost, SuperpodError, ranks_text
from superpod.interconnect.group import Group, Groups, again, fail_frame, probe_frame
from superpod.interconnect.link import Link
from superpod.interconnect.peers import Peers
from superpod.interconnect.streams import ANYONE, Pending, Receive, Streams
from superpod.interconnect.turns import Turns

_KNOCK = 0.1  # seconds that a probe may take to find those peers that have not joined yet


class Trouble:
    """The half of a mesh that is for bad days; Mesh is the other one, and makes all of this one's attributes."""

    link: Link
    rank: int
    streams: Streams
    closed: bool
    _peers: Peers
    _groups: Groups
    _turns: Turns
    _abort: AbortFlag | None
    _failure: SuperpodError | None
    _over: str

    def _progress(self, until: Sequence[Pending] = ()) -> None:
        raise NotImplementedError

    def _connect(self, peer: int, group: Group | None, seconds: float) -> None:
        raise NotImplementedError

    def fail_group(self, group: Group, error: SuperpodError, tell: Collection[int] = ()) -> None:
        """Every wait in the group, on every card that can be reached, ends with `error`. The first failure counts.

        `tell`: who is to hear of it even if this card has never met them.
        """
        with self._turns.lock:
            if not self.closed:
                self._progress()  # first, to know everybody who has connected
                self.fail_group_locked(group, error)
                if self._failure is None:  # else the launcher has told everybody
                    self._tell_failure(group, group.failure or error, self._knock(tell))

    def too_late(self, pendings: Sequence[Pending], seconds: float, what: str) -> DeadlineExceeded:
        """The error for a wait in `what` that has taken `seconds`: it names the ranks that are late."""
        late = ranks_text(rank for p in pendings if not p.done for rank in p.awaited)
        return DeadlineExceeded(f"rank {self.rank}: Timed out after {seconds:.1f} s waiting for {late} in {what}")

    # Everything from here on holds the lock

    def _probe(self, pendings: Sequence[Pending]) -> None:
        """Tell the peers that are late what they are awaited in, so that a mismatch shows on both sides."""
        waits = [p for p in pendings if isinstance(p, Receive) and not p.done and p.peer != ANYONE]
        late = {p.key: p for p in reversed(waits)}.values()  # the first of each stream
        self._knock({p.peer for p in late})  # in vain if they are not there yet: the next probe tries again
        for p in late:
            if self.link.reaches(p.peer) and p.peer not in self._peers.lost:
                self.link.post(p.peer, probe_frame(p), b"")

    def _knock(self, peers: Collection[int]) -> list[int]:
        """Connect to those of `peers` that this card has never met, without much ado; returns those that it now has."""
        strangers = [p for p in peers if p != self.rank and p not in self._peers.lost and not self.link.reaches(p)]
        with self._turns.released():
            for peer in strangers:
                with contextlib.suppress(SuperpodError):
                    self._connect(peer, None, _KNOCK / len(strangers))
        return [p for p in strangers if self.link.reaches(p)]

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
            self._failure = PeerLost(str(failure))
            self._turns.rouse()

    def _refuse_if_over(self, group: Group | None) -> None:
        if self.closed:
            raise LinkClosed(self._over)
        if self._failure is not None:
            raise again(self._failure)
        if group is not None and group.failure is not None:
            raise again(group.failure)

    def _in_doubt(self, group: Group) -> bool:
        """Whether anything has happened that may keep somebody waiting for good."""
        return bool(
            group.failure is not None
            or group.due < inf
            or self._failure is not None
            or self._peers.lost
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
            if self._peers.lost and not p.done and (how := self._peers.all_lost(p.awaited)) is not None:
                # whoever went may have gone because of something that others, or the launcher, are about to tell
                group.suspect(PeerLost(f"{how}, but rank {self.rank} needs it in {p.call()}"))
