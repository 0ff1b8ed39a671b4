"""superpod-bench tune: measures the algorithms on this machine and writes the table that superpod-run chooses by."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superpod.benchmarks import plan, results
from superpod.benchmarks.cases import CASES
from superpod.benchmarks.options import checked
from superpod.benchmarks.peers import Field
from superpod.benchmarks.plan import AUTO, Plan, Series, choose
from superpod.benchmarks.stage import Stage
from superpod.benchmarks.tune_measure import WrongResults, measure
from superpod.benchmarks.tune_rules import Measured, Times, for_any_size, microseconds, rules
from superpod.collectives import algorithms, tuning
from superpod.collectives.schedule import REDUCING
from superpod.collectives.select import Selector
from superpod.collectives.selection import Selection
from superpod.interconnect.board import possible as boards_possible
from superpod.interconnect.cores import cores
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.shm_link import possible as shm_possible
from superpod.interconnect.units import parse_seconds, parse_size, size_text

_DESCRIPTION = """\
Measure every algorithm of the collectives on cards of this machine, on boards in shared memory where it runs there and
in messages elsewhere, and write down which is fastest for which world and size. superpod-run chooses by that table from
then on, on this machine, in place of the built-in one; what the user asks for (SUPERPOD_ALL_REDUCE, ...) goes before
it, and what was not measured is left to the built-in table. Tuning again replaces what is measured again.

  superpod-bench tune                                   everything: some ten minutes, on a quiet machine
  superpod-bench tune all_reduce -n 8 -e 64M --link shm
  superpod-bench all_reduce -n 8 --explain              what is chosen now, and why

SUPERPOD_TUNING=off sets the table aside, SUPERPOD_TUNING=FILE takes another one."""

Found = dict[tuple[str, str, int], dict[int, Measured]]
"""(link, collective, world size) → size → times."""


def main(argv: Sequence[str], command: list[str]) -> int:
    """The subcommand; `command` is the whole command line, for the file. Raises InvalidValue, JobFailed."""
    args = _parser().parse_args(argv)
    names = choose("collective", args.collectives, COLLECTIVES)
    possible = "shm,zmq" if shm_possible() else "zmq"
    links = choose("--link", possible if args.link is None else args.link, tuning.LINKS)
    worlds = plan.worlds(args.cards)
    sizes = plan.sizes(args.minbytes, args.maxbytes, factor=args.stepfactor, step=None)
    todo = Plan(plan.series(names, algorithm=AUTO, dtype="float32", op="sum"), sizes)
    for world_size in worlds:
        plan.check_world(todo, world_size, results.memory("MemAvailable"))
        if world_size < 2:
            raise InvalidValue(f"-n {world_size} must be at least 2: one card has nobody to talk to")
    if args.turns < 1 or not args.budget > 0:
        raise InvalidValue(f"--turns {args.turns} and --budget {args.budget:g} must be above 0")
    path = _in_cache() if args.output is None else args.output
    results.check_writable("-o", path)
    return _run(todo, links, worlds, path, args.turns, args.budget, command)


def _in_cache() -> Path:
    """The table's place in the cache, which is made if there is none. Raises InvalidValue."""
    path = tuning.cached()
    if path is None:
        raise InvalidValue("there is no home directory and so no cache; say where the table is to go: -o FILE")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidValue(f"{path} cannot be written ({error.strerror}); name another file with -o") from error
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "superpod-bench tune", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    size: dict[str, Any] = {"type": checked(parse_size), "metavar": "SIZE"}
    what = f"a list with commas, of {', '.join(COLLECTIVES)}; all (default)"
    add("collectives", nargs="?", default="all", metavar="COLLECTIVES", help=what)
    add("-n", "--cards", default="2,8,64", metavar="N", help="numbers of cards (default 2,8,64)")
    add("-b", "--minbytes", default=1 << 10, **size, help="first size (default 1K); smaller ones go with it")
    add("-e", "--maxbytes", default=16 << 20, **size, help="last size (default 16M); larger ones stay as they are")
    add("-f", "--stepfactor", type=int, default=4, metavar="K", help="each size is K times the last one (default 4)")
    add("--link", metavar="LIST", help="shm, zmq or both (default: both, where there is shm)")
    add("--turns", type=int, default=5, metavar="K", help="turns that each algorithm gets at each size (default 5)")
    budget = "about how long all of it may take (default 10m); sizes for which no time is left are not tuned"
    add("--budget", type=checked(parse_seconds), default=600.0, metavar="SECONDS", help=budget)
    where = "write the table there (default: the cache, where superpod-run finds it)"
    add("-o", "--output", type=Path, metavar="FILE", help=where)
    return parser


def _run(
    todo: Plan,
    links: Sequence[str],
    worlds: Sequence[int],
    path: Path,
    turns: int,
    budget: float,
    command: list[str],
) -> int:
    """Measure, print, write after each number of cards. Returns the exit code: 1 if a result was wrong."""
    left = len(links) * len(worlds) * len(todo.series)
    end, found = time.monotonic() + budget, Found()
    for link in links:
        for world_size in worlds:
            with Stage(world_size) as stage:
                preload = ("superpod.benchmarks.player", "superpod.collectives.communicator")
                words, _ = Field((), link=link).on_cards(stage, "tune_player", preload)
                stage.start("superpod", words, _variables(link))
                for series in todo.series:
                    until = time.monotonic() + max(0.0, end - time.monotonic()) / left
                    left -= 1
                    try:
                        found[link, series.collective, world_size] = _measured(stage, todo, series, link, turns, until)
                    except WrongResults as error:
                        print(f"superpod-bench: {error}; no table is written of it", file=sys.stderr)
                        return 1
            _write(path, found, command)
    print(
        f"# written to {path}; superpod-run takes it from there" if path == tuning.cached() else f"# written to {path}"
    )
    return 0


def _variables(link: str) -> dict[str, str]:
    """For cards that are told the algorithm of each call."""
    return {"SUPERPOD_LINK": link, "SUPERPOD_TUNING": "off", "SUPERPOD_DETERMINISTIC": "0"}


def _measured(stage: Stage, todo: Plan, series: Series, link: str, turns: int, until: float) -> dict[int, Measured]:
    """Size → times, printed as they come; sizes for which no time is left are missing."""
    names, n = algorithms.names(series.collective), stage.world_size
    print(f"#\n# {series.collective}: nranks {n} link {link}; median of {turns} turns in us ± half the quartile range")
    print("#" + _cells("size", "fastest", "second", "third", "built-in")[1:], flush=True)
    found, at_least = dict[int, Measured](), dict[str, float]()
    counts = todo.counts(series, n)
    for k, count in enumerate(counts):
        if k and time.monotonic() >= until:
            print(f"# no time is left for {size_text(count * 4)} and more: a larger --budget has it", flush=True)
            break
        seconds = max(0.1, (until - time.monotonic()) / (len(counts) - k))
        what = {"collective": series.collective, "count": count, "dtype": series.dtype, "op": series.op, "root": 0}
        nbytes = count * 4 if series.collective != "barrier" else 1
        found[nbytes] = one = measure(stage, names, what, turns, seconds, at_least)
        at_least |= {name: times.low for name, times in one.items()}
        best = sorted(one, key=lambda name: one[name])[:3]
        usual = built_in(link, series.collective, n, nbytes, fixed_order=False)
        print(_cells(size_text(nbytes), *(_time(name, one.get(name)) for name in (*best, usual))), flush=True)
    for rule in _rules(link, series.collective, n, found, fixed_order=False):
        print(f"# up to {size_text(rule['nbytes']) if rule['nbytes'] < 1 << 60 else 'any size'}: {rule['algorithm']}")
    return found


def built_in(link: str, collective: str, n: int, nbytes: int, *, fixed_order: bool) -> str:
    """What is chosen here without a table."""
    selection = Selection(own_cores=n <= cores())
    selector = Selector({}, board=link == "shm" and boards_possible(), deterministic=fixed_order, selection=selection)
    return selector.choose(collective, nbytes, n).algorithm


def _rules(
    link: str, collective: str, n: int, measured: dict[int, Measured], *, fixed_order: bool
) -> list[dict[str, Any]]:
    names = algorithms.in_fixed_order(collective) if fixed_order else algorithms.names(collective)
    found = rules(measured, names, lambda nbytes: built_in(link, collective, n, nbytes, fixed_order=fixed_order))
    return for_any_size(found) if collective == "barrier" else found


def _write(path: Path, found: Found, command: list[str]) -> None:
    """Replace the file: what was found, and of what it held before, what was not measured again."""
    rows: list[tuning.Row] = []
    figures: list[tuning.Row] = []
    for (link, collective, n), measured in found.items():
        case = {"link": link, "collective": collective}
        for fixed_order in (False, True) if collective in REDUCING else (False,):
            rows += [
                {**case, "fixed_order": fixed_order, "ranks": n, **rule}
                for rule in _rules(link, collective, n, measured, fixed_order=fixed_order)
            ]
        for nbytes, one in measured.items():
            us = {name: [microseconds(part) for part in times] for name, times in one.items()}
            figures.append({"collective": collective, "link": link, "ranks": n, "nbytes": nbytes, "us": us})
    old = _before(path)
    rows += [row for row in old.rows if _case(row) not in found] if old else []
    figures += [row for row in old.measured if _case(row) not in found] if old else []
    order = [(link, collective) for link in tuning.LINKS for collective in CASES]
    for some in (rows, figures):
        some.sort(
            key=lambda row: (order.index(_case(row)[:2]), row.get("fixed_order", False), row["ranks"], row["nbytes"])
        )
    try:
        described = results.describe(command)
        made = {key: described[key] for key in ("command", "date", "commit")}
        tuning.write(results.target(path), {"made": made}, rows, figures)
    except OSError as error:
        raise InvalidValue(f"{path} cannot be written ({error.strerror}); name another file with -o") from error


def _case(row: tuning.Row) -> tuple[str, str, int]:
    return row["link"], row["collective"], row["ranks"]


def _before(path: Path) -> tuning.TuningFile | None:
    """What the file held, if it counts."""
    try:
        old = tuning.read(path)
    except InvalidValue:
        return None
    return old if not old.unfit() else None


def _time(name: str, times: Times | None) -> str:
    if times is None:
        return f"{name} left out"
    return f"{name} {microseconds(times.median):,.{1 if times.median < 1e-3 else 0}f} ±{times.noise:.0%}"


def _cells(size: str, *cells: str) -> str:
    return f"{size:>12}" + "".join(f"{cell:>32}" for cell in cells)
