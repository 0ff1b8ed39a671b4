"""What a card's mesh does when something goes wrong: whom it asks, whom it tells, when it gives up.

A card that waits for long tells its peers in which call it awaits them (a probe), so that a disagreement shows on both
sides. A failure belongs to a group: it ends every wait in the group and is told to all connected peers, who pass it on.
Only the launcher's abort flag ends the waits of all groups.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from math import inf

from superpod.interconnect.control import AbortFlag
from superpod.interconnect.errors import DeadlineExceeded, LinkClosed, PeerLost, SuperpodError, ranks_text
from superpod.interconnect.group import Group, Groups, again, error_of, fail_frame, probe_frame
from superpod.interconnect.link import Link
from superpod.interconnect.peers import Peers
from superpod.interconnect.streams import ANYONE, Pending, Receive, Streams
from superpod.interconnect.turns import Turns

_KNOCK = 0.1  # seconds that a probe may take to find those peers that have not joined yet
_LOOK_AGAIN = 1.0  # seconds between two looks at who has ended


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
    _gone_due = 0.0  # when to look again at who has ended, by time.monotonic()
    inquire: Callable[[str, Collection[int]], list[str]] | None = None
    """A group's name and ranks that are late in it → lines that say what they are doing. May take a second."""

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
        waits = [p for p in pendings if isinstance(p, Receive) and not p.done and p.peer != ANYONE]
        late = {p.key: p for p in reversed(waits)}.values()  # the first of each stream
        self._knock({p.peer for p in late})  # in vain if they are not there yet: the next probe tries again
        for p in late:
            if self.link.reaches(p.peer) and p.peer not in self._peers.lost:
                group = self._groups.get(p.key[1])
                place = group.place(p.key[2], p.sequence, p.text) if group is not None else ""
                self.link.post(p.peer, probe_frame(p, place), b"")

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
