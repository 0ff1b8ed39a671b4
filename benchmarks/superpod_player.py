"""superpod through its own API, on numpy arrays: `superpod-run -n N -m superpod.benchmarks.superpod_player SOCKET`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from superpod.benchmarks.cases import Case
from superpod.benchmarks.player import CaseTurns, play
from superpod.collectives.communicator import Communicator, init

NAME = "superpod"


class SuperpodPlayer:
    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def call(self, case: Case) -> Callable[[], object]:
        return partial(case.run, self._comm)

    def meet(self) -> None:
        self._comm.barrier()


def main(argv: list[str]) -> None:
    comm = init()
    comm.all_reduce(np.ones(1))  # what superpod-bench launch waits for
    play(argv[0], comm.rank, {NAME: CaseTurns(comm.rank, comm.world_size, SuperpodPlayer(comm))})
    comm.close()


if __name__ == "__main__":
    main(sys.argv[1:])
