"""superpod-bench launch: how long it takes from a launcher's start to the end of the first all-reduce on all ranks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from superpod.benchmarks import peers, plan, results
from superpod.benchmarks.options import add_peers, add_shared
from superpod.benchmarks.peers import OURS, THROUGH, Field
from superpod.benchmarks.results import Row
from superpod.benchmarks.stage import Stage
from superpod.benchmarks.turns import ratio, summary
from superpod.interconnect.errors import InvalidValue

_DESCRIPTION = """\
Start jobs and wait for their first all-reduce: superpod-run with superpod on numpy arrays and through torch, torchrun
with gloo, each MPI with its mpirun and mpi4py. The programs take turns; the median of all turns is stated."""


def main(argv: Sequence[str], command: list[str]) -> int:
    """The subcommand; `command` is the whole command line, for the JSON's header. Raises InvalidValue, JobFailed."""
    args = _parser().parse_args(argv)
    field = peers.field(args.peers, args.peers_from, args.link)
    worlds, output = plan.worlds(args.cards), results.Output(args.json, args.csv, command)
    for world_size in worlds:
        plan.check_cards(world_size, 1 << 20, results.memory("MemAvailable"))
    if args.turns < 1:
        raise InvalidValue(f"--turns {args.turns} must be at least 1")
    output.check()
    header, rows = results.describe(command), list[Row]()
    for world_size in worlds:
        names = [name for name in ("superpod", "superpod-torch", *field.peers) if _fits(name, world_size, args)]
        print(f"# launch: nranks {world_size} link {args.link}; median of {args.turns} turns in s", flush=True)
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.turns):
            for name in names:
                times[name].append(_seconds(name, world_size, field))
        found = {name: summary(times[name], 1, 0) for name in names}
        for name in names:
            rows.append(_row(name, world_size, found, args.link))
            print(_line(rows[-1]), flush=True)
            output.write(header, rows)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "superpod-bench launch", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared(parser)
    add_peers(parser, "gloo", turns=3)
    parser.set_defaults(cards="8,64,256")
    most = "peers take part up to so many ranks: torchrun imports torch in each (default 8)"
    parser.add_argument("--peers-up-to", type=int, default=8, metavar="N", help=most)
    return parser


def _fits(name: str, world_size: int, args: argparse.Namespace) -> bool:
    return name in OURS.values() or world_size <= args.peers_up_to


def _seconds(name: str, world_size: int, field: Field) -> float:
    """One start."""
    with Stage(world_size) as stage:
        if name == "superpod":
            return stage.start(name, *field.superpod(stage))
        if name == "superpod-torch":
            return stage.start(name, *field.superpod_torch(stage, "torch_player"))
        if name == "gloo":
            return stage.start(name, field.torchrun(stage, "torch_player", "gloo"), {"OMP_NUM_THREADS": "1"})
        return stage.start(name, field.mpi(stage, name), {})


def _row(name: str, world_size: int, found: dict[str, Row], link: str) -> dict[str, Any]:
    what = {"collective": "launch", "backend": name, "through": THROUGH[name], "world_size": world_size, "nbytes": 0}
    result = found[name]
    return (
        what
        | {"link": link if name in OURS.values() else name}
        | result
        | {
            "time_us": result["median_us"],
            "ratio": ratio(found, name),
        }
    )


def _line(row: Row) -> str:
    low, middle, high = (row[f"{which}_us"] / 1e6 for which in ("min", "median", "max"))
    return f"{row['backend']:>15} {middle:8.2f}  ({low:.2f} to {high:.2f})  ratio {row['ratio']:.2f}"
