"""Which connection leads to which peer, and when a peer whose connections break counts as lost. No sockets here.

Two cards that connect to each other at once have two connections, and each card sends on the one that it knew first.
Who leaves closes a connection when what it sent there is delivered: the unused one at once, the other perhaps much
later. So a peer is lost when its last connection has broken, not its first one.

Times are those of one monotonic clock [s].
"""

from __future__ import annotations

from collections import Counter
from math import inf

from superpod.interconnect.link import Broken

FAREWELL = 4.0  # seconds that a peer with one broken and one whole connection is waited for; closing may take it 3
UNKNOWN = 0.5  # seconds for a connection to say whose it is, when it may be another one of a peer that seems lost;
# also for one to come in at all from a peer that has never opened any: it closes the unused one, of this card's, first
REFUSED = 0.5  # seconds; who has published an address listens there, so one that refuses for so long is gone

_STRANGER = -1  # in place of a peer


class Connections:
    """The connections of one card. One thread at a time."""

    def __init__(self) -> None:
        self.look_at = inf  # when `lost` may have news though nothing happens
        self._opened: dict[str, int] = {}  # endpoint of a connection that this card opened → peer
        self._given_up: set[str] = set()
        self.refusals: Counter[str] = Counter()  # endpoint → how often nobody listened there
        self._refused: dict[str, float] = {}  # endpoint → since when
        self._accepted: dict[int, int | None] = {}  # descriptor of one that another opened → peer, None: not said yet
        self._alive: Counter[int] = Counter()  # peer → connections that are whole
        self._broke: dict[int, float] = {}  # peer that may be lost → when its last break was heard of
        self._lost: set[int] = set()
        self._came: set[int] = set()  # peers that have opened a connection

    def opened(self, endpoint: str, peer: int) -> None:
        """This card has begun to connect to `peer`."""
        self._opened[endpoint] = peer
        self._alive[peer] += 1

    def leads_to(self, endpoint: str) -> int | None:
        """The peer that this card has connected to there; None if it has not."""
        return self._opened.get(endpoint)

    def unnamed(self, endpoint: str, descriptor: int) -> bool:
        """Whether a connection that broke is another's, who has never said who it is."""
        return endpoint not in self._opened and self._accepted.get(descriptor, _STRANGER) is None

    def accepted(self, descriptor: int) -> None:
        """Somebody has connected to this card."""
        self._accepted[descriptor] = None

    def identified(self, descriptor: int, peer: int, now: float) -> None:
        """The first message of an accepted connection says that it is `peer`'s.

        Everything that was heard of connections before that message must have been told here: descriptors are used
        again, and a connection may be gone before its message is read.
        """
        self._came.add(peer)
        if descriptor not in self._accepted:
            self._doubt(peer, now)
            return
        if (owner := self._accepted[descriptor]) is not None and owner != _STRANGER:
            self._end(owner, now)  # the number was freed and given out again before anybody looked
        self._accepted[descriptor] = peer
        self._alive[peer] += 1

    def foreign(self, descriptor: int) -> None:
        """An accepted connection is no card's."""
        if self._accepted.get(descriptor, _STRANGER) is None:
            self._accepted[descriptor] = _STRANGER

    def broke(self, endpoint: str, descriptor: int, now: float) -> bool:
        """A connection broke. True if this card had opened it, so that it must stop connecting again."""
        if endpoint not in self._opened:
            owner = self._accepted.pop(descriptor, None)
            if owner is not None and owner != _STRANGER:
                self._end(owner, now)
            return False
        if endpoint in self._given_up:
            return False
        self._given_up.add(endpoint)
        self._end(self._opened[endpoint], now)
        return True

    def refused(self, endpoint: str, now: float) -> bool:
        """Nobody listens at an endpoint for the moment. True if this card must stop connecting to it."""
        if endpoint in self._given_up:
            return False
        self.refusals[endpoint] += 1
        since = self._refused.setdefault(endpoint, now)
        waited_long = now - since >= REFUSED or self._opened.get(endpoint) in self._broke
        return waited_long and self.broke(endpoint, _STRANGER, since)

    def lost(self, now: float) -> Broken | None:
        """The next peer that is lost, once each. Call this when all that has arrived was taken."""
        self.look_at = inf
        for peer, since in self._broke.items():
            at = since + self._patience(peer)
            if at <= now:
                del self._broke[peer]
                self._lost.add(peer)
                never_met = any(owner == peer and endpoint in self._refused for endpoint, owner in self._opened.items())
                return Broken(peer, "is gone: nobody listens at its address") if never_met else Broken(peer)
            self.look_at = min(self.look_at, at)
        return None

    def _patience(self, peer: int) -> float:
        if self._alive[peer] > 0:
            return FAREWELL
        return UNKNOWN if peer not in self._came or None in self._accepted.values() else 0.0

    def _end(self, peer: int, now: float) -> None:
        self._alive[peer] -= 1
        self._doubt(peer, now)

    def _doubt(self, peer: int, now: float) -> None:
        if peer not in self._lost:
            self._broke[peer] = now
