"""What every card of `superpod-bench torch` runs: all-reduce on several backends of torch.distributed, in turn."""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from superpod.benchmarks import data
from superpod.benchmarks.job import Reporter
from superpod.benchmarks.torch_peers import OURS, TorchPlan

_MOST_CALLS = 50  # in one turn
_WARM_UP = 5  # calls before those that are timed


def main(argv: list[str]) -> None:
    plan = TorchPlan.from_json(argv[0])
    dist.init_process_group(OURS)
    groups = {name: None if name == OURS else dist.new_group(backend=name) for name in plan.backends}
    with Reporter(argv[1] if dist.get_rank() == 0 else None) as reporter:
        for nbytes in plan.sizes:
            reporter.send(_measure(plan, nbytes, groups))
    dist.destroy_process_group()


def _measure(plan: TorchPlan, nbytes: int, groups: dict[str, Any]) -> dict[str, Any]:
    """One size on all backends: a first turn shows how many calls are affordable, then they take turns."""
    array = np.empty(nbytes // np.dtype(plan.dtype).itemsize, plan.dtype)
    calls, wrong = {}, dict.fromkeys(groups, 0)
    for name, group in groups.items():
        seconds, wrong[name] = _turn(array, group, 2)
        calls[name] = max(1, min(_MOST_CALLS, int(plan.budget / plan.turns / seconds)))
    means: dict[str, list[float]] = {name: [] for name in groups}
    for _ in range(plan.turns):
        for name, group in groups.items():
            seconds, mistakes = _turn(array, group, calls[name])
            means[name].append(seconds)
            wrong[name] += mistakes
    return {
        "world_size": dist.get_world_size(),
        "nbytes": nbytes,
        "dtype": plan.dtype,
        "backends": {name: _summary(means[name], calls[name], wrong[name]) for name in groups},
    }


def _turn(array: np.ndarray[Any, Any], group: Any, calls: int) -> tuple[float, int]:
    """(mean seconds of a call on the slowest rank, wrong elements on all ranks); the same on every rank.

    As in nccl-tests: a few calls to warm up, then calls that follow one another. One more, on fresh data, is not timed
    but checked.
    """
    kind = {"op": "sum", "dtype": array.dtype, "world_size": dist.get_world_size()}
    brought, wanted = [data.contribution(dist.get_rank(), **kind)], [data.reduced(**kind)]
    tensor = torch.from_numpy(array)
    data.fill(array, brought)
    for _ in range(min(_WARM_UP, calls)):
        dist.all_reduce(tensor, group=group)
    dist.barrier(group)
    start = time.perf_counter()
    for _ in range(calls):
        dist.all_reduce(tensor, group=group)
    mean = torch.tensor([(time.perf_counter() - start) / calls], dtype=torch.float64)
    data.fill(array, brought)
    dist.all_reduce(tensor, group=group)
    dist.all_reduce(mean, op=dist.ReduceOp.MAX)
    wrong = torch.tensor([data.count_wrong(array, wanted)])
    dist.all_reduce(wrong)
    return float(mean), int(wrong)


def _summary(means: list[float], calls: int, wrong: int) -> dict[str, Any]:
    figures = {"median_us": median(means), "min_us": min(means), "max_us": max(means)}
    rounded = {name: round(value * 1e6, 3) for name, value in figures.items()}
    return rounded | {"calls": calls * len(means), "wrong": wrong}


if __name__ == "__main__":
    main(sys.argv[1:])
