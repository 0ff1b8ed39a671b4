"""Which of this host's addresses others are to use, and at which ports this host listens for them."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from superpod.interconnect.errors import InvalidValue

_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915  # <linux/sockios.h>
_UP = 0x1  # <linux/if.h>
_IFREQ = 40  # bytes
_UNLIKELY = ("lo", "docker")  # as NCCL has it: taken only if there is nothing else
_LIKE = "such as eth0, eth,ib0 or ^docker,lo"


class Interface(NamedTuple):
    """One address of one interface that is up."""

    name: str
    address: str


def interfaces() -> list[Interface]:
    """This host's addresses, IPv4 first; without IPv6's link-local ones, which mean nothing on another host."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        names = [name for _, name in socket.if_nameindex() if _flags(line, name) & _UP]
        for name in names:
            with contextlib.suppress(OSError):
                raw = fcntl.ioctl(line, _SIOCGIFADDR, _request(name))
                found.append(Interface(name, socket.inet_ntoa(raw[20:24])))
    with contextlib.suppress(OSError):
        for row in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, *_, name = row.split()
            address = ipaddress.IPv6Address(bytes.fromhex(digits))
            if name in names and not address.is_link_local:
                found.append(Interface(name, str(address)))
    return found


def local_address(choice: str | None = None, towards: str | None = None) -> str:
    """The address of this host that others are to use, IPv4 or IPv6.

    Args:
        choice: interfaces as NCCL_SOCKET_IFNAME names them: prefixes; from a "=" on, whole names; from a "^" on,
            those that are not wanted. None or "": any.
        towards: a host, by name or address, that is to be reached from there; of several that were chosen, the one on
            the way to it is taken.
    Raises:
        InvalidValue: no interface fits, or `towards` cannot be reached or is no host.
    """
    preferred = None if not towards else _address_towards(towards)
    if not choice and preferred is not None:
        return preferred
    every = interfaces()
    fitting = [i for i in every if _fits(i.name, choice or "^" + ",".join(_UNLIKELY))]
    if not fitting and not choice:
        fitting = every
    if preferred is not None:
        if any(i.address == preferred for i in fitting):
            return preferred
        family = ipaddress.ip_address(preferred).version
        fitting.sort(key=lambda i: ipaddress.ip_address(i.address).version != family)
    if not fitting:
        there_are = ", ".join(f"{i.name} ({i.address})" for i in every) or "none that is up"
        raise InvalidValue(f"interface={choice!r} fits none of this host's: {there_are}; name some of them, {_LIKE}")
    return fitting[0].address


def is_loopback(address: str) -> bool:
    """Whether an address, or "localhost", only ever means the host that uses it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"


def tcp_endpoint(address: str, ports: str = "0") -> str:
    """What a socket listens at: `ports` is one port, 0 for the kernel's choice, or a range such as 29600-29700."""
    return f"tcp://[{address}]:{ports}" if ":" in address else f"tcp://{address}:{ports}"


def check_ports(text: str) -> str:
    """The same text. Raises InvalidValue unless it is a port or a range."""
    low, dash, high = text.partition("-")
    numbers = [low, high] if dash else [low]
    if not all(n.isascii() and n.isdigit() and int(n) < 1 << 16 for n in numbers) or int(numbers[-1]) < int(low):
        raise InvalidValue(
            "must be a port or a range of ports up to 65535, such as 0 (the kernel chooses) or 29600-29700"
        )
    if dash and int(low) == 0:
        raise InvalidValue("must not begin at port 0, which means the kernel's choice; such as 29600-29700")
    return text


def candidates(endpoint: str, first: int = 0) -> Iterator[str]:
    """The endpoints that one with a range of ports stands for, from its `first`-th on and around; others: itself."""
    place, _, ports = endpoint.rpartition(":")
    low, dash, high = ports.partition("-")
    if not endpoint.startswith("tcp://") or not dash:
        yield endpoint
        return
    span = int(high) - int(low) + 1
    for i in range(span):
        yield f"{place}:{int(low) + (first + i) % span}"


def _address_towards(host: str) -> str:
    """This host's end of the way to `host`; nothing is sent."""
    try:
        targets = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise InvalidValue(f"host {host!r} cannot be found ({error}); give its address instead") from error
    failure: OSError | None = None
    for family, kind, protocol, _, place in targets:
        try:
            with socket.socket(family, kind, protocol) as line:
                line.connect(place)
                return str(line.getsockname()[0])
        except OSError as error:
            failure = error
    raise InvalidValue(f"there is no way from this host to {host!r} ({failure}); choose with --interface, {_LIKE}")


def _fits(name: str, choice: str) -> bool:
    """ "^" and "=" hold for what comes after them, too: in "=eth0,ib0,^docker" two are whole names, one a prefix."""
    wanted, unwanted = list[bool](), list[bool]()  # whether each entry is this name
    into, whole = wanted, False
    for entry in (part.strip() for part in choice.split(",")):
        if entry.startswith("^"):
            into, whole, entry = unwanted, False, entry[1:]
        if entry.startswith("="):
            whole, entry = True, entry[1:]
        into.append(name == entry if whole else bool(entry) and name.startswith(entry))
    return not any(unwanted) and (not wanted or any(wanted))


def _flags(line: socket.socket, name: str) -> int:
    try:
        (flags,) = struct.unpack_from("=H", fcntl.ioctl(line, _SIOCGIFFLAGS, _request(name)), 16)
    except OSError:  # it has just gone
        return 0
    return int(flags)


def _request(name: str) -> bytes:
    return struct.pack(f"16s{_IFREQ - 16}x", name.encode()[:15])
