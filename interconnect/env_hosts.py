"""What the environment says of a job of several hosts; env.py documents the variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.interfaces import check_ports, is_loopback, local_address, tcp_endpoint
from superpod.interconnect.secret import JobSecret

VARIABLES = ("SECRET", "ADDRESS", "INTERFACE", "PORTS", "ENCRYPTION")


@dataclass(frozen=True, slots=True)
class BetweenHosts:
    """How this card meets those of other hosts.

    Attributes:
        several: whether the job has other hosts at all.
        secret: the job's; None: keys go through the store in which the cards meet.
        address: where others reach this host; None: it is to be found out.
        interface: which interface to choose for it, see interfaces.py.
        towards: a host that all of them reach, if there is one.
        ports: where to listen, a port or a range.
        encryption: whether what goes between hosts is encrypted.
    """

    several: bool = False
    secret: JobSecret | None = field(default=None)
    address: str | None = None
    interface: str | None = None
    towards: str | None = None
    ports: str = "0"
    encryption: bool = True

    @staticmethod
    def read(env: Mapping[str, str]) -> BetweenHosts:
        """Raises InvalidValue naming the variable."""
        encryption, secret = env.get("SUPERPOD_ENCRYPTION") or "on", env.get("SUPERPOD_SECRET")
        if encryption not in ("on", "off"):
            raise InvalidValue(f"SUPERPOD_ENCRYPTION={encryption!r}: must be one of on, off")
        ports = env.get("SUPERPOD_PORTS") or "0"
        try:
            check_ports(ports)
        except InvalidValue as error:
            raise InvalidValue(f"SUPERPOD_PORTS={ports!r}: {error}") from error
        try:
            job = JobSecret.from_text(secret) if secret else None
        except InvalidValue as error:
            raise InvalidValue(f"SUPERPOD_SECRET: {error}") from None
        return BetweenHosts(
            several=_several(env),
            secret=job,
            address=env.get("SUPERPOD_ADDRESS") or None,
            interface=env.get("SUPERPOD_INTERFACE") or None,
            towards=env.get("MASTER_ADDR") or None,
            ports=ports,
            encryption=encryption == "on",
        )

    def endpoint(self) -> str:
        """Where this card is to listen for others. Raises InvalidValue when no interface fits."""
        return tcp_endpoint(self.address or local_address(self.interface, self.towards), self.ports)


@dataclass(frozen=True, slots=True)
class HostPlace:
    """Which host of a job a card is on.

    Attributes:
        number: of the host; count: how many there are.
        job: the job's name, the same on all hosts; "" for that of the job's directory.
        address: where the cards of this host can be reached by those of other hosts; "" when there are none.
        secret: the job's, as text; "" when there is only one host.
    """

    number: int = 0
    count: int = 1
    job: str = ""
    address: str = ""
    secret: str = ""


def _several(env: Mapping[str, str]) -> bool:
    """Whether the job has several hosts: the launcher says so, or all that is known is that its store is elsewhere."""
    if env.get("SUPERPOD_ADDRESS") or env.get("GROUP_WORLD_SIZE", "1") not in ("", "1"):
        return True
    world, local = env.get("WORLD_SIZE", ""), env.get("LOCAL_WORLD_SIZE", "")
    if local:
        return local != world
    return world not in ("", "1") and not is_loopback(env.get("MASTER_ADDR") or "localhost")
