"""Proving schedules for worlds whose slots are too many to hold: a sample of chunks, each one completely.

Where every move keeps a chunk's number, chunks never meet. So what `verify` finds out about some of them, all ranks and
all steps, is certain for these; an algorithm that treats chunks alike, as all here do, has no others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from superpod.collectives.schedule import IntArray, Schedule, Step
from superpod.interconnect.errors import InvalidValue


def sample(schedule: Schedule, many: int, seed: int = 0) -> Schedule:
    """The same schedule for `many` of its chunks only, picked at random but the same ones every time, and the last.

    Raises InvalidValue for a collective of blocks (all_gather and its like): its chunks belong to ranks.
    """
    if schedule.collective not in ("all_reduce", "broadcast", "reduce"):
        raise InvalidValue(
            f"{schedule.collective} has a block a rank; only all_reduce, broadcast, reduce can be sampled"
        )
    everything = np.arange(schedule.nchunks)
    picked = np.random.default_rng(seed).choice(everything, min(many, len(everything)), replace=False)
    kept = np.union1d(picked, everything[-1:])
    return replace(
        schedule,
        nchunks=len(kept),
        build=lambda index: _restricted(schedule, schedule.step(index), kept),
        program=None,
        traffic=None,
    )


def _restricted(schedule: Schedule, step: Step, kept: IntArray) -> Step:
    """The moves of `kept` chunks, which are numbered anew."""
    bank, first = np.divmod(step.first, schedule.nchunks)
    other, to = np.divmod(step.to, schedule.nchunks)
    if np.any(first != to):
        raise InvalidValue(f"{schedule.algorithm} moves chunks to other numbers, so a sample of them proves nothing")
    low, high = np.searchsorted(kept, first), np.searchsorted(kept, first + step.count)
    some = high > low
    low, count = low[some], (high - low)[some]
    source, target = bank[some] * len(kept) + low, other[some] * len(kept) + low
    return Step.of(step.src[some], step.dst[some], source, count, target, reduce=step.reduce[some])
