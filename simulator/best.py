"""superpod-sim best: all algorithms of a collective at one size, which wins and why; the table for superpod-run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import groupby

from superpod.benchmarks import plan
from superpod.collectives import algorithms
from superpod.collectives.simulate import Machine
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import seconds_text, size_text
from superpod.simulator import predict, table
from superpod.simulator.options import SIZE, add_machine, faults, machine
from superpod.simulator.predict import Row

_SIZE = 64 << 20  # when nobody says another
_SMALLEST, _LARGEST = 1 << 10, 8 << 30  # the sizes of --table; the ends hold for all beyond them


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of superpod-sim best."""
    add_machine(parser)
    add = parser.add_argument
    add("--collective", choices=COLLECTIVES, default="all_reduce", help="which one (default all_reduce)")
    add("--size", **SIZE, help="S, such as 64M (default 64M)")
    add("--table", action="store_true", help="the winners of all sizes, as superpod-run takes them")
    add("--json", action="store_true", help="print rows as JSON")


def run(args: argparse.Namespace) -> None:
    """The subcommand."""
    if args.table and args.size is not None:
        raise InvalidValue(f"--size {size_text(args.size)} must not go with --table, which is of all sizes; leave one")
    model, n = machine(args)
    if args.table:
        found = winners(model, n, args.collective)
        print(json.dumps(found, indent=1) if args.json else environment(args.collective, found))
        return
    found = compare(model, n, args.collective, _SIZE if args.size is None else args.size)
    if args.json:
        print(json.dumps(found, indent=1))
        return
    print(table.header(model, args.collective, n, str(faults(args))))
    for row in found:
        print(table.line(row))
    print(why(found))


def compare(model: Machine, n: int, collective: str, nbytes: int) -> list[Row]:
    """One row for each algorithm, the fastest first."""
    names = algorithms.names(collective)
    return sorted(predict.rows(model, n, collective, names, [nbytes]), key=lambda row: float(row["seconds"]))


def winners(model: Machine, n: int, collective: str) -> list[Row]:
    """The fastest row at each size from 1 KiB to 8 GiB, doubling."""
    sizes = plan.sizes(_SMALLEST, _LARGEST, factor=2, step=None)
    found = list(predict.rows(model, n, collective, algorithms.names(collective), sizes))
    by_size = groupby(found, lambda row: row["nbytes"])
    return [min(rows, key=lambda row: float(row["seconds"])) for _, rows in by_size]


def environment(collective: str, found: Sequence[Row]) -> str:
    """The winners as the variable that superpod-run's cards read; a range begins where its algorithm wins first."""
    runs = [(name, list(rows)) for name, rows in groupby(found, lambda row: str(row["algorithm"]))]
    starts = [0, *(rows[0]["nbytes"] for _, rows in runs[1:])]
    ends = [*(start - 1 for start in starts[1:]), "max"]
    parts = (f"{name}:{start}-{end}" for (name, _), start, end in zip(runs, starts, ends, strict=True))
    return f'SUPERPOD_{collective.upper()}="{";".join(parts)}"'


def why(found: Sequence[Row]) -> str:
    """What makes the first of the rows, which are sorted, the fastest."""
    first = found[0]
    lines = [f"{first['algorithm']} wins at {size_text(first['nbytes'])}: {_story(first)}."]
    for row in found[1:3]:
        times = row["seconds"] / first["seconds"] if first["seconds"] else 1.0
        lines.append(f"{row['algorithm']} takes {times:.3g} times as long: {_story(row)}.")
    return "\n".join(lines)


def _story(row: Row) -> str:
    busy = row["utilisation"]
    steps = f"{row['steps']:,} step" + ("s" if row["steps"] != 1 else "")
    links = f"its busiest {row['bottleneck']} link works {100 * busy:.0f} % of {seconds_text(row['seconds'])}"
    if row["bottleneck"] == "memory":
        links = f"its busiest card adds and copies {100 * busy:.0f} % of {seconds_text(row['seconds'])}"
    limit = "bandwidth decides" if busy >= 0.5 else "latency and the start of its messages decide"
    return f"{limit}; {links}, the rest goes to {steps}; the bound is {100 * row['share_of_bound']:.3g} % of its time"
