"""The short way of messages between two cards of a host, in compiled code: see _passage.h."""

from __future__ import annotations

from typing import Any

from superpod.interconnect.host_link import HostLink
from superpod.interconnect.link import Link
from superpod.interconnect.shm_link import ShmLink

try:
    from superpod.interconnect._ring import Passage
except ImportError:  # there was no C compiler where superpod was installed
    Passage = None  # type: ignore[assignment, misc]

__all__ = ["NO_PASSAGE", "NoPassage", "Passage", "near_link"]


class NoPassage:
    """Where there is no short way: every message goes the long one."""

    def send(self, _payload: Any) -> bool:
        return False

    def recv(self, _into: Any, _waits: bool) -> bool:
        return False


NO_PASSAGE = NoPassage()


def near_link(link: Link) -> ShmLink | None:
    """The link whose connections a passage can go through, if there is compiled code for that."""
    near = link.near if isinstance(link, HostLink) else link
    return near if Passage is not None and isinstance(near, ShmLink) else None
