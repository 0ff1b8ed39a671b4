"""What a mesh is for cards that meet elsewhere than in messages, such as at a board: they wait there, and look here.

Who waits elsewhere must still take what it is sent, hear of failures, and ask those who are late what keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence

from superpod.interconnect.errors import DeadlineExceeded
from superpod.interconnect.group import Group
from superpod.interconnect.streams import Receive
from superpod.interconnect.trouble import Trouble


class Elsewhere(Trouble):
    """The part of a mesh that is for waits outside of it."""

    def find_named(self, name: str, group: Group, awaited: Receive, seconds: float) -> str:
        """What the peer of `awaited` has published under `name`; waits for it, as if it came in that message.

        Raises DeadlineExceeded after `seconds`, PeerLost when the peer has ended without it, and the group's failure.
        """

        def check() -> None:
            self.look(group, [awaited], probe=True)

        try:
            return self._peers.find(awaited.peer, seconds, check, name)
        except DeadlineExceeded:
            raise self.too_late([awaited], seconds, awaited.text) from None

    def publish(self, name: str, address: str) -> None:
        """Let the others `find_named` an address of this card's under `name`."""
        self._peers.publish(self.rank, name, address)

    def note_departure(self, group: Group, peer: int, *, job: bool) -> None:
        """`peer` has closed the group, or left the job, and said so elsewhere than in a message."""
        with self._lock:
            if job and peer in self._peers.lost:  # else what it sent before may still come
                self._peers.left(peer)
            group.leaves(peer, job=job)

    def glance(self, group: Group) -> tuple[bool, bool]:
        """Take in what has arrived, for a card that waits elsewhere than in the mesh.

        Returns whether there was anything, so that more may follow, and whether the card had better `look`.
        """
        if self._held():
            raise self._reentered()
        with self._lock:
            moved = self._progress()
            self._look_at_abort_flag()
            return moved, self.closed or self._in_doubt(group)

    def look(self, group: Group, awaited: Sequence[Receive], *, probe: bool) -> None:
        """One look around, for a card that waits elsewhere than in the mesh. Raises the group's failure.

        Args:
            awaited: what it waits for, as if it came in messages; `probe`: tell those whom it waits for.
        """
        if self._held():
            raise self._reentered()
        with self._lock:
            self._progress()
            if probe:
                self._probe(awaited)
            self._look_at_abort_flag()
            self._meet_the_gone(awaited)
            self._refuse(awaited, group)
