"""Rows of predictions: one for each size and algorithm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from superpod.benchmarks.busbw import algbw, busbw
from superpod.collectives import algorithms
from superpod.collectives.simulate import Machine, Prediction, suited
from superpod.interconnect.errors import InvalidValue

Row = dict[str, Any]

BEST = "best"
"""As an algorithm: the fastest one for each size."""


def chosen(collective: str, text: str) -> tuple[str, ...]:
    """The algorithms that "ring,tree", "all" or "best" names. Raises InvalidValue listing those there are."""
    known = algorithms.names(collective)
    if text == BEST:
        return (BEST,)
    names = known if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        algorithms.get(collective, name)
    return names


def rows(
    machine: Machine, n: int, collective: str, names: Iterable[str], sizes: Iterable[int], root: int = 0
) -> Iterator[Row]:
    """One row for each size and algorithm, sizes outermost, with at least nbytes, algorithm, seconds, algbw_gbps,
    busbw_gbps and bottleneck. Raises InvalidValue as `Machine.predict` does.
    """
    if n < 1:
        raise InvalidValue(f"{n} cards must be at least 1")
    wanted = tuple(names)
    every = algorithms.names(collective) if wanted == (BEST,) else wanted
    schedules = [(name, suited(machine, collective, name, n, root)) for name in every]
    mark = machine.topology.weakest_mark()
    for nbytes in (0,) if collective == "barrier" else sizes:
        found = (row(machine.predict(s, nbytes), collective, name, n, nbytes, mark) for name, s in schedules)
        if wanted == (BEST,):
            yield min(found, key=lambda one: float(one["seconds"]))
        else:
            yield from found


def row(p: Prediction, collective: str, algorithm: str, n: int, nbytes: int, mark: str) -> Row:
    """A prediction as a row; `mark`: the least sure figure that went into it."""
    seconds = p.seconds
    return {
        "collective": collective,
        "cards": n,
        "nbytes": nbytes,
        "algorithm": algorithm,
        "seconds": seconds,
        "algbw_gbps": algbw(nbytes=nbytes, seconds=seconds) / 1e9 if seconds else 0.0,
        "busbw_gbps": busbw(collective, nbytes=nbytes, seconds=seconds, world_size=n) / 1e9 if seconds else 0.0,
        "steps": p.nsteps,
        "bottleneck": p.bottleneck,
        "utilisation": p.utilisation,
        "share_of_bound": p.share_of_bound,
        "protocol": p.protocol,
        "links": {u.name: {"busiest": u.busiest, "mean": u.mean} for u in p.usage},
        "sampled": p.sampled,
        "mark": mark,
    }


_MARK_TEXT = {
    "A": "all read in primary sources",
    "fitted": "fitted: to measured points",
    "B": "B: secondary sources, or read off plots",
    "D": "D: arithmetic from other figures",
    "V": "V: a vendor's target, not a measurement",
    "assumed": "assumed: no source; superpod-sim topology says which",
}


def mark_text(mark: str) -> str:
    """A mark of certainty in words."""
    return _MARK_TEXT[mark]
