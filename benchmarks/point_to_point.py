"""Messages between rank 0 and rank 1 as cases: how long one takes, how many bytes a second a stream of them carries.

As in the OSU micro-benchmarks: latency is half of there and back again; for bandwidth a window of messages is under way
at once and answered by one small one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from superpod.benchmarks.cases import CASES, Case, Setup

if TYPE_CHECKING:
    from superpod.collectives.communicator import Communicator

WINDOW = 16  # messages of `bandwidth` that are under way at once


class Latency(Case):
    """Rank 0 sends to rank 1, which then sends its own message back."""

    name, in_place, chooses, messages = "latency", False, False, 2

    def bring(self, s: Setup) -> list[Any]:
        return [s.sent_by(s.rank)] if s.rank < 2 else []

    def want(self, s: Setup) -> list[Any]:
        return [s.sent_by(1 - s.rank)] if s.rank < 2 else []

    def run(self, comm: Communicator, **how: Any) -> None:
        if comm.rank == 0:
            comm.send(self.send, 1)
            comm.recv(self.recv, 1)
        elif comm.rank == 1:
            comm.recv(self.recv, 0)
            comm.send(self.send, 0)


class Bandwidth(Case):
    """Rank 0 sends a window of messages to rank 1, which answers when it has them all."""

    name, in_place, chooses, messages = "bandwidth", False, False, WINDOW

    def __init__(self, setup: Setup, *, in_place: bool) -> None:
        super().__init__(setup, in_place=in_place)
        self.answer = np.zeros(1, np.uint8)

    def bring(self, s: Setup) -> list[Any]:
        return [s.sent_by(0)] if s.rank == 0 else []

    def want(self, s: Setup) -> list[Any]:
        return [s.sent_by(0)] if s.rank == 1 else []

    def run(self, comm: Communicator, **how: Any) -> None:
        if comm.rank == 0:
            works = [comm.send(self.send, 1, async_op=True) for _ in range(WINDOW)]
            for work in works:
                work.wait()
            comm.recv(self.answer, 1)
        elif comm.rank == 1:
            works = [comm.recv(self.recv, 0, async_op=True) for _ in range(WINDOW)]
            for work in works:
                work.wait()
            comm.send(self.answer, 0)


POINT_TO_POINT: dict[str, type[Case]] = {case.name: case for case in (Latency, Bandwidth)}
EVERY = CASES | POINT_TO_POINT
