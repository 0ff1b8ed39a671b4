"""One card of superpod-bench tune: `superpod-run -n N -m superpod.benchmarks.tune_player SOCKET`.

Every algorithm is a player of its own, and all of them share this card's arrays.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from superpod.benchmarks.cases import Case
from superpod.benchmarks.player import CaseTurns, Order, play
from superpod.collectives import algorithms
from superpod.collectives.communicator import Communicator, init
from superpod.interconnect.env import COLLECTIVES


class Chosen:
    """superpod with an algorithm that is given anew for each turn."""

    def __init__(self, comm: Communicator) -> None:
        self.algorithm = ""
        self._comm = comm

    def call(self, case: Case) -> Callable[[], object]:
        return lambda: case.run(self._comm, algorithm=self.algorithm)

    def meet(self) -> None:
        self._comm.barrier()


class AlgorithmTurns(CaseTurns):
    """Turns whose player is an algorithm. Data are made anew only for a check: for 64 cards it takes a second."""

    def __init__(self, comm: Communicator) -> None:
        self._chosen = Chosen(comm)
        super().__init__(comm.rank, comm.world_size, self._chosen)

    def turn(self, order: Order) -> tuple[float, int]:
        """Calls that follow one another, after some to warm up and, if it is wanted, one that is checked."""
        self._chosen.algorithm = order["player"]
        case, call = self._made(order)
        wrong = self._wrong(case, call) if order["check"] else 0
        for _ in range(order["warmup"]):
            call()
        self._chosen.meet()
        start = time.perf_counter()
        for _ in range(order["calls"]):
            call()
        return (time.perf_counter() - start) / order["calls"], wrong


def main(argv: list[str]) -> None:
    comm = init()
    comm.all_reduce(np.ones(1))
    names = dict.fromkeys(name for collective in COLLECTIVES for name in algorithms.names(collective))
    play(argv[0], comm.rank, dict.fromkeys(names, AlgorithmTurns(comm)))
    comm.close()


if __name__ == "__main__":
    main(sys.argv[1:])
