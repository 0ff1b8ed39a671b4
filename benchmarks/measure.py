"""Time one case on all cards and check its result."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from superpod.benchmarks.cases import Case
from superpod.benchmarks.plan import Plan
from superpod.collectives.communicator import Communicator


@dataclass(frozen=True, slots=True)
class Sample:
    """One case at one size. Times in seconds.

    Attributes:
        seconds: mean time of a call, over the calls and then over the ranks as plan.average says.
        fastest, median, slowest: of the calls, each with the time of the rank that took longest in it.
        iters: how many calls were timed.
        wrong: elements that were not as they must be, on all ranks, in the first and the last call; None: not checked.
        algorithm, reason: what ran and why it was chosen; "none" where there is no choice.
    """

    seconds: float
    fastest: float
    median: float
    slowest: float
    iters: int
    wrong: int | None
    algorithm: str
    reason: str


def measure(comm: Communicator, case: Case, plan: Plan, algorithm: str | None) -> Sample:
    """Collective: every rank calls it with the same arguments, and every rank gets the same sample.

    Calls follow one another without a pause, as in a training step, so a rank that is done early runs ahead. The first
    call is checked and tells how many calls are affordable. Before the last one the data are made afresh and the ranks
    meet, so that its result is predictable, in place too, and is checked.
    """
    how = {} if algorithm is None else {"algorithm": algorithm}

    def call() -> float:
        start = time.perf_counter()
        case.run(comm, **how)
        return time.perf_counter() - start

    def fresh() -> None:
        case.prepare()
        comm.barrier()

    fresh()
    first = call()
    choice = comm.last if case.chooses else None
    wrong = case.wrong() if plan.check else 0
    warmup, iters = plan.repeats(float(comm.all_reduce(np.array([first]), op="max")[0]))
    for _ in range(warmup):
        call()
    comm.barrier()
    times = [call() for _ in range(iters - 1)]
    fresh()
    times.append(call())
    wrong += case.wrong() if plan.check else 0

    means = comm.all_gather(np.array([np.mean(times)]))
    all_wrong = int(comm.all_reduce(np.array([wrong]))[0])
    slowest_rank = comm.all_reduce(np.array(times), op="max")
    return Sample(
        seconds=float((means[0, 0], means.mean(), means.min(), means.max())[plan.average]),
        fastest=float(slowest_rank.min()),
        median=float(np.median(slowest_rank)),
        slowest=float(slowest_rank.max()),
        iters=iters,
        wrong=all_wrong if plan.check else None,
        algorithm=choice.algorithm if choice else "none",
        reason=choice.reason if choice else "",
    )
