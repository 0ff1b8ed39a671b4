"""What every card of a benchmark runs: `superpod-run -n N -m superpod.benchmarks.worker PLAN CHANNEL`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from superpod.benchmarks.busbw import algbw, busbw
from superpod.benchmarks.cases import Setup
from superpod.benchmarks.job import Reporter
from superpod.benchmarks.measure import Sample, measure
from superpod.benchmarks.plan import AUTO, Plan, Series
from superpod.collectives.communicator import Communicator, init


def main(argv: list[str]) -> None:
    plan = Plan.from_json(argv[0])
    comm = init()
    # In place, results pile up from call to call and may overflow; only the checked calls start from fresh data.
    with np.errstate(all="ignore"), Reporter(argv[1] if comm.rank == 0 else None) as reporter:
        for series in plan.series:
            for count in plan.counts(series, comm.world_size):
                reporter.send(_row(comm, plan, series, count))
    comm.close()


def _row(comm: Communicator, plan: Plan, series: Series, count: int) -> dict[str, Any]:
    """Measure one size, out of place and in place as far as the collective has them."""
    kind = series.case
    setup = Setup(comm.rank, comm.world_size, count, np.dtype(series.dtype), series.op, plan.root)
    nbytes = count * setup.dtype.itemsize
    row: dict[str, Any] = {
        "collective": series.collective,
        "world_size": comm.world_size,
        "nbytes": nbytes,
        "count": setup.share if kind.blocks else count,
        "dtype": series.dtype,
        "op": series.op,
        "root": plan.root if kind.rooted else -1,
        "link": comm.link,
        "requested_algorithm": series.algorithm,
        "out_of_place": None,
        "in_place": None,
    }
    for place in ("in_place", "out_of_place"):  # in this order: the row's own figures are those of the last one
        if getattr(kind, place):
            case = kind(setup, in_place=place == "in_place")
            sample = measure(comm, case, plan, None if series.algorithm == AUTO else series.algorithm)
            row[place] = _numbers(series.collective, nbytes, comm.world_size, sample)
            row |= row[place] | {"algorithm": sample.algorithm, "reason": sample.reason, "place": place}
    return row


def _numbers(collective: str, nbytes: int, world_size: int, sample: Sample) -> dict[str, Any]:
    bus = busbw(collective, nbytes=nbytes, seconds=sample.seconds, world_size=world_size)
    return {
        "time_us": round(sample.seconds * 1e6, 3),
        "algbw_gbps": round(algbw(nbytes=nbytes, seconds=sample.seconds) / 1e9, 6),
        "busbw_gbps": round(bus / 1e9, 6),
        "wrong": sample.wrong,
        "iters": sample.iters,
        "min_us": round(sample.fastest * 1e6, 3),
        "median_us": round(sample.median * 1e6, 3),
        "max_us": round(sample.slowest * 1e6, 3),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
