"""superpod through its own API, on numpy arrays: a player for each of the algorithms that are listed.

`superpod-run -n N -m superpod.benchmarks.superpod_player ADDRESS ALGORITHM,ALGORITHM`
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import numpy as np

from superpod.benchmarks.cases import Case
from superpod.benchmarks.plan import AUTO, player_name
from superpod.benchmarks.player import CaseTurns, play
from superpod.collectives.communicator import Communicator, init


class SuperpodPlayer:
    def __init__(self, comm: Communicator, algorithm: str = AUTO) -> None:
        self._comm = comm
        self._how = {} if algorithm == AUTO else {"algorithm": algorithm}

    def call(self, case: Case) -> Callable[[], object]:
        return partial(case.run, self._comm, **self._how)

    def meet(self) -> None:
        self._comm.barrier()


def main(argv: list[str]) -> None:
    comm = init()
    comm.all_reduce(np.ones(1))  # what superpod-bench launch waits for
    rank, n = comm.rank, comm.world_size
    players = {name: SuperpodPlayer(comm, name) for name in argv[1].split(",")}
    play(argv[0], rank, {player_name(name): CaseTurns(rank, n, player) for name, player in players.items()})
    comm.close()


if __name__ == "__main__":
    main(sys.argv[1:])
