"""Where the ranks are when a run has several hosts, and what that means for each program's own launcher.

superpod goes through superpod-run --hosts, once encrypted and once in clear if both are asked for; gloo runs in the
same processes as superpod's torch backend; Open MPI through its mpirun, with a hostfile, ssh, and tcp between hosts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from superpod.benchmarks.plan import choose
from superpod.interconnect.env import LauncherSettings, exported
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.interfaces import local_address
from superpod.launcher.hosts import Host, parse_hosts

_GLOO = "GLOO_SOCKET_IFNAME"  # which interface gloo takes; without it the one that the host's own name leads to
_MODES = {"on": True, "off": False}


@dataclass(frozen=True, slots=True)
class Hosts:
    """Attributes:
    hosts: in the order of their ranks.
    interface: of every host, by name, that all programs are to use; "" for the one on the way to the others.
    encryption: the series of superpod's: encrypted (True), in clear (False), or both.
    """

    hosts: tuple[Host, ...]
    interface: str = ""
    encryption: tuple[bool, ...] = (True,)

    @property
    def world_size(self) -> int:
        return sum(host.cards for host in self.hosts)

    def __str__(self) -> str:
        """4+4: how many cards each host has."""
        return "+".join(str(host.cards) for host in self.hosts)

    def address(self) -> str:
        """Of this host, where ranks on all of them reach it. Raises InvalidValue."""
        if self.interface:
            return local_address(f"={self.interface}")
        return local_address(towards=next((host.plain for host in self.hosts if not host.is_here()), None))

    def superpod_run(self, *, encrypted: bool) -> list[str]:
        """superpod-run's options."""
        options = ["--hosts", ",".join(f"{_bracketed(host.name)}:{host.cards}" for host in self.hosts)]
        if self.interface:
            options += ["--interface", f"={self.interface}", "-x", f"{_GLOO}={self.interface}"]
        elif exported((_GLOO,)):
            options += ["-x", _GLOO]
        return options if encrypted else [*options, "--no-encryption"]

    def open_mpi(self, file: Callable[[str], str]) -> list[str]:
        """mpirun's options. `file`: makes a file with a text, and returns its path.

        ob1 is what uses the transports that are listed here: sm within a host, tcp between them. Ranks give way while
        they wait where a host has more of them than processors, as mpirun has it by itself on one host.
        """
        hostfile = file("".join(f"{host.plain} slots={host.cards}\n" for host in self.hosts))
        crowded = max(host.cards for host in self.hosts) > len(os.sched_getaffinity(0))
        options = ["--hostfile", hostfile, "--prtemca", "plm_ssh_agent", LauncherSettings.read().ssh]
        for name, value in (
            ("pml", "ob1"),
            ("btl", "tcp,self,sm"),
            ("btl_tcp_if_include", self.interface),
            ("mpi_yield_when_idle", str(int(crowded))),
        ):
            options += ["--mca", name, value] if value else []
        return [*options, "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none", "-x", "SUPERPOD_BENCH"]


def _bracketed(name: str) -> str:
    user, at, host = name.rpartition("@")
    return f"{user}{at}[{host}]" if ":" in host else name


def hosts_from(text: str | None, interface: str | None, encryption: str | None, peers: tuple[str, ...]) -> Hosts | None:
    """From --hosts, --interface and --encryption; None without hosts. Raises InvalidValue."""
    if not text:
        for option, value in (("--interface", interface), ("--encryption", encryption)):
            if value:
                raise InvalidValue(f"{option} {value} is for cards on several hosts; name them: --hosts a:4,b:4")
        return None
    hosts = parse_hosts(text)
    if "mpich" in peers:
        raise InvalidValue(f"--peers mpich does not go with --hosts {text}; leave it out: --peers gloo,openmpi")
    if "openmpi" in peers and (users := [host.name for host in hosts if "@" in host.name]):
        raise InvalidValue(f"--hosts {users[0]}: Open MPI's hostfile has no users; say User in ssh's configuration")
    modes = dict.fromkeys(choose("--encryption", encryption, tuple(_MODES))) if encryption else ("on",)
    return Hosts(hosts, interface or "", tuple(_MODES[mode] for mode in modes))
