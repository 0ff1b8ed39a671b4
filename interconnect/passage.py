"""The short way of messages between two cards of a host, in compiled code: see _passage.h."""

from __future__ import annotations

from typing import Any

from superpod.interconnect.host_link import HostLink
from superpod.interconnect.link import Link
from superpod.interconnect.shm_link import ShmLink
from superpod.interconnect.streams import Receive

try:
    from superpod.interconnect._ring import Passage
except ImportError:  # there was no C compiler where superpod was installed
    Passage = None  # type: ignore[assignment, misc]

__all__ = ["NO_PASSAGE", "NoPassage", "Passage", "near_link"]


class NoPassage:
    """Where there is no short way: every message goes the long one."""

    def send(self, _payload: Any) -> bool:
        return False

    def recv(self, _into: Any) -> bool:
        return False

    def fetch(self, _receive: Receive, _waits: bool) -> bool:
        return False


NO_PASSAGE = NoPassage()


def near_link(link: Link, peer: int) -> ShmLink | NoPassage | None:
    """The link to `peer` whose connections a passage can go through; None: it is not known yet which link that is."""
    if isinstance(link, HostLink) and link.near is not link.link_to(peer):
        return NO_PASSAGE if link.reaches(peer) else None
    near = link.near if isinstance(link, HostLink) else link
    return near if Passage is not None and isinstance(near, ShmLink) else NO_PASSAGE
