"""superpod-bench: arguments → Plan → cards → table and JSON."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from superpod.benchmarks import (
    compare,
    ddp,
    explain,
    hosts,
    job,
    launch,
    namespaces,
    page,
    peers,
    plan,
    plots,
    suite,
    tune,
    turns,
)
from superpod.benchmarks.options import TURNS, add_hosts, add_peers, add_shared, checked, refuse_empty
from superpod.benchmarks.plan import Plan
from superpod.benchmarks.point_to_point import EVERY, POINT_TO_POINT
from superpod.benchmarks.results import Output
from superpod.collectives.select import Selector
from superpod.interconnect.env import Settings
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import parse_seconds, parse_size
from superpod.launcher.console import write_no_more

_DESCRIPTION = """\
Measure collectives on cards of this machine, or of several hosts, with nccl-tests' options and columns; every result is
checked.

  superpod-bench all_reduce -n 8 -b 8 -e 64M -f 2
  superpod-bench all -n 2,8 -e 1M -J results.json
  superpod-bench all_reduce -n 8 --algorithm all      each algorithm by itself
  superpod-bench all -n 2,8,64 --peers gloo,openmpi,mpich    in turn with other programs, in one run
  superpod-bench latency --peers openmpi              between two cards; likewise bandwidth
  superpod-bench all_reduce --hosts a:4,b:4 --peers gloo,openmpi --encryption on,off     between hosts
  superpod-bench namespaces 2 -- COMMAND              a command on the first of two hosts that are made for it here
  superpod-bench launch | ddp                         starting a job; training steps
  superpod-bench tune                                 measure which algorithms suit this machine, for superpod-run
  superpod-bench all_reduce -n 8 --explain            which algorithm is chosen for each size, and why
  superpod-bench plot results.json -o picture.svg     pictures of a file of -J
  superpod-bench table results.json                   a table for a page, in Markdown
  superpod-bench compare old.json new.json            fails when something became slower

Exit code: 0, 1 when a result is wrong or a card fails, 2 for arguments that break a rule."""
_WITHOUT_CARDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "plot": plots.main,
    "table": page.main,
    "compare": compare.main,
    "namespaces": namespaces.main,
}
"""The subcommands that start no cards themselves."""


_SUBCOMMANDS = {"launch": launch.main, "ddp": ddp.main, "tune": tune.main}


def main(argv: Sequence[str] | None = None) -> int:
    """The command. `argv` are its arguments, by default the process's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = ["superpod-bench", *arguments]
    signal.signal(signal.SIGTERM, _stop)  # leaves through every finally, so the cards end too
    try:
        if arguments and (subcommand := _WITHOUT_CARDS.get(arguments[0])) is not None:
            return subcommand(arguments[1:])
        Selector(Settings.read().overrides)  # all cards of all jobs would complain of the same wrong variable
        if arguments and (measuring := _SUBCOMMANDS.get(arguments[0])) is not None:
            return measuring(arguments[1:], command)
        return _collectives(_parser().parse_args(arguments), command)
    except InvalidValue as error:
        print(f"superpod-bench: error: {error}", file=sys.stderr)
        return 2
    except job.JobFailed as error:
        print(f"superpod-bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads the table has seen enough (| head)
        write_no_more()
        return 141
    except OSError as error:
        write_no_more()
        lost = "" if arguments and arguments[0] in _WITHOUT_CARDS else "; what was measured until then may be lost"
        print(f"superpod-bench: {error}{lost}", file=sys.stderr)
        return 1


def _collectives(args: argparse.Namespace, command: list[str]) -> int:
    """Collectives and messages: superpod by itself, or in turn with others."""
    between_two = [name for name in args.collective.split(",") if name in POINT_TO_POINT]
    todo, output = _plan(args), Output(args.json, args.csv, command)
    refuse_empty(args)
    there = hosts.hosts_from(args.hosts, args.interface, args.encryption, peers.peer_names(args.peers))
    _refuse_ignored(args, todo, beside=bool(args.peers or between_two or there))
    if there is not None and args.cards:
        raise InvalidValue(f"-n {args.cards} must not go with --hosts {args.hosts}, which says it, too; leave one")
    worlds = plan.worlds(args.cards or ("2" if between_two else "8")) if there is None else (there.world_size,)
    if args.explain:
        return explain.run(todo, worlds, args.link)
    if not args.peers and not between_two and there is None:
        return suite.run(todo, worlds, link=args.link, output=output)
    if args.average != 3:
        raise InvalidValue(f"-a {args.average} is for superpod by itself: beside others the slowest rank's time counts")
    field = peers.field(args.peers, args.peers_from or peers.HOME, args.link, there)
    return turns.run(todo, worlds, field, TURNS if args.turns is None else args.turns, output)


def _refuse_ignored(args: argparse.Namespace, todo: Plan, *, beside: bool) -> None:
    """Raises InvalidValue for options that mean nothing beside the others. `beside`: programs take turns."""
    if args.explain:
        for option, file in (("-J", args.json), ("--csv", args.csv)):
            if file is not None:
                raise InvalidValue(f"{option} {file} must not go with --explain, which measures nothing; leave one out")
    elif args.turns is not None and not beside:
        raise InvalidValue(f"--turns {args.turns} is for several programs; name others with --peers, or leave it out")
    if args.peers_from is not None and not args.peers:
        raise InvalidValue(f"--peers-from {args.peers_from} is for --peers; name them, or leave it out")
    if args.root is not None and not any(series.case.rooted for series in todo.series):
        raise InvalidValue(f"-r {args.root} means nothing for {args.collective}, which has no root; leave it out")


def _stop(signum: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "superpod-bench", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    size: dict[str, Any] = {"type": checked(parse_size), "metavar": "SIZE"}
    add("collective", metavar="COLLECTIVE", help=f"one of {', '.join(EVERY)}; a list with commas; or all")
    add_shared(parser)
    add_peers(parser)
    parser.set_defaults(cards=None, turns=None, peers_from=None)  # not given; what they are then depends on the rest
    add_hosts(parser)
    add("-b", "--minbytes", **size, help="first size, such as 8 or 1M (default 8)")
    add("-e", "--maxbytes", **size, help="last size (default 64M)")
    add("-f", "--stepfactor", type=int, metavar="K", help="each size is K times the one before (default 2)")
    add("--sizes", metavar="LIST", help="just these, such as 8,64K,1M, in place of -b, -e, -f and -i")
    add("-i", "--stepbytes", **size, help="each size is SIZE above the one before")
    add("-d", "--datatype", default="float32", metavar="TYPE", help="dtype, list, or all (default float32)")
    add("-o", "--op", default="sum", metavar="OP", help="reduction, list, or all (default sum)")
    add("-r", "--root", type=int, metavar="RANK", help="root of a rooted collective (default 0)")
    add("--algorithm", default=plan.AUTO, metavar="NAME", help="algorithm by name, list, all, or auto (default)")
    add("--iters", type=int, default=20, metavar="K", help="timed calls of a size, at most (default 20)")
    add("-w", "--warmup", type=int, default=5, metavar="K", help="untimed calls of a size, at most (default 5)")
    enough = "time fewer calls, but three, where they would take longer than this (default 1s)"
    add("--budget", type=checked(parse_seconds), default=1.0, metavar="SECONDS", help=enough)
    add("-c", "--check", type=int, choices=(0, 1), default=1, help="check the results (default 1)")
    add("--explain", action="store_true", help="measure nothing: say which algorithms would be chosen, and why")
    averages = ", ".join(f"{number}: {text}" for number, text in enumerate(plan.AVERAGES))
    add("-a", "--average", type=int, choices=range(4), default=3, help=f"which time to print: {averages} (default 3)")
    return parser


def _plan(args: argparse.Namespace) -> Plan:
    for option, value, least in (("--iters", args.iters, 1), ("-w", args.warmup, 0)):
        if value < least:
            raise InvalidValue(f"{option} {value} must be at least {least}")
    names = plan.collectives(args.collective)
    return Plan(
        series=plan.series(names, algorithm=args.algorithm, dtype=args.datatype, op=args.op),
        sizes=_sizes(args),
        root=args.root or 0,
        iters=args.iters,
        warmup=args.warmup,
        check=bool(args.check),
        average=args.average,
        budget=args.budget,
    )


def _sizes(args: argparse.Namespace) -> tuple[int, ...]:
    low, high, factor, step = args.minbytes, args.maxbytes, args.stepfactor, args.stepbytes
    if args.sizes is None:
        return plan.sizes(8 if low is None else low, 64 << 20 if high is None else high, factor=factor, step=step)
    if any(given is not None for given in (low, high, factor, step)):
        raise InvalidValue(f"--sizes {args.sizes} must not go with -b, -e, -f or -i, which say it, too; leave one out")
    return plan.listed_sizes(args.sizes)


if __name__ == "__main__":
    sys.exit(main())
