"""One host's share of a job: what its agent is told before it starts, whether in this process or over a line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any


@dataclass(frozen=True, slots=True)
class Share:
    """Everything in it can be packed as msgpack.

    Attributes:
        kind, target, args, start_method, preload, auto_preload, bind_to: see JobSpec.
        number: which of the hosts this is, from 0.
        names: the hosts' names; sizes: how many cards each has.
        job: the job's name, the same on all hosts.
        workdir: where the cards run; "": where the agent does.
        address: where the cards of this host can be reached by those of the others; "" with one host.
        secret: what the cards of the job know and nobody else does, as text; "" with one host.
        selection: what the cards choose algorithms by, as text.
        more: further variables for this host's cards.
    """

    kind: str
    target: str
    args: tuple[str, ...]
    start_method: str
    preload: tuple[str, ...]
    auto_preload: bool
    bind_to: str
    number: int
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    job: str
    workdir: str = ""
    address: str = ""
    secret: str = ""
    selection: str = ""
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        return sum(self.sizes)

    @property
    def ranks(self) -> range:
        """The ranks of this host's cards."""
        return ranks_of(self.sizes)[self.number]

    def as_message(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_message(fields: dict[str, Any]) -> Share:
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return Share(**known)


def ranks_of(sizes: tuple[int, ...]) -> list[range]:
    """The ranks of every host, in the order of the hosts."""
    ends = list(accumulate(sizes))
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
