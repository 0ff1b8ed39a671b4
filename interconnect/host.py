"""Which cards are on one host, and what an address says: where a card listens, the password for it, which host it is.

Two processes are on one host, as superpod means it, if they can share memory and meet in Unix sockets: the same boot of
the same kernel, and the same namespaces of the network (sockets without a file), of mounts (sockets with one) and of
processes (/proc). So containers, and network namespaces that play hosts, are hosts of their own.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

from superpod.interconnect.errors import InvalidValue

_NAMESPACES = ("net", "mnt", "pid")
_KEY = re.compile("[0-9a-f]{80}")  # a public key in ZeroMQ's text form, whose letters may be "#", in hexadecimal
_TOKEN = re.compile("([0-9a-f]{2})+")
_SEPARATOR = "\n"  # between the address within the host and the one for other hosts


def host_id() -> str:
    """What tells this host from every other; the same in all its processes."""
    parts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
    for name in _NAMESPACES:
        try:
            parts.append(str(os.stat(f"/proc/self/ns/{name}").st_ino))
        except OSError:  # a kernel without that kind
            parts.append("")
    return "/".join(parts)


def cpu_name() -> str:
    """What the processor calls itself."""
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    return platform.machine()


class Address(NamedTuple):
    """A card's address, as it is published.

    Attributes:
        endpoint: where it listens.
        token: who knows it has read the address [hexadecimal].
        host: its host's id.
        key: the public key that it listens with [hexadecimal]; "" if what is sent there is not encrypted.
    """

    endpoint: str
    token: str
    host: str
    key: str = ""

    def text(self) -> str:
        """The address as one line, which `parse` reads."""
        return "#".join(self if self.key else self[:3])

    @staticmethod
    def parse(text: str) -> Address:
        """Raises InvalidValue for what is no address."""
        parts = text.rsplit("#", 3)
        if len(parts) == 4 and not _KEY.fullmatch(parts[3]):  # a name with "#" in it, and no key
            parts = [f"{parts[0]}#{parts[1]}", *parts[2:]]
        if len(parts) < 3 or not _TOKEN.fullmatch(parts[1]):
            raise InvalidValue(
                f"{text[:80]!r} is no address of a card; give all cards one superpod and one SUPERPOD_SECRET"
            )
        return Address(*parts)


def join(near: str, far: str) -> str:
    """The address of a card that listens within its host and for other hosts."""
    return near + _SEPARATOR + far


def split(address: str) -> tuple[str, str]:
    """The address within the card's host, and the one for other hosts, "" if it has none."""
    near, _, far = address.partition(_SEPARATOR)
    return near, far
