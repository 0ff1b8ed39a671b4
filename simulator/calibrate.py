"""superpod-sim calibrate: scale a topology's figures so that predictions meet measured points, and say how well."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from superpod.benchmarks.results import check_writable
from superpod.collectives import algorithms
from superpod.interconnect import topology_file
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology_write import to_toml
from superpod.interconnect.units import seconds_text, size_text
from superpod.simulator import points
from superpod.simulator.fit import Fit, fit, unfitted_errors
from superpod.simulator.points import Point
from superpod.simulator.predict import BEST


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of superpod-sim calibrate."""
    add = parser.add_argument
    add(
        "points",
        type=Path,
        metavar="FILE",
        help="CSV, output of nccl-tests, rccl-tests, hccl_test, or superpod-bench -J",
    )
    add("-t", "--topology", required=True, metavar="T", help="what to scale: a TOML file or a preset")
    add("-o", "--output", type=Path, metavar="FILE", help="write the fitted topology there")
    add("-n", "--cards", type=int, metavar="N", help="how many cards it was, where FILE does not say")
    add("--machine", metavar="NAME", help="which one, of a CSV with several")
    add(
        "--algorithm",
        metavar="NAME",
        help="which of ours stands for one that FILE does not state (default best: the fastest for each)",
    )
    add("--fit", metavar="WHICH", help="fit to these points only, 1,4,6 by size or cards=2+8,algorithm=ring")


def run(args: argparse.Namespace) -> None:
    """The subcommand."""
    if args.cards is not None and args.cards < 1:
        raise InvalidValue(f"-n {args.cards} must be at least 1 card")
    if args.output is not None:
        check_writable("-o", args.output, replaced=False)
    found = points.read(args.points, cards=args.cards, machine=args.machine)
    found = stated(found, args.algorithm)
    found_fit = fit(topology_file.load(args.topology), found, chosen(args.fit, found))
    print(report(found, found_fit))
    if args.output is not None:
        try:
            args.output.write_text(to_toml(found_fit.topology))
        except OSError as error:
            raise InvalidValue(f"-o {args.output} cannot be written: {error.strerror}") from error
        print(f"# written: {args.output}")


def chosen(text: str | None, found: Sequence[Point]) -> tuple[int, ...]:
    """Indices of points from "1,3,6" or "cards=2+8,algorithm=ring"; None: all. Raises InvalidValue."""
    number = len(found)
    if text is None:
        return tuple(range(number))
    parts = [part.strip() for part in text.split(",")]
    if all("=" in part for part in parts):
        return _matching(text, dict(part.split("=", 1) for part in parts), found)
    if not all(part.isdigit() and 1 <= int(part) <= number for part in parts) or len(set(parts)) < len(parts):
        raise InvalidValue(
            f"--fit {text!r} must list different points, 1 to {number}, such as 1,{number}; or say which by cards=2+8 "
            "or algorithm=ring"
        )
    return tuple(int(part) - 1 for part in parts)


def _matching(text: str, wanted: Mapping[str, str], found: Sequence[Point]) -> tuple[int, ...]:
    keys = ("cards", "algorithm", "collective", "nbytes")
    for key in wanted:
        if key not in keys:
            raise InvalidValue(f"--fit {text!r}: {key!r} must be one of {', '.join(keys)}")
    picked = [
        i for i, p in enumerate(found) if all(str(getattr(p, key)) in value.split("+") for key, value in wanted.items())
    ]
    if not picked:
        raise InvalidValue(f"--fit {text!r} matches none of the {len(found)} points; loosen it")
    return tuple(picked)


def stated(found: Sequence[Point], algorithm: str | None) -> list[Point]:
    """The points with algorithms of ours: theirs where it has our name, else `algorithm`, else BEST.

    Raises InvalidValue when there is no such algorithm.
    """
    known = []
    for point in found:
        name = point.algorithm
        if name not in algorithms.names(point.collective):
            name = algorithm or BEST
        if name != BEST:
            algorithms.get(point.collective, name)
        known.append(replace(point, algorithm=name))
    return known


def report(found: Sequence[Point], fitted: Fit) -> str:
    """How well each point is met, and the fitted parameters."""
    lines = []
    if any(point.algorithm == BEST for point in found):
        lines.append(
            "# best: the file names no algorithm of ours, so the fastest one stands for it; or say --algorithm"
        )
    lines += [f"# {'size':>10}  {'cards':>5}  {'algorithm':<18} {'measured':>10} {'predicted':>10} {'error':>8}"]
    for i, (point, seconds) in enumerate(zip(found, fitted.predicted, strict=True)):
        kind = "fitted" if i in fitted.used else "predicted"
        lines.append(
            f"{size_text(point.nbytes):>12}  {point.cards:>5}  {point.algorithm:<18} {seconds_text(point.seconds):>10} "
            f"{seconds_text(seconds):>10} {100 * (seconds / point.seconds - 1):>+7.1f} %  {kind}"
        )
    errors = unfitted_errors(found, fitted)
    if len(errors):
        lines.append(
            f"# {len(errors)} points that were not fitted: median error {100 * float(np.median(errors)):.1f} %, "
            f"largest {100 * float(errors.max()):.1f} %"
        )
    for p in fitted.topology.protocols:
        lines.append(
            f"# {p.name}: {seconds_text(p.call)} a call, {seconds_text(p.step)} a step, {100 * p.efficiency:.1f} % of "
            f"the rate, {seconds_text(p.segment)} a segment, ramp {p.ramp:.2f}; {fitted.nparameters} parameters fitted"
        )
        if p.efficiency > 1:
            lines.append(
                "# over 100 % of the rate: the library sends less than this algorithm (reduction in the switch?)"
            )
    return "\n".join(lines)
