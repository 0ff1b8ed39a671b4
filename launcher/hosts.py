"""Hosts as people write them, and how a job's cards are spread over them: in the order given, ranks contiguous.

--hosts a:8,b:8,c:4         a name, an address ([fe80::1]:8) or user@name, and its number of cards, else 1
--hostfile FILE             Open MPI's format: `name slots=8 max_slots=16`, one a line, # begins a comment
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from superpod.interconnect.errors import InvalidValue

_HOST = re.compile(r"((?:[^@:\[\]\s=]+@)?(?:\[[^\]\s]+\]|[^@:\[\]\s=]+))(?::(\d+))?")
_SLOTS, _MOST = ("slots", "cpu", "count"), ("max_slots", "max-slots", "slots_max")


@dataclass(frozen=True, slots=True)
class Host:
    """Attributes:
    name: what ssh is given: a name, an address or user@name.
    cards: how many cards it has in the job.
    most: the largest number of cards it may be given, where the user has said so.
    """

    name: str
    cards: int
    most: int | None = None

    @property
    def plain(self) -> str:
        """Its name without the user."""
        return self.name.rpartition("@")[2]

    def is_here(self) -> bool:
        """Whether it is the host that this process runs on. No name is looked up: there may be no DNS.

        A host that goes by yet another name is reached through ssh like the others.
        """
        own = socket.gethostname()
        if "@" not in self.name and self.name in ("localhost", own, own.partition(".")[0]):
            return True
        return "@" not in self.name and is_own_address(self.name)


def is_own_address(text: str) -> bool:
    """Whether this is an address of this host: one that a socket can be bound to."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        if address.is_unspecified or address.is_multicast:
            return False
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(socket.getaddrinfo(text, 0, family, socket.SOCK_DGRAM, 0, socket.AI_NUMERICHOST)[0][4])
    except (ValueError, OSError):
        return False
    return True


def parse_hosts(text: str) -> tuple[Host, ...]:
    """ "a:8,b:8,c:4" → hosts; a name that comes again adds to the first. Raises InvalidValue."""
    hosts = []
    for part in text.split(","):
        match = _HOST.fullmatch(part.strip()) or _address(part.strip())
        if not match or match[2] == "0" or match[1].startswith("-"):
            raise InvalidValue(
                f"host {part!r} in --hosts {text!r} must be a name or an address, and after a colon how many cards it "
                "takes (1 or more), such as a:8,b:8 or [fe80::1]:4"
            )
        hosts.append(Host(_bare(match[1]), int(match[2] or 1)))
    return _merged(hosts)


def _address(text: str) -> re.Match[str] | None:
    """An IPv6 address without brackets, which has no room for a number of cards."""
    try:
        ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return None
    return re.fullmatch(r"(.*?)(?:\s(\d+))?", text)


def _bare(name: str) -> str:
    user, at, host = name.rpartition("@")
    return f"{user}{at}{host.removeprefix('[').removesuffix(']')}"


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Hosts from a file in Open MPI's format. Raises InvalidValue naming the line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"hostfile {path} must be a text file that can be read: {error}") from error
    hosts = [_line(path, number, line) for number, line in enumerate(lines, 1)]
    if not any(hosts):
        raise InvalidValue(f"hostfile {path} names no host; write one a line, such as: node1 slots=8")
    return _merged(host for host in hosts if host is not None)


def _line(path: Path, number: int, line: str) -> Host | None:
    words = re.sub(r"\s*=\s*", "=", line.partition("#")[0]).split()
    if not words:
        return None
    values = dict(word.partition("=")[::2] for word in words[1:])
    name, slots, most = _bare(words[0]), 1, None
    for key, value in values.items():
        if key in (*_SLOTS, *_MOST) and value.isdecimal() and int(value) > 0:
            slots, most = (int(value), most) if key in _SLOTS else (slots, int(value))
        elif key in ("user", "username") and value:
            name = f"{value}@{name.rpartition('@')[2]}"
        else:
            raise InvalidValue(
                f"hostfile {path}, line {number}: {line.strip()!r} must be a host, then slots=N, max_slots=N or "
                "user=NAME, with N 1 or more"
            )
    if not re.fullmatch(r"[^=,\s-][^=,\s]*", name) or (most is not None and most < slots):
        raise InvalidValue(
            f"hostfile {path}, line {number}: {line.strip()!r} must begin with a host's name, and max_slots not "
            "be less than slots"
        )
    return Host(name, slots, most)


def _merged(hosts: Iterable[Host]) -> tuple[Host, ...]:
    found: dict[str, Host] = {}
    for host in hosts:
        if (known := found.get(host.name)) is None:
            found[host.name] = host
        else:
            most = None if known.most is None and host.most is None else (known.most or 0) + (host.most or 0)
            found[host.name] = replace(known, cards=known.cards + host.cards, most=most)
    return tuple(found.values())


def spread(hosts: Sequence[Host], total: int | None, each: int | None) -> tuple[Host, ...]:
    """The hosts that take part, with their numbers of cards.

    Args:
        total: cards of the job: the first hosts are filled first, up to their slots, then up to their max_slots.
        each: cards of every host, whatever its slots say. Without both every host has as many as it has slots.
    Raises:
        InvalidValue: there is not that much room, or both are given and do not agree.
    """
    if each is not None:
        full = [host for host in hosts if host.most is not None and each > host.most]
        if full or each < 1:
            which = f": host {full[0].name} has max_slots={full[0].most}" if full else ""
            raise InvalidValue(f"--nproc-per-node {each} must be at least 1 and fit on every host{which}")
        hosts = [replace(host, cards=each) for host in hosts]
    if total is None:
        return tuple(hosts)
    slots = sum(host.cards for host in hosts)
    room = sum(host.cards if each is not None else max(host.cards, host.most or 0) for host in hosts)
    if not 1 <= total <= room or (each is not None and total != room):
        raise InvalidValue(
            f"-n {total} must be {'' if each is not None else 'at least 1 and at most '}{room}: that is the room on "
            f"{', '.join(f'{host.name}:{host.cards}' for host in hosts)}; give hosts more slots or start fewer cards"
        )
    counts = _filled([host.cards for host in hosts], min(total, slots))
    beyond = _filled([max(0, (host.most or 0) - host.cards) for host in hosts], max(0, total - slots))
    cards = [count + more for count, more in zip(counts, beyond, strict=True)]
    return tuple(replace(host, cards=count) for host, count in zip(hosts, cards, strict=True) if count)


def _filled(room: Sequence[int], total: int) -> list[int]:
    counts = []
    for size in room:
        counts.append(min(size, total))
        total -= counts[-1]
    return counts
