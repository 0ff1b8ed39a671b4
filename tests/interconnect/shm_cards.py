"""What the tests of the link over shared memory share."""

from __future__ import annotations

import os
import socket

from cards import GROUP, SHM, SOON, within

from superpod.interconnect.link import Arrival, Broken, Refused
from superpod.interconnect.shm_link import ShmLink
from superpod.interconnect.wire import Header, Kind, encode

HEADER = encode(Header(Kind.DATA, GROUP, 0, nbytes=3))
MIB = 1 << 20


def taken(link: ShmLink, count: int) -> list[Arrival | Refused | Broken]:
    """The next `count` things that happen, with payloads of their own."""
    events: list[Arrival | Refused | Broken] = []
    with within(SOON):
        while len(events) < count:
            if (event := link.take()) is None:
                link.wait(1)
            elif isinstance(event, Arrival):
                events.append(Arrival(event.peer, event.header, bytes(event.payload)))
            else:
                events.append(event)
    return events


def line_to(link: ShmLink, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    """A stranger's connection to a card."""
    endpoint = link.address.rsplit("#", 2)[0]
    line = socket.socket(socket.AF_UNIX, kind)
    line.settimeout(SOON)
    line.connect("\0" + endpoint[1:] if endpoint.startswith("@") else endpoint)
    return line


def token_of(link: ShmLink) -> bytes:
    return bytes.fromhex(link.address.rsplit("#", 2)[1])


def goes_on(link: ShmLink, kind: str, tmp_path) -> None:
    """A link is none the worse: another card can come, speak and go."""
    other = SHM[kind](9, tmp_path)
    other.connect(link.rank, link.address)
    other.post(link.rank, HEADER, b"abc")
    (event,) = taken(link, 1)
    assert (event.peer, event.payload) == (9, b"abc")
    other.close(0)
    assert taken(link, 1) == [Broken(9)]


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def shared_mappings() -> int:
    """How many pieces of shared memory this process has mapped."""
    with open("/proc/self/maps") as lines:
        return sum("memfd:superpod" in line for line in lines)
