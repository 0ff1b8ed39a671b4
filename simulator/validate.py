"""make validation: every measured machine fitted on a few points and predicted on the rest, and the exact identities.

Reads and writes benchmarks/validation/ of the working copy: points, topologies before fitting and plan.toml in; fitted/
and README.md out.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from superpod.collectives import algorithms
from superpod.collectives.algorithms import per_dimension, rings
from superpod.collectives.schedule import Schedule
from superpod.collectives.simulate import Machine
from superpod.interconnect import topology_file
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Level, Topology
from superpod.interconnect.topology_write import to_toml
from superpod.interconnect.units import seconds_text, size_text
from superpod.simulator import calibrate, fit, points
from superpod.simulator.points import Point

FOLDER = Path("benchmarks/validation")
POINTS = "all_reduce_published.csv"
_MEDIAN, _LARGEST = 0.10, 0.25  # what the model promises of points that it was not fitted to

_HEAD = """\
# Validation

Written by `make validation`. Measured all-reduces of published machines ([{points}]({points})) against the model: each
machine is fitted on the points marked so, at most three, and the others are predicted. "Before fitting" are the
topologies beside this file, "fitted" those in `fitted/`; `plan.toml` says which algorithm of ours stands for the one
that ran. docs/model.md says what the parameters mean. Last comes superpod itself, on a host of two cores.

Promised for the published machines: median error of the predicted points at most 10 %, none above 25 %.
"""


def main() -> int:
    """Exit code 1 when a promise is broken."""
    try:
        machines = tomllib.loads((FOLDER / "plan.toml").read_text())
    except OSError as error:
        print(f"make validation: {error}; run it at the top of a working copy", file=sys.stderr)
        return 2
    lines, kept = [_HEAD.format(points=POINTS)], True
    for name, how in machines.items():
        text, good = _machine(name, how)
        lines.append(text)
        kept &= good
    text, good = _identities()
    lines.append(text)
    page = "\n".join(lines)
    (FOLDER / "README.md").write_text(page)
    print(page)
    return 0 if kept and good else 1


def _machine(name: str, how: Mapping[str, Any]) -> tuple[str, bool]:
    """A machine's section, and whether it keeps the promise, if it was given one."""
    own = FOLDER / f"{name}.json"  # our own measurements, which name our own algorithms
    found = points.read(own) if own.exists() else points.read(FOLDER / POINTS, machine=name)
    found = calibrate.stated(found, how.get("algorithm"))
    file = FOLDER / f"{name}.toml"
    which = calibrate.chosen(how["fit"], found)
    met = fit.fit(topology_file.load(str(file) if file.exists() else name), found, which)
    (FOLDER / "fitted").mkdir(exist_ok=True)
    (FOLDER / "fitted" / f"{name}.toml").write_text(to_toml(met.topology))
    errors = fit.unfitted_errors(found, met)
    median, largest = float(np.median(errors)), float(errors.max())
    kept = not how.get("promised", True) or (median <= _MEDIAN and largest <= _LARGEST)
    head = (
        f"## {name}\n\n{how['about']} Of {len(found)} points {len(which)} fitted, {len(errors)} predicted: median "
        f"error {100 * median:.1f} %, largest {100 * largest:.1f} %{'' if kept else ' (PROMISE BROKEN)'}. "
        f"{_parameters(met)}"
    )
    return f"{head}\n\n{_table(found, met)}\n", kept


def _parameters(met: fit.Fit) -> str:
    p = met.topology.protocols[0]
    text = (
        f"Fitted: {seconds_text(p.call)} a call, {100 * p.efficiency:.0f} % of the link rate, "
        f"{seconds_text(p.segment)} a segment (ramp {p.ramp:.2g})."
    )
    return text + (
        " More than 100 %: the library sends less than our algorithm does, or overlaps its phases, "
        "or the points are too small to tell."
        if p.efficiency > 1
        else ""
    )


def _table(found: Sequence[Point], met: fit.Fit) -> str:
    rows = [
        f"| {p.cards} | {p.algorithm} | {size_text(p.nbytes)} | {seconds_text(p.seconds)} | {seconds_text(t)} "
        f"| {round(100 * (t / p.seconds - 1), 1) + 0.0:+.1f} % | {'fitted' if i in met.used else 'predicted'} |"
        for i, (p, t) in enumerate(zip(found, met.predicted, strict=True))
    ]
    return "\n".join(
        ["| cards | algorithm | size | measured | model | error | |", "|---|---|---|---|---|---|---|", *rows]
    )


def mesh(*sizes: int) -> Machine:
    """A full mesh of 1 GB/s links, without latency: times are bytes on the busiest link."""
    levels = tuple(Level(f"d{i}", "full_mesh", size, 1e9) for i, size in enumerate(sizes))
    return Machine(Topology("mesh", levels=levels))


def identities() -> list[tuple[str, float, float]]:
    """(what, what the theory says, what the simulator says) on 8×8 and 8 cards, in n·b; see tests for exactness."""
    nbytes = 64e9  # so that n·b, at 1 GB/s a link, is 64 s
    rack, clos = mesh(8, 8), Machine(Topology("clos", levels=(Level("all", "switch", 64, 14e9),)))

    def times(machine: Machine, schedule: Schedule) -> float:
        return machine.predict(schedule, nbytes).seconds / 64

    halves, whole = (per_dimension.all_reduce(64, shape=(8, 8), split=split) for split in (True, False))
    exchange = algorithms.build("all_to_all", "direct", 64)
    return [
        ("8×8 mesh, all-reduce X→Y and Y→X in halves", 9 / 64, times(rack, halves)),
        ("8×8 mesh, all-reduce per dimension, unsplit", 9 / 32, times(rack, whole)),
        ("8×8 mesh, lower bound over 14 links", 9 / 64, rack.predict(halves, nbytes).bound / 64),
        ("8×8 mesh, all-to-all on shortest paths", 1 / 8, times(rack, exchange)),
        ("the same against a Clos with the same ports", 16 / 9, times(rack, exchange) / times(clos, exchange)),
        ("directed rings without a common link in a full mesh of 8", 6, len(rings.rings((8,)))),
        ("the same in an 8×8 mesh", 14, len(rings.rings((8, 8)))),
    ]


def _identities() -> tuple[str, bool]:
    rows = identities()
    good = all(abs(says - theory) <= 1e-12 * theory for _, theory, says in rows)
    body = "\n".join(f"| {what} | {theory:.6g} | {says:.6g} |" for what, theory, says in rows)
    head = (
        "## Identities\n\nIn units of n·b, the time of all bytes on one link.\n\n| | theory | model |\n|---|---|---|\n"
    )
    return head + body + "\n", good


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InvalidValue as problem:
        print(f"make validation: {problem}", file=sys.stderr)
        sys.exit(2)
