"""Jobs whose launcher is started on every host, by somebody else: torchrun's way. Node 0 is the head of the job."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.hosts_text import host_and_port
from superpod.interconnect.interfaces import is_loopback
from superpod.interconnect.secret import JobSecret
from superpod.launcher.hosts import is_own_address

PORT = 29400  # torchrun's, where the endpoint names none
ANYWHERE = "tcp://[::]:0" if socket.has_dualstack_ipv6() else "tcp://0.0.0.0:0"
_BACKENDS = ("c10d", "static")


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """Attributes:
    count: how many nodes the job has; rank: which of them this is.
    cards: how many cards this one has.
    endpoints: where the head listens: host and port; several, of which it takes the first free one.
    secret: what the job's nodes know and nobody else does; None: what they say goes in clear.
    job: the job's name, if it was given one.
    by_munge: the secret is made by the head and handed out through MUNGE, at the endpoints.
    """

    count: int
    rank: int
    cards: int
    endpoints: tuple[tuple[str, int], ...]
    secret: JobSecret | None = field(default=None)
    job: str = ""
    by_munge: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise InvalidValue(
                f"--node-rank {self.rank} must lie between 0 and {self.count - 1}: there are {self.count} nodes"
            )
        if self.cards < 1:
            raise InvalidValue(f"nproc_per_node={self.cards} must be at least 1; give every node a card")

    def to_connect(self) -> list[str]:
        """Where an agent finds the head, as ZeroMQ writes it."""
        return [f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}" for host, port in self.endpoints]

    def to_listen(self) -> list[str]:
        """Where the head listens: at the address that was named, or at all when that is not this host's own."""
        place = _own_address(self.endpoints[0][0])
        return [f"tcp://{place}:{port}" for _, port in self.endpoints]


def _own_address(host: str) -> str:
    """An address of this host that `host` stands for; without one (a service's name) all of them."""
    found: list[str] = []
    host = host or "nobody.invalid"
    with contextlib.suppress(OSError):
        found = [str(place[0]) for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    own = next((address for address in found if is_own_address(address)), None)
    if own is None:
        return ANYWHERE.removeprefix("tcp://").removesuffix(":0")
    return f"[{own}]" if ":" in own else own


def node_spec(
    *,
    nnodes: str,
    node_rank: str,
    endpoint: str,
    backend: str,
    job: str,
    secret: str,
    total: int | None,
    each: int,
    encrypt: bool,
) -> NodeSpec:
    """From the options, or torchrun's variables, as text. Raises InvalidValue.

    `total`: cards of the whole job, to be divided over the nodes; None: every node has `each`.
    """
    if not re.fullmatch(r"[1-9]\d*", nnodes):
        raise InvalidValue(f"--nnodes {nnodes} must be one number, 1 or more: jobs of varying size are not supported")
    if not node_rank.isdecimal():
        raise InvalidValue(
            f"--node-rank {node_rank or '(none)'} must be this node's number, from 0 to {int(nnodes) - 1}; node 0 is "
            "the one at the endpoint"
        )
    if backend and backend not in _BACKENDS:
        raise InvalidValue(
            f"--rdzv-backend {backend} must be c10d or static: nodes meet at node 0, in superpod's own way"
        )
    host, port = host_and_port(endpoint, PORT) if endpoint else ("", 0)
    if not host:
        raise InvalidValue("--rdzv-endpoint HOST[:PORT] must say where node 0 is reached by the others")
    known = None if not encrypt else secret_for(secret, host, int(nnodes))
    count, rank = int(nnodes), int(node_rank)
    cards = each if total is None else shares(total, count)[min(rank, count - 1)]
    return NodeSpec(count, rank, cards, ((host, port),), known, job)


def secret_for(text: str, host: str, count: int) -> JobSecret | None:
    """The job's secret. Raises InvalidValue when nodes on several hosts have none."""
    if text:
        return JobSecret.from_text(text.strip())
    if count > 1 and not is_loopback(host):
        raise InvalidValue(
            f"a job of {count} nodes at {host} must have a secret, or anybody there could join it: set SUPERPOD_SECRET "
            "or --secret-file on all nodes to the same 64 hexadecimal digits (openssl rand -hex 32); or say "
            "--no-encryption, in a private network"
        )
    return None


def shares(total: int, nodes: int) -> Sequence[int]:
    """`total` cards over `nodes`, as evenly as possible, the first ones one more. Raises InvalidValue."""
    if total < nodes:
        raise InvalidValue(f"-n {total} must be at least {nodes}: every node gets a card; start fewer nodes")
    return [total // nodes + (number < total % nodes) for number in range(nodes)]
