"""From measured times to rules: which algorithm for which sizes, without a split that noise alone would make."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import hypot, inf, isqrt, log
from statistics import median, quantiles
from typing import Any, NamedTuple

from superpod.collectives.select import MAX

_ALIKE = 0.05  # times that differ by no more are alike: so much lies between two runs on a quiet machine
_SPLIT = log(1.1)  # a further range must save a tenth of one size's time, all its sizes together
_OTHERWISE = 0.01  # at each size, of what is not chosen anyway: of several that are alike, nothing changes


class Times(NamedTuple):
    """Seconds of a call: the median of the turns and their quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(turns: Sequence[float]) -> Times:
        """From one turn or more."""
        if len(turns) == 1:
            return Times(turns[0], turns[0], turns[0])
        low, _, high = quantiles(turns, n=4, method="inclusive")
        return Times(median(turns), low, high)

    @property
    def noise(self) -> float:
        """Half the distance of the quartiles, as a part of the median."""
        return (self.high - self.low) / 2 / self.median

    def loss(self, best: Times) -> float:
        """How much slower than `best` this is beyond noise: the logarithm of the ratio, less that of noise."""
        return max(0.0, log(self.median / best.median) - max(_ALIKE, hypot(self.noise, best.noise)))


Measured = Mapping[str, Times]
"""Algorithm → times, of one case."""


def winners(sizes: Sequence[Measured], built_in: Sequence[str]) -> list[str]:
    """An algorithm for each size: the path of least loss, where each change of algorithm counts as a loss, too.

    Args:
        sizes: what was measured, size by size.
        built_in: the algorithms that are chosen if nothing is tuned.
    """
    names = list(dict.fromkeys(name for one in sizes for name in one))
    lost = dict.fromkeys(names, 0.0)  # of the best path that ends with this algorithm
    steps: list[dict[str, str]] = []  # the algorithm before it on that path
    for one, usual in zip(sizes, built_in, strict=True):
        cheapest = min(lost, key=lambda name: lost[name])
        before = {name: name if lost[name] <= lost[cheapest] + _SPLIT else cheapest for name in names}
        lost = {
            name: lost[before[name]] + (_SPLIT if before[name] != name else 0.0) + _loss(one, name, usual)
            for name in names
        }
        steps.append(before)
    path = [min(lost, key=lambda name: lost[name])]
    for before in reversed(steps[1:]):
        path.append(before[path[-1]])
    return path[::-1]


def _loss(one: Measured, name: str, usual: str) -> float:
    if name not in one:
        return inf
    return one[name].loss(min(one.values())) + (_OTHERWISE if name != usual else 0.0)


def rules(
    measured: Mapping[int, Measured], names: Collection[str], built_in: Callable[[int], str]
) -> list[dict[str, Any]]:
    """Rules in ascending order of nbytes, with microseconds.

    Args:
        measured: size in bytes → times, in ascending order.
        names: the algorithms that may be chosen.
        built_in: size → the algorithm that is chosen if nothing is tuned.
    Returns:
        nbytes, algorithm; at the last measured size of its range, `at` [B], what it took and the next best one.
    """
    able = {nbytes: {name: one[name] for name in one if name in names} for nbytes, one in measured.items()}
    sizes = [nbytes for nbytes, one in able.items() if one]
    chosen = winners([able[nbytes] for nbytes in sizes], [built_in(nbytes) for nbytes in sizes]) if sizes else []
    found = []
    for k, (nbytes, name) in enumerate(zip(sizes, chosen, strict=True)):
        last = k + 1 == len(sizes)
        if last or chosen[k + 1] != name:
            limit = nbytes if last else isqrt(nbytes * sizes[k + 1])  # half way, as sizes grow
            found.append({"nbytes": limit, "algorithm": name, "at": nbytes, **_figures(able[nbytes], name)})
    return found


def _figures(one: Measured, name: str) -> dict[str, Any]:
    figures: dict[str, Any] = {"us": microseconds(one[name].median)}
    if others := {other: times for other, times in one.items() if other != name}:
        second = min(others, key=lambda other: others[other])
        figures |= {"runner_up": second, "runner_up_us": microseconds(others[second].median)}
    return figures


def microseconds(seconds: float) -> float:
    """To a thousandth."""
    return round(seconds * 1e6, 3)


def for_any_size(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rule of a collective that has no size."""
    return [{**rule, "nbytes": MAX} for rule in found[-1:]]
