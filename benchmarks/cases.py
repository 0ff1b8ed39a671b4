"""The collectives as they are measured: what each rank brings, what it must hold afterwards, and the call itself.

S is an array of `count` elements. For the collectives that exchange blocks it is world_size blocks of `share` elements.
To measure another collective, write its class here; nothing else changes, save its factor in busbw.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from superpod.benchmarks import data
from superpod.benchmarks.data import Contribution, Pattern, Repeating

if TYPE_CHECKING:  # peers bring these cases their data too, in environments that have numpy and no more
    from superpod.collectives.communicator import Communicator


@dataclass(frozen=True, slots=True)
class Setup:
    """One measurement as one rank sees it. `share` is count // world_size, the elements of one rank's block."""

    rank: int
    world_size: int
    count: int
    dtype: np.dtype[Any]
    op: str = "sum"
    root: int = 0

    @property
    def share(self) -> int:
        return self.count // self.world_size

    @property
    def at_root(self) -> bool:
        return self.rank == self.root

    def brought(self) -> Contribution:
        return data.contribution(self.rank, op=self.op, dtype=self.dtype, world_size=self.world_size)

    def reduced(self) -> Repeating:
        return data.reduced(op=self.op, dtype=self.dtype, world_size=self.world_size)

    def sent_by(self, rank: int) -> Repeating:
        return data.message(rank, self.dtype)


class Case(ABC):
    """A collective on this rank: buffers, data, the call and the check.

    `given` and `wanted` are the patterns of the send and the receive buffer, in equal parts; no pattern, no buffer.
    """

    name: ClassVar[str]
    reduces: ClassVar[bool] = False  # takes op
    rooted: ClassVar[bool] = False  # takes root
    blocks: ClassVar[bool] = False  # S is a block for each rank
    out_of_place: ClassVar[bool] = True
    chooses: ClassVar[bool] = True  # there are algorithms to choose from
    in_place: ClassVar[bool] = True  # the smaller buffer is this rank's block of the larger, or both are one
    messages: ClassVar[int] = 1  # that follow one another in a call; what is stated is the time of one

    def __init__(self, setup: Setup, *, in_place: bool) -> None:
        self.setup = setup
        self.given = list[Pattern](self.bring(setup))
        self.wanted = list[Pattern](self.want(setup))
        part = setup.share if self.blocks else setup.count
        send, recv = (np.empty(len(parts) * part, setup.dtype) for parts in (self.given, self.wanted))
        if in_place and not self.blocks:
            send = recv = max(send, recv, key=len)
        elif in_place and len(recv) >= len(send) > 0:
            send = recv[setup.rank * part :][:part]
        elif in_place and len(send) >= len(recv) > 0:
            recv = send[setup.rank * part :][:part]
        self.send, self.recv, self.is_in_place = send, recv, in_place

    def bring(self, s: Setup) -> list[Any]:
        """What lies in this rank's send buffer before the call."""
        return []

    def want(self, s: Setup) -> list[Any]:
        """What must lie in this rank's receive buffer after the call."""
        return []

    def prepare(self) -> None:
        """Fresh data: the receive buffer is wrong everywhere, then the send buffer is filled."""
        data.spoil(self.recv, self.wanted)
        data.fill(self.send, self.given)

    def wrong(self) -> int:
        """Elements of this rank that are not what they must be; a send buffer must not change out of place."""
        touched = 0 if self.is_in_place else data.count_wrong(self.send, self.given)
        return data.count_wrong(self.recv, self.wanted) + touched

    @abstractmethod
    def run(self, comm: Communicator, **how: Any) -> None:
        """The call that is measured; `how` may name the algorithm."""


class AllReduce(Case):
    name, reduces = "all_reduce", True

    def bring(self, s: Setup) -> list[Any]:
        return [s.brought()]

    def want(self, s: Setup) -> list[Any]:
        return [s.reduced()]

    def run(self, comm: Communicator, **how: Any) -> None:
        comm.all_reduce(self.send, op=self.setup.op, out=None if self.is_in_place else self.recv, **how)


class Broadcast(Case):
    name, rooted, out_of_place = "broadcast", True, False

    def bring(self, s: Setup) -> list[Any]:
        return [s.sent_by(s.root)] if s.at_root else []

    def want(self, s: Setup) -> list[Any]:
        return [s.sent_by(s.root)]

    def run(self, comm: Communicator, **how: Any) -> None:
        comm.broadcast(self.recv, root=self.setup.root, **how)


class Reduce(Case):
    name, reduces, rooted = "reduce", True, True

    def bring(self, s: Setup) -> list[Any]:
        return [s.brought()]

    def want(self, s: Setup) -> list[Any]:
        return [s.reduced()] if s.at_root else []

    def run(self, comm: Communicator, **how: Any) -> None:
        out = self.recv if self.setup.at_root and not self.is_in_place else None
        comm.reduce(self.send, root=self.setup.root, op=self.setup.op, out=out, **how)


class AllGather(Case):
    name, blocks = "all_gather", True

    def bring(self, s: Setup) -> list[Any]:
        return [s.sent_by(s.rank)]

    def want(self, s: Setup) -> list[Any]:
        return [s.sent_by(sender) for sender in range(s.world_size)]

    def run(self, comm: Communicator, **how: Any) -> None:
        comm.all_gather(self.send, out=self.recv.reshape(self.setup.world_size, -1), **how)


class ReduceScatter(Case):
    name, reduces, blocks = "reduce_scatter", True, True

    def bring(self, s: Setup) -> list[Any]:
        return [s.brought().at(block * s.share) for block in range(s.world_size)]

    def want(self, s: Setup) -> list[Any]:
        return [s.reduced().at(s.rank * s.share)]

    def run(self, comm: Communicator, **how: Any) -> None:
        comm.reduce_scatter(self.send, op=self.setup.op, out=self.recv, **how)


class AllToAll(Case):
    name, blocks, in_place = "all_to_all", True, False

    def bring(self, s: Setup) -> list[Any]:
        return [s.sent_by(s.rank).at(receiver * s.share) for receiver in range(s.world_size)]

    def want(self, s: Setup) -> list[Any]:
        return [s.sent_by(sender).at(s.rank * s.share) for sender in range(s.world_size)]

    def run(self, comm: Communicator, **how: Any) -> None:
        comm.all_to_all(self.send, out=self.recv, **how)


class Gather(Case):
    name, rooted, blocks = "gather", True, True

    def bring(self, s: Setup) -> list[Any]:
        return [s.sent_by(s.rank)]

    def want(self, s: Setup) -> list[Any]:
        return [s.sent_by(sender) for sender in range(s.world_size)] if s.at_root else []

    def run(self, comm: Communicator, **how: Any) -> None:
        out = self.recv.reshape(self.setup.world_size, -1) if self.setup.at_root else None
        comm.gather(self.send, root=self.setup.root, out=out, **how)


class Scatter(Case):
    name, rooted, blocks = "scatter", True, True

    def bring(self, s: Setup) -> list[Any]:
        return [s.sent_by(s.root).at(r * s.share) for r in range(s.world_size)] if s.at_root else []

    def want(self, s: Setup) -> list[Any]:
        return [s.sent_by(s.root).at(s.rank * s.share)]

    def run(self, comm: Communicator, **how: Any) -> None:
        array = self.send.reshape(self.setup.world_size, -1) if self.setup.at_root else None
        comm.scatter(array, root=self.setup.root, out=self.recv, **how)


class SendRecv(Case):
    """Every rank sends to the next one and receives from the one before, at once."""

    name, in_place, chooses = "sendrecv", False, False

    def bring(self, s: Setup) -> list[Any]:
        return [s.sent_by(s.rank)]

    def want(self, s: Setup) -> list[Any]:
        return [s.sent_by((s.rank - 1) % s.world_size)]

    def run(self, comm: Communicator, **how: Any) -> None:
        n = self.setup.world_size
        sending = comm.send(self.send, (self.setup.rank + 1) % n, async_op=True)
        comm.recv(self.recv, (self.setup.rank - 1) % n)
        sending.wait()


class Barrier(Case):
    name, in_place = "barrier", False

    def run(self, comm: Communicator, **how: Any) -> None:
        comm.barrier(**how)


CASES: dict[str, type[Case]] = {
    case.name: case
    for case in (
        *(AllReduce, Broadcast, Reduce, AllGather, ReduceScatter),
        *(AllToAll, Gather, Scatter, SendRecv, Barrier),
    )
}
