"""superpod-sim: arguments → machine and schedules → tables, JSON and pictures. No other logic."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from superpod.benchmarks import plan
from superpod.collectives.schedule import ROOTED
from superpod.interconnect import topology_file
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.console import write_no_more
from superpod.simulator import best, calibrate, describe, draw, plots, predict, table
from superpod.simulator.options import SIZE, add_machine, faults, machine

_DESCRIPTION = """\
How long collectives would take on other machines, predicted from the very algorithms that run here.

  superpod-sim all_reduce --topology atlas-960 -b 1K -e 8G --algorithm ring,tree,hierarchical,per_dimension
  superpod-sim topology atlas-950 --draw atlas-950.svg
  superpod-sim best --topology atlas-960 --collective all_reduce --size 64M
  superpod-sim calibrate points.csv --topology mine.toml -o mine-fitted.toml

docs/model.md says what is modelled, what is not, and how wrong it can be.
Exit code: 0, 1 when something cannot be written, 2 for arguments that break a rule."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command. `argv` are its arguments, by default the process's."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = args.run
    try:
        run(args)
        sys.stdout.flush()
        return 0
    except InvalidValue as error:
        print(f"superpod-sim: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads the table has seen enough (| head)
        write_no_more()
        return 141
    except OSError as error:
        write_no_more()
        print(f"superpod-sim: cannot write: {error.strerror or error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "superpod-sim", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for collective in COLLECTIVES:
        one = commands.add_parser(collective, help=f"predict {collective}")
        one.set_defaults(run=_predict, collective=collective)
        _add_predict(one)
    for name, add, run, text in (
        ("topology", _add_topology, _topology, "a machine in figures and as a drawing"),
        ("best", best.add_options, best.run, "which algorithm wins, and why"),
        ("calibrate", calibrate.add_options, calibrate.run, "fit a topology to measured points"),
    ):
        one = commands.add_parser(name, help=text)
        one.set_defaults(run=run)
        add(one)
    return parser


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add_machine(parser)
    add = parser.add_argument
    add("-b", "--minbytes", **SIZE, help="first size (default 1K)")
    add("-e", "--maxbytes", **SIZE, help="last size (default 1G)")
    add("-f", "--stepfactor", type=int, metavar="K", help="each size is K times the one before (default 2)")
    add("-i", "--stepbytes", **SIZE, help="each size is SIZE above the one before")
    add("-r", "--root", type=int, default=0, metavar="RANK", help="root of a rooted collective (default 0)")
    add("--algorithm", default="all", metavar="NAME", help="algorithm by name, list, best, or all (default)")
    add("--json", action="store_true", help="print the rows as JSON instead of a table")
    add("--plot", type=Path, metavar="FILE", help="time and busbw over size, as .svg, .png or .pdf")
    add("--heat", type=Path, metavar="FILE", help="how busy the links of each level are, at the last size")


def _predict(args: argparse.Namespace) -> None:
    plots.check("--plot", args.plot)
    plots.check("--heat", args.heat)
    model, n = machine(args)
    names = predict.chosen(args.collective, args.algorithm)
    sizes = _sizes(args)
    if args.collective not in ROOTED and args.root:
        raise InvalidValue(f"-r {args.root} means nothing for {args.collective}, which has no root; leave it out")
    if not 0 <= args.root < n:
        raise InvalidValue(f"-r {args.root} must be a rank: 0 to {n - 1}")
    found = []
    if not args.json:
        print(table.header(model, args.collective, n, str(faults(args))))
    for row in predict.rows(model, n, args.collective, names, sizes, args.root):
        found.append(row)
        if not args.json:
            print(table.line(row))
    if args.json:
        print(json.dumps(found, indent=1))
    if args.plot is not None:
        plots.curves(found, model.topology, args.plot)
    if args.heat is not None:
        plots.heat(found, model.topology, args.heat)


def _sizes(args: argparse.Namespace) -> tuple[int, ...]:
    options = {"-b": args.minbytes, "-e": args.maxbytes, "-f": args.stepfactor, "-i": args.stepbytes}
    given = {option: value for option, value in options.items() if value is not None}
    if args.collective == "barrier":
        for option, value in given.items():
            raise InvalidValue(f"{option} {value} means nothing for barrier, which has no size; leave it out")
    low, high = given.get("-b", 1 << 10), given.get("-e", 1 << 30)
    return plan.sizes(low, high, factor=args.stepfactor, step=args.stepbytes)


def _add_topology(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(topology_file.presets())
    parser.add_argument("topology", metavar="T", nargs="?", help=f"a TOML file, or one of {known}; none: list them")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw levels and links as an .svg")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(cut=[], slow=[], straggler=[], dead=[], routing=None, cards=None)


def _topology(args: argparse.Namespace) -> None:
    draw.check(args.draw)
    if args.topology is None:
        if args.json or args.draw is not None:
            raise InvalidValue("--json and --draw must go with a machine, such as superpod-sim topology torus --json")
        for name in topology_file.presets():
            print(f"{name:<16} {topology_file.load(name).title}")
        return
    model, _ = machine(args)
    if args.json:
        print(json.dumps(describe.figures(model), indent=1))
    else:
        print("\n".join(describe.text(model)))
    if args.draw is not None:
        draw.write(model.topology, args.draw)


if __name__ == "__main__":
    sys.exit(main())
