"""superpod-bench COLLECTIVE --explain: which algorithm the cards of superpod-run would choose, and why."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from superpod.benchmarks.plan import AUTO, Plan, Series
from superpod.collectives import tuning
from superpod.collectives.fused import fused
from superpod.collectives.select import Selector
from superpod.collectives.selection import Selection, tuned_link
from superpod.interconnect.board import possible as boards_possible
from superpod.interconnect.env import Settings
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.shm_link import possible as shm_possible
from superpod.interconnect.units import seconds_text, size_text
from superpod.launcher.selection import selection_for


def run(todo: Plan, worlds: tuple[int, ...], link: str) -> int:
    """Print it, a line a size; returns the exit code. Raises InvalidValue."""
    if any(series.algorithm != AUTO for series in todo.series):
        raise InvalidValue("--algorithm leaves nothing to choose and so nothing to explain; leave one of the two out")
    settings, link = Settings.read(), link if link != "auto" else "shm" if shm_possible() else "zmq"
    for world_size in worlds:
        if world_size < 1:
            raise InvalidValue(f"-n {world_size} must be at least 1 card")
        selection = selection_for([world_size], (), {})
        known = None if selection.tuning is None else tuning.read(Path(selection.tuning.file))
        explainer = Explainer(link, world_size, settings, selection, known)
        for series in todo.series:
            if series.case.chooses:
                explainer.explain(todo, series)
    return 0


class Explainer:
    """For one link and one number of cards."""

    def __init__(
        self, link: str, n: int, settings: Settings, selection: Selection, known: tuning.TuningFile | None
    ) -> None:
        """`known`: the file of the selection's table."""
        self._link, self._n, self._known = link, n, known
        self._board = link == "shm" and boards_possible()
        self._selector = Selector(
            settings.overrides,
            board=self._board,
            deterministic=settings.deterministic,
            link=tuned_link(link, settings),
            selection=selection,
        )
        self._cores = "a core for every card" if selection.own_cores else "fewer cores than cards"

    def explain(self, todo: Plan, series: Series) -> None:
        """Print the choices of one collective."""
        print(f"# {series.collective}: nranks {self._n} link {self._link}, {self._cores}")
        print("#" + _cells("size", "algorithm", "by", "measured", "next best", "why")[1:])
        for count in todo.counts(series, self._n):
            nbytes = max(1, count * np.dtype(series.dtype).itemsize)
            choice = self._selector.choose(series.collective, nbytes, self._n)
            on_board = self._board and fused(series.collective, choice.algorithm, equal_blocks=True) is not None
            took, other = self._costs(series.collective, nbytes, choice.algorithm)
            way = "board" if on_board else "messages"
            print(_cells(size_text(nbytes), choice.algorithm, way, took, other, choice.reason))

    def _costs(self, collective: str, nbytes: int, algorithm: str) -> tuple[str, str]:
        """What the algorithm took where it was measured next to this case, and the best of the others; "-": unknown."""
        rows = [] if self._known is None else self._known.measured
        rows = [row for row in rows if (row["collective"], row["link"]) == (collective, self._link)]
        ranks = min((row["ranks"] for row in rows if row["ranks"] >= self._n), default=0)
        rows = [row for row in rows if row["ranks"] == ranks]
        if not rows:
            return "-", "-"
        row = min(rows, key=lambda row: abs(log(row["nbytes"] / nbytes)))
        us: Mapping[str, Any] = row["us"]
        other = min((name for name in us if name != algorithm), key=lambda name: float(us[name][0]), default="")
        took = seconds_text(us[algorithm][0] * 1e-6) if algorithm in us else "-"
        if row["nbytes"] != nbytes or ranks != self._n:
            took += f" ({size_text(row['nbytes'])}, n={ranks})"
        return took, f"{other} {seconds_text(us[other][0] * 1e-6)}" if other else "-"


def _cells(size: str, algorithm: str, way: str, took: str, other: str, why: str) -> str:
    return f"{size:>10}  {algorithm:<20} {way:<9} {took:<26} {other:<30} {why}"
