"""Times all algorithms of a collective on the same data, in turn; the slow ones leave early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from superpod.benchmarks.tune_rules import Measured, Times

_SLOW_AT_FIRST, _SLOW = 5.0, 2.0  # times the fastest: after the first calls, and after two turns
_CALLS = 50  # in a turn, at most
_SHORT = 0.01  # seconds: a call that takes no longer is tried a few times more, for a single one tells little


class WrongResults(RuntimeError):
    """An algorithm computes something wrong here, so no table can be made."""


class Turns(Protocol):
    """See Stage."""

    def turn(self, player: str, order: Mapping[str, Any]) -> tuple[float, int]: ...


def measure(stage: Turns, names: Sequence[str], case: Mapping[str, Any], turns: int, budget: float) -> Measured:
    """Algorithm → times. Those that are out early have the time of what they were given.

    Args:
        case: collective, count, dtype, op, root.
        budget: about how many seconds all calls may take, beyond a first one of each that is checked.
    Raises:
        WrongResults: naming the algorithm.
    """
    times: dict[str, list[float]] = {}
    first: dict[str, float] = {}
    for name in names:
        first[name], wrong = stage.turn(name, {**case, "calls": 1, "warmup": 0, "check": True})
        if wrong:
            what = f"{case['collective']} of {case['count']} elements by {name}"
            raise WrongResults(f"{what}: {wrong} elements are wrong")
        if first[name] < _SHORT:
            more, _ = stage.turn(name, {**case, "calls": 4, "warmup": 2, "check": False})
            first[name] = min(first[name], more)
    racing = _fast(first, _SLOW_AT_FIRST)
    for turn in range(turns):
        for name in racing:
            share = budget / turns / len(racing)
            calls = max(1, min(_CALLS, int(share / max(first[name], 1e-9))))
            order = {**case, "calls": calls, "warmup": min(2, calls), "check": False}
            times.setdefault(name, []).append(stage.turn(name, order)[0])
        if turn == 1:
            racing = _fast({name: min(times[name]) for name in racing}, _SLOW)
    return {name: Times.of(times.get(name, [first[name]])) for name in names}


def _fast(seconds: Mapping[str, float], factor: float) -> list[str]:
    limit = factor * min(seconds.values())
    return [name for name, one in seconds.items() if one <= limit]
