"""What the cards' clocks say together: numbers for the closing table. No I/O.

Every number is that of the card that had most of it: all cards of a group make the same calls, so a call of a group
counts once, and groups that work side by side do not add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from math import fsum
from typing import Any

import numpy as np

from superpod.collectives import algorithms
from superpod.collectives.clock import ends, priced
from superpod.collectives.clock_log import STEP, Kind, Log
from superpod.collectives.clock_price import RECV, SEND, Price, Pricer
from superpod.collectives.clock_replay import replay
from superpod.interconnect.errors import InvalidValue, ranks_text
from superpod.launcher.machine import MachineSpec, WhatIf

Prices = Callable[[Kind, int, Log], Price]
"""(kind, rank of the card, its log) → what such a call takes."""


def books(machine: MachineSpec, logs: Mapping[int, Log], walls: Iterable[Mapping[str, Any]], n: int) -> dict[str, Any]:
    """The clocks of a job of n cards.

    Args:
        logs: by rank, of the cards that have told.
        walls: rows with operation, algorithm and seconds, as Outcome.operations has them.
    Keys: topology, title, mark (how sure the least sure figure is), placement, faults, cards, cards_told, uncounted
    (calls of more kinds than a card remembers), operations (rows as Clock.operations has them), seconds (of the card
    with most, rank `slowest`), virtual (until all cards are done that wait for one another; null when nobody can say),
    step (see `_step`) and what_if (rows beside those of operations, or `refused`: why there are none).
    """
    pricer = machine.pricer(n)
    own = _prices(pricer)
    waited = {(row["operation"], row["algorithm"]): row["seconds"] for row in walls}
    found = _table(logs, own)
    for row in found["operations"]:
        row["wall"] = waited.get((row["operation"], row["algorithm"]), 0.0)
    return {
        "topology": pricer.topology.name,
        "title": pricer.topology.title,
        "mark": pricer.topology.weakest_mark(),
        "placement": machine.placement,
        "faults": str(pricer.faults),
        "cards": n,
        "cards_told": len(logs),
        "uncounted": sum(log.unknown for log in logs.values()),
        **found,
        "what_if": [
            {"asked": other.text, "number": index, **_other(other, machine, logs, n)}
            for index, other in enumerate(machine.what_if, 1)
        ],
    }


def _prices(pricer: Pricer) -> Prices:
    return lambda kind, rank, log: pricer.price_of(kind, ends(kind, rank, log.groups))


def _table(logs: Mapping[int, Log], prices: Prices) -> dict[str, Any]:
    """operations, seconds, slowest, virtual, step."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    sums: dict[int, float] = {}
    for rank, log in sorted(logs.items()):
        own = priced(log, lambda kind, rank=rank, log=log: prices(kind, rank, log))  # type: ignore[misc]
        sums[rank] = fsum(row["modelled"] for row in own.values())
        for key, row in own.items():
            rows[key] = _most(rows[key], row) if key in rows else row
    slowest = min(sums, key=lambda rank: (-sums[rank], rank), default=None)
    virtual = replay(logs, lambda kind, rank: prices(kind, rank, logs[rank]).seconds)
    return {
        "operations": [rows[key] for key in sorted(rows)],
        "seconds": sums[slowest] if slowest is not None else 0.0,
        "slowest": slowest,
        "virtual": None if virtual is None else max(virtual.ends.values(), default=0.0),
        "step": _step(_marks(logs, prices) if virtual is None else virtual.steps),
    }


def _most(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Of each amount the larger one; the bottleneck of who took longer."""
    longer = other if other["modelled"] > one["modelled"] else one
    return {**longer, **{amount: max(one[amount], other[amount]) for amount in ("calls", "bytes")}}


def _marks(logs: Mapping[int, Log], prices: Prices) -> dict[int, list[float]]:
    """Rank → when each of its steps had ended, if its calls followed one another."""
    found = {}
    for rank, log in sorted(logs.items()):
        each = np.array([0.0, *(prices(kind, rank, log).seconds for kind in log.kinds)])
        found[rank] = np.cumsum(each[log.order])[log.order == STEP].tolist()
    return found


def _step(marks: Mapping[int, list[float]]) -> dict[str, Any] | None:
    """What the communication of a step takes on the card with most: steps, median and longest [s].

    What comes before the first step has ended is setting up as well, so it counts only if there is no other step.
    None when no step was marked.
    """
    most: dict[str, Any] | None = None
    for _, ended in sorted(marks.items()):
        if ended:
            steps = [b - a for a, b in pairwise(ended)] or ended
            found = {"steps": len(ended), "median": float(np.median(steps)), "longest": max(steps)}
            if most is None or found["median"] > most["median"]:
                most = found
    return most


def _other(other: WhatIf, machine: MachineSpec, logs: Mapping[int, Log], n: int) -> dict[str, Any]:
    """The same calls at another scale: as `_table`, or `refused`."""
    pricer = other.pricer(machine, n)
    n_then = len(pricer.cards)

    def price(kind: Kind, rank: int, log: Log) -> Price:
        who = ends(kind, rank, log.groups)
        if n_then != n:
            who = _scaled(kind, who, log, n, n_then)
            kind = kind._replace(root=min(kind.root, len(who) - 1), hosts=())
        return _cheapest(pricer, kind, other.algorithm, who)

    try:
        return {"topology": pricer.topology.name, "cards": n_then, **_table(logs, price)}
    except InvalidValue as error:
        return {"topology": pricer.topology.name, "cards": n_then, "refused": str(error)}


def _scaled(kind: Kind, who: tuple[int, ...], log: Log, n: int, n_then: int) -> tuple[int, ...]:
    """Who makes this call when the job has n_then ranks instead of n. Raises InvalidValue when nobody can know."""
    if kind.operation in (SEND, RECV):
        if max(who) >= n_then:
            raise InvalidValue(
                f"cards={n_then} leaves out rank {max(who)}, with which messages were exchanged; ask for more cards"
            )
        return who
    if len(who) != n:
        raise InvalidValue(
            f"cards={n_then} must not be asked of a run with groups of {len(who)}, such as {ranks_text(who)}: "
            f"only a group of all {n} says how it grows; ask for another topology, placement or algorithm, "
            "or run the job with more cards"
        )
    return tuple(range(n_then))


def _cheapest(pricer: Pricer, kind: Kind, algorithm: str | None, who: tuple[int, ...]) -> Price:
    """By the algorithm that is asked for, if the operation has it."""
    names = () if kind.operation in (SEND, RECV) else algorithms.names(kind.operation)
    wanted = names if algorithm == "best" else tuple(name for name in names if name == algorithm)
    kinds = [kind._replace(algorithm=name, hosts=()) if name != kind.algorithm else kind for name in wanted] or [kind]
    found = [pricer.price_of(each, who) for each in kinds]
    return min(found, key=lambda price: price.seconds)
