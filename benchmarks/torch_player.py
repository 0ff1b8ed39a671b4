"""A backend of torch.distributed: `superpod-run -n N -m superpod.benchmarks.torch_player ADDRESS BACKEND`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from superpod.benchmarks.cases import Case
from superpod.benchmarks.player import CaseTurns, play
from superpod.benchmarks.point_to_point import WINDOW, Bandwidth

Call = Callable[[], object]

_dist: Any = dist  # torch's stubs say less than we know: a rank of the group gets a Work
# their older names warn at every call where these exist
_ALL_GATHER = getattr(_dist, "all_gather_single", _dist.all_gather_into_tensor)
_REDUCE_SCATTER = getattr(_dist, "reduce_scatter_single", _dist.reduce_scatter_tensor)


class TorchPlayer:
    def __init__(self, group: Any) -> None:
        self._group = group
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()

    def call(self, case: Case) -> Call:
        bind: Callable[[Case, Tensor, Tensor], Call] = getattr(self, f"_{case.name}")
        return bind(case, torch.from_numpy(case.send), torch.from_numpy(case.recv))

    def meet(self) -> None:
        dist.barrier(self._group)

    def _all_reduce(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        return partial(dist.all_reduce, recv, _op(case), self._group)

    def _broadcast(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        return partial(dist.broadcast, recv, case.setup.root, self._group)

    def _reduce(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        return partial(dist.reduce, send, case.setup.root, _op(case), self._group)

    def _all_gather(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        return partial(_ALL_GATHER, recv, send, self._group)

    def _reduce_scatter(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        return partial(_REDUCE_SCATTER, recv, send, _op(case), self._group)

    def _all_to_all(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        return partial(dist.all_to_all_single, recv, send, group=self._group)

    def _gather(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        blocks = list(recv.chunk(self._world_size)) if case.setup.at_root else None
        return partial(dist.gather, send, blocks, case.setup.root, self._group)

    def _scatter(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        blocks = list(send.chunk(self._world_size)) if case.setup.at_root else None
        return partial(dist.scatter, recv, blocks, case.setup.root, self._group)

    def _barrier(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        return self.meet

    def _sendrecv(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        n, rank, group = self._world_size, self._rank, self._group

        def pass_on() -> None:
            sending = _dist.isend(send, (rank + 1) % n, group)
            dist.recv(recv, (rank - 1) % n, group)
            sending.wait()

        return pass_on

    def _latency(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        group = self._group

        def there_and_back() -> None:
            dist.send(send, 1, group)
            dist.recv(recv, 1, group)

        def back_and_there() -> None:
            dist.recv(recv, 0, group)
            dist.send(send, 0, group)

        return {0: there_and_back, 1: back_and_there}.get(self._rank, _nothing)

    def _bandwidth(self, case: Case, send: Tensor, recv: Tensor) -> Call:
        assert isinstance(case, Bandwidth)
        group, answer = self._group, torch.from_numpy(case.answer)

        def give() -> None:
            for work in [_dist.isend(send, 1, group) for _ in range(WINDOW)]:
                work.wait()
            dist.recv(answer, 1, group)

        def take() -> None:
            for work in [_dist.irecv(recv, 0, group) for _ in range(WINDOW)]:
                work.wait()
            dist.send(answer, 0, group)

        return {0: give, 1: take}.get(self._rank, _nothing)


def _op(case: Case) -> Any:
    return getattr(dist.ReduceOp, case.setup.op.upper())


def _nothing() -> None:
    pass


def name_of(backend: str) -> str:
    """What a backend of torch's is called in the results, where superpod stands for the numpy API."""
    return "superpod-torch" if backend == "superpod" else backend


def begin(backend: str) -> tuple[str, Any]:
    """torch.distributed with this backend: its name in the results, and the group of all ranks, who have met once."""
    dist.init_process_group(backend)
    dist.all_reduce(torch.ones(1))  # what superpod-bench launch waits for
    return name_of(backend), dist.group.WORLD


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)  # a card is one core
    name, group = begin(argv[1])
    play(argv[0], dist.get_rank(), {name: CaseTurns(dist.get_rank(), dist.get_world_size(), TorchPlayer(group))})
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
