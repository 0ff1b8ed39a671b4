"""One link made of two: one for the cards of this host, one for those of others. Each peer is reached by one of them.

Waiting is the near link's business, which watches the far one, too: so nothing gets slower within a host.
"""

from __future__ import annotations

from typing import Protocol

from superpod.interconnect.env_hosts import BetweenHosts
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.host import Address, join, split
from superpod.interconnect.keys import Keys
from superpod.interconnect.link import Arrival, Broken, Buffer, Link, Refused
from superpod.interconnect.rendezvous import AddressBook
from superpod.interconnect.zmq_link import ZmqLink, other_host


def for_several_hosts(near: NearLink, hosts: BetweenHosts) -> HostLink:
    """A card's link in a job of several hosts; closes `near` if it cannot be. Raises InvalidValue."""
    try:
        keys = Keys(hosts.secret) if hosts.encryption else None
        return HostLink(near, ZmqLink(near.rank, between_hosts=hosts.endpoint(), keys=keys))
    except BaseException:
        near.close(0)
        raise


def introduce(link: Link, book: AddressBook) -> AddressBook:
    """Publish a card's address, and whatever else its peers need in order to meet it. Returns where to look for theirs.

    In a job of several hosts what stands in the book is signed, if there is a secret to sign it with.
    """
    if isinstance(link, HostLink) and link.keys is not None:
        book = book.signed(link.keys.secret)
        link.keys.introduce(book, link.rank)
    book.publish(link.rank, link.address)
    return book


class NearLink(Link, Protocol):
    """A link within a host that can wait for another one, too."""

    def wait_for(self, fd: int) -> None:
        """From now on `wait` also returns while `fd` is readable."""
        ...


class HostLink:
    """Routes by peer. Satisfies the Link contract."""

    def __init__(self, near: NearLink, far: ZmqLink) -> None:
        """Takes both links over; `far` was made with `between_hosts`."""
        self.near, self.far = near, far
        self.rank, self.name, self.fleeting = near.rank, near.name, near.fleeting or far.fleeting
        self.keys, self.context = far.keys, far.context
        self.bytes_far = 0  # payload bytes posted to cards of other hosts
        self._host = Address.parse(near.address).host
        self._routes: dict[int, Link] = {}  # the peers that this card has connected to
        near.wait_for(far.fileno())

    @property
    def address(self) -> str:
        return join(self.near.address, self.far.address)

    def connect(self, peer: int, address: str) -> None:
        near, far = split(address)
        there = Address.parse(near)
        if there.host == self._host:
            link, place = self.near, near
        elif far:
            link, place = self.far, far
        else:
            raise InvalidValue(other_host(peer, there.endpoint))
        link.connect(peer, place)
        self._routes[peer] = link

    def link_to(self, peer: int) -> Link | None:
        """None if nobody has connected yet."""
        if (link := self._routes.get(peer)) is None:
            link = next((link for link in (self.near, self.far) if link.reaches(peer)), None)
            if link is not None:
                self._routes[peer] = link
        return link

    def reaches(self, peer: int) -> bool:
        return peer in self._routes or self.link_to(peer) is not None

    def peers(self) -> list[int]:
        return sorted({*self.near.peers(), *self.far.peers()})

    def post(self, peer: int, header: bytes, payload: Buffer) -> None:
        link = self._routes.get(peer) or self.link_to(peer)
        assert link is not None, "reaches() comes first"
        if link is self.far:
            self.bytes_far += len(payload)
        link.post(peer, header, payload)

    def take(self) -> Arrival | Refused | Broken | None:
        return self.near.take() or self.far.take()

    def wait(self, seconds: float) -> bool:
        return self.near.wait(self.far.patience(seconds))

    def wake(self) -> None:
        self.near.wake()

    def watch(self, fd: int) -> None:
        self.near.watch(fd)

    def close(self, linger: float) -> None:
        self.far.close(linger)
        self.near.close(linger)
