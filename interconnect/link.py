"""The Link contract: how frames get from card to card. Every link passes the same tests (tests/interconnect).

A link moves whole frames in order between any two cards and tells when a peer's connection breaks. It knows no groups,
tags, credits or deadlines: those are the mesh's, which also keeps what is under way bounded, so a link never blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from superpod.interconnect.errors import BadFrame

Buffer = bytes | memoryview


class Arrival(NamedTuple):
    """A frame that has come in. The payload stays valid as long as it is referenced, unless the link is fleeting."""

    peer: int
    header: Buffer
    payload: Buffer


@dataclass(frozen=True, slots=True)
class Refused:
    """Something foreign or torn that came in and was thrown away."""

    error: BadFrame


@dataclass(frozen=True, slots=True)
class Broken:
    """The connection to `peer` broke; everything that the peer had sent before has been taken already.

    `how` continues a sentence that starts with the rank.
    """

    peer: int
    how: str = "died: its connection broke without a farewell"


class Link(Protocol):
    """One card's end. All calls but `wait` and `wake` come from one thread at a time; those two from any."""

    name: str
    rank: int
    fleeting: bool
    """A payload is valid only until the next call of `take` or `post`: it lies where the peer will write again."""

    @property
    def address(self) -> str:
        """What another card needs to connect to this one; published through the rendezvous."""
        ...

    def connect(self, peer: int, address: str) -> None:
        """Get ready to post to `peer`. Does not wait for it; what is posted before it listens is kept."""
        ...

    def reaches(self, peer: int) -> bool:
        """Whether frames can be posted to `peer`: after `connect`, or because it connected to this card."""
        ...

    def peers(self) -> list[int]:
        """The ranks that this card reaches."""
        ...

    def post(self, peer: int, header: bytes, payload: Buffer) -> None:
        """Send a frame. Never blocks; `payload` may be changed as soon as it returns. To a broken peer: dropped."""
        ...

    def take(self) -> Arrival | Refused | Broken | None:
        """The next thing that has happened, or None at once."""
        ...

    def wait(self, seconds: float) -> bool:
        """Block until `take` may have something, a watched descriptor is readable, `wake` is called, or time is up.

        Returns whether it was a watched descriptor.
        """
        ...

    def wake(self) -> None:
        """End a `wait` in another thread, or the next one."""
        ...

    def watch(self, fd: int) -> None:
        """Let `wait` return when `fd` becomes readable, once: it is not watched any more after that."""
        ...

    def close(self, linger: float) -> None:
        """Deliver what was posted, for at most `linger` seconds, then release everything. Idempotent."""
        ...
