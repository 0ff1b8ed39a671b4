"""What the tests of passages share: counting what goes through them, doing without, a loop of messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from superpod.collectives.communicator import Communicator
from superpod.interconnect import passage, shm_connection, shm_ring
from superpod.interconnect.streams import Receive

ENV = {"SUPERPOD_LINK": "shm"}


class Counted:
    """A passage that counts what has gone through it."""

    def __init__(self, way: Any) -> None:
        self.way, self.sent, self.received = way, 0, 0

    def send(self, array: Any) -> bool:
        done: bool = self.way.send(array)
        self.sent += done
        return done

    def recv(self, array: Any) -> bool:
        done: bool = self.way.recv(array)
        self.received += done
        return done

    def fetch(self, receive: Receive, waits: bool) -> bool:
        done: bool = self.way.fetch(receive, waits)
        self.received += done
        return done


def counted(comm: Communicator) -> list[Counted]:
    """From now on every new passage of the card counts."""
    ways: list[Counted] = []
    make = comm._engine.mesh.passage

    def counting(*form: Any) -> Any:
        way = make(*form)
        if not isinstance(way, passage.Passage):
            return way
        ways.append(Counted(way))
        return ways[-1]

    comm._engine.mesh.passage = counting  # type: ignore[method-assign]
    return ways


def without(comm: Communicator, what: str) -> None:
    """This card has no compiled messages; or not even compiled rings."""
    if what:
        comm._engine.mesh.passage = lambda *form: passage.NO_PASSAGE  # type: ignore[method-assign]
    if what == "rings":
        shm_connection.Outgoing, shm_connection.Incoming = shm_ring.Outgoing, shm_ring.Incoming  # type: ignore[misc]


def back_and_forth(comm: Communicator, turns: int = 20, nbytes: int = 8) -> None:
    """Until both ways have their short ones."""
    other, array = 1 - comm.rank, np.full(nbytes, comm.rank, np.uint8)
    for turn in range(turns):
        if comm.rank == turn % 2:
            comm.send(array, other)
        else:
            comm.recv(array, other)
