"""An MPI through mpi4py, on numpy arrays: `mpirun -n N python -m superpod.benchmarks.mpi_player ADDRESS NAME`.

It runs in an environment of its own, with the MPI in question, mpi4py and numpy; `make bench-peers` makes these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from mpi4py import MPI

from superpod.benchmarks.cases import Case
from superpod.benchmarks.player import CaseTurns, play
from superpod.benchmarks.point_to_point import WINDOW, Bandwidth

_OPERATIONS = {
    "sum": MPI.SUM,
    "product": MPI.PROD,
    "min": MPI.MIN,
    "max": MPI.MAX,
    "band": MPI.BAND,
    "bor": MPI.BOR,
    "bxor": MPI.BXOR,
}


class MpiPlayer:
    def __init__(self, comm: Any) -> None:
        self._comm = comm

    def call(self, case: Case) -> Callable[[], object]:
        bind: Callable[[Case], Callable[[], object]] = getattr(self, f"_{case.name}")
        return bind(case)

    def meet(self) -> None:
        self._comm.Barrier()

    def _all_reduce(self, case: Case) -> Callable[[], object]:
        return partial(self._comm.Allreduce, MPI.IN_PLACE, case.recv, _OPERATIONS[case.setup.op])

    def _broadcast(self, case: Case) -> Callable[[], object]:
        return partial(self._comm.Bcast, case.recv, case.setup.root)

    def _reduce(self, case: Case) -> Callable[[], object]:
        op, root = _OPERATIONS[case.setup.op], case.setup.root
        if case.setup.at_root:
            return partial(self._comm.Reduce, MPI.IN_PLACE, case.recv, op, root)
        return partial(self._comm.Reduce, case.send, None, op, root)

    def _all_gather(self, case: Case) -> Callable[[], object]:
        return partial(self._comm.Allgather, case.send, case.recv)

    def _reduce_scatter(self, case: Case) -> Callable[[], object]:
        return partial(self._comm.Reduce_scatter_block, case.send, case.recv, _OPERATIONS[case.setup.op])

    def _all_to_all(self, case: Case) -> Callable[[], object]:
        return partial(self._comm.Alltoall, case.send, case.recv)

    def _gather(self, case: Case) -> Callable[[], object]:
        return partial(self._comm.Gather, case.send, case.recv if case.setup.at_root else None, case.setup.root)

    def _scatter(self, case: Case) -> Callable[[], object]:
        return partial(self._comm.Scatter, case.send if case.setup.at_root else None, case.recv, case.setup.root)

    def _barrier(self, case: Case) -> Callable[[], object]:
        barrier: Callable[[], object] = self._comm.Barrier
        return barrier

    def _sendrecv(self, case: Case) -> Callable[[], object]:
        n, rank = self._comm.size, self._comm.rank
        return partial(self._comm.Sendrecv, case.send, (rank + 1) % n, 0, case.recv, (rank - 1) % n, 0)

    def _latency(self, case: Case) -> Callable[[], object]:
        comm, send, recv = self._comm, case.send, case.recv

        def there_and_back() -> None:
            comm.Send(send, 1)
            comm.Recv(recv, 1)

        def back_and_there() -> None:
            comm.Recv(recv, 0)
            comm.Send(send, 0)

        return {0: there_and_back, 1: back_and_there}.get(comm.rank, _nothing)

    def _bandwidth(self, case: Case) -> Callable[[], object]:
        assert isinstance(case, Bandwidth)
        comm, send, recv, answer = self._comm, case.send, case.recv, case.answer

        def give() -> None:
            MPI.Request.Waitall([comm.Isend(send, 1) for _ in range(WINDOW)])
            comm.Recv(answer, 1)

        def take() -> None:
            MPI.Request.Waitall([comm.Irecv(recv, 0) for _ in range(WINDOW)])
            comm.Send(answer, 0)

        return {0: give, 1: take}.get(comm.rank, _nothing)


def _nothing() -> None:
    pass


def main(argv: list[str]) -> None:
    comm = MPI.COMM_WORLD
    comm.Allreduce(MPI.IN_PLACE, np.ones(1))  # what superpod-bench launch waits for
    play(argv[0], comm.rank, {argv[1]: CaseTurns(comm.rank, comm.size, MpiPlayer(comm))})


if __name__ == "__main__":
    main(sys.argv[1:])
