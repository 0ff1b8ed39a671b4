"""superpod-bench torch: all-reduce through torch.distributed, superpod against other backends, in turn."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from superpod.benchmarks import job, plan, results
from superpod.benchmarks.busbw import algbw, busbw
from superpod.benchmarks.options import add_shared, checked
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import parse_seconds, parse_size, size_text

OURS = "superpod"
PEERS = ("gloo",)
_WORKER = "superpod.benchmarks.torch_all_reduce"
_SHARED = ("torch", "superpod.collectives.torch_backend", "superpod.benchmarks.data")
_DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int32", "int64")  # what numpy, torch and gloo have
_SIZES = "8,4K,64K,1M,64M"
_DESCRIPTION = """\
Time torch.distributed.all_reduce on the superpod backend and on others, in the same processes, on the same data.

The backends take turns. In a turn, calls follow one another, and their mean time on the slowest rank counts; the table
shows the median over all turns. ratio is the peer's time / ours: above 1 superpod is faster."""


@dataclass(frozen=True, slots=True)
class TorchPlan:
    """What the cards of one job measure. `sizes` in bytes; `budget`: seconds of timed calls for a size and backend."""

    backends: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: str
    turns: int
    budget: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> TorchPlan:
        fields: dict[str, Any] = json.loads(text)
        return TorchPlan(**fields | {name: tuple(fields[name]) for name in ("backends", "sizes")})


def main(argv: Sequence[str], command: list[str]) -> int:
    """The subcommand; `command` is the whole command line, for the JSON's header. Raises InvalidValue, JobFailed."""
    args = _parser().parse_args(argv)
    todo, worlds = _plan(args), plan.worlds(args.cards)
    for world_size in worlds:
        plan.check_cards(world_size, todo.sizes[-1], results.memory("MemAvailable"))
    header = results.describe(command)
    file = results.ResultFile(args.json, header) if args.json else None
    rows: list[dict[str, Any]] = []
    for world_size in worlds:
        print(f"# all_reduce through torch: nranks {world_size} type {todo.dtype} link {args.link}; median time in us")
        print("#" + _line("size", *todo.backends, *(f"ratio {peer}" for peer in todo.backends[1:]), "#wrong")[1:])
        variables = {"SUPERPOD_LINK": args.link}
        for measured in job.run(world_size, _WORKER, todo.to_json(), preload=_SHARED, variables=variables):
            rows += _rows(measured, args.link)
            print(_table_line(measured), flush=True)
            if file:
                file.write(rows)
    return 1 if any(row["wrong"] for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "superpod-bench torch", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_shared(parser)
    add("--peers", default="gloo", help=f"backends to compare with, of {', '.join(PEERS)} (default gloo)")
    add("--sizes", default=_SIZES, help=f"sizes to measure (default {_SIZES})")
    add("-d", "--datatype", default="float32", choices=_DTYPES, help="dtype (default float32)")
    add("--turns", type=int, default=5, help="turns that each backend gets at each size (default 5)")
    seconds: dict[str, Any] = {"type": checked(parse_seconds), "metavar": "SECONDS"}
    add("--budget", default=2.0, **seconds, help="time for a size and backend; one call a turn at least (default 2s)")
    return parser


def _plan(args: argparse.Namespace) -> TorchPlan:
    if args.turns < 1:
        raise InvalidValue(f"--turns {args.turns} must be at least 1")
    itemsize = np.dtype(args.datatype).itemsize
    sizes = tuple(sorted(parse_size(text) for text in args.sizes.split(",")))
    for nbytes in sizes:
        if nbytes < itemsize or nbytes % itemsize:
            raise InvalidValue(f"--sizes {nbytes} must be a multiple of {itemsize} bytes, one {args.datatype}")
    peers = plan.choose("--peers", args.peers, PEERS)
    return TorchPlan((OURS, *peers), sizes, args.datatype, args.turns, args.budget)


def _rows(measured: dict[str, Any], link: str) -> list[dict[str, Any]]:
    """One row a backend, with the fields of superpod-bench's rows; a peer's link and algorithm are its own affair."""
    nbytes, world_size = measured["nbytes"], measured["world_size"]
    rows = []
    for backend, result in measured["backends"].items():
        seconds = result["median_us"] * 1e-6
        bus = busbw("all_reduce", nbytes=nbytes, seconds=seconds, world_size=world_size)
        what = {"collective": "all_reduce", "backend": backend, "world_size": world_size, "nbytes": nbytes}
        how = {"dtype": measured["dtype"], "op": "sum", "link": link, "algorithm": plan.AUTO}
        if backend != OURS:
            how |= {"link": backend, "algorithm": backend}
        rates = {
            "time_us": result["median_us"],
            "algbw_gbps": round(algbw(nbytes=nbytes, seconds=seconds) / 1e9, 6),
            "busbw_gbps": round(bus / 1e9, 6),
            "ratio": _ratio(measured, backend),
        }
        rows.append(what | how | result | rates)
    return rows


def _ratio(measured: dict[str, Any], backend: str) -> float:
    """`backend`'s time / ours."""
    theirs, ours = (float(measured["backends"][name]["median_us"]) for name in (backend, OURS))
    return round(theirs / ours, 3)


def _table_line(measured: dict[str, Any]) -> str:
    times = measured["backends"]
    return _line(
        size_text(measured["nbytes"]),
        *(f"{result['median_us']:.1f}" for result in times.values()),
        *(f"{_ratio(measured, backend):.2f}" for backend in times if backend != OURS),
        sum(result["wrong"] for result in times.values()),
    )


def _line(*cells: object) -> str:
    return "".join(f"{cell!s:>14}" for cell in cells)
