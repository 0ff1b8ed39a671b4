"""Times all algorithms of a collective on the same data, in turn; the slow ones leave early."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Protocol

from superpod.benchmarks.tune_rules import Measured, Times

_SLOW_AT_FIRST, _SLOW = 4.0, 2.0  # times the fastest: after the first calls, and after two turns
_CALLS = 50  # in a turn, at most
_SHORT = 0.01  # seconds: a call that takes no longer is tried a few times more, for a single one tells little


class WrongResults(RuntimeError):
    """An algorithm computes something wrong here, so no table can be made."""


class Turns(Protocol):
    """See Stage."""

    def turn(self, player: str, order: Mapping[str, Any]) -> tuple[float, int]: ...


def measure(
    stage: Turns,
    names: Sequence[str],
    case: Mapping[str, Any],
    turns: int,
    budget: float,
    at_least: Mapping[str, float] | None = None,
) -> Measured:
    """Algorithm → times. Those that are out early have the time of what they were given.

    Args:
        case: collective, count, dtype, op, root.
        budget: about how many seconds it may take, but a quarter of it is for turns, however long the first calls took.
        at_least: seconds that an algorithm took for less. Those that were slower than others are now are left out: on
            64 cards it takes a second to prepare a call.
    Raises:
        WrongResults: naming the algorithm.
    """
    begun, times = time.monotonic(), dict[str, list[float]]()
    first: dict[str, float] = {}
    at_least = at_least or {}
    for name in sorted(names, key=lambda name: at_least.get(name, 0.0)):
        if at_least.get(name, 0.0) <= _SLOW_AT_FIRST * min(first.values(), default=inf):
            first[name] = _first(stage, name, case)
    racing = _fast(first, _SLOW_AT_FIRST)
    budget = max(budget / 4, budget - (time.monotonic() - begun))
    for turn in range(turns):
        for name in racing:
            share = budget / turns / len(racing)
            calls = max(1, min(_CALLS, int(share / max(first[name], 1e-9))))
            order = {**case, "calls": calls, "warmup": min(2, calls), "check": False}
            times.setdefault(name, []).append(stage.turn(name, order)[0])
        if turn == 1:
            racing = _fast({name: min(times[name]) for name in racing}, _SLOW)
    return {name: Times.of(times.get(name, [first[name]])) for name in first}


def _first(stage: Turns, name: str, case: Mapping[str, Any]) -> float:
    """Seconds of the first calls, whose results are checked."""
    seconds, wrong = stage.turn(name, {**case, "calls": 1, "warmup": 0, "check": True})
    if wrong:
        raise WrongResults(f"{case['collective']} of {case['count']} elements by {name}: {wrong} elements are wrong")
    if seconds >= _SHORT:
        return seconds
    return min(seconds, stage.turn(name, {**case, "calls": 4, "warmup": 2, "check": False})[0])


def _fast(seconds: Mapping[str, float], factor: float) -> list[str]:
    limit = factor * min(seconds.values())
    return [name for name, one in seconds.items() if one <= limit]
