"""superpod-bench ddp: training steps per second of DDP and FSDP2, on superpod and on gloo, in turn."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from superpod.benchmarks import plan, results
from superpod.benchmarks.options import add_shared, checked
from superpod.benchmarks.peers import TORCH, Field
from superpod.benchmarks.results import Row
from superpod.benchmarks.stage import Stage
from superpod.benchmarks.turns import measure, ratio
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import parse_seconds

MODELS = ("small", "tiny_gpt", "tiny_gpt_fsdp2")
NAMES = ("superpod-torch", "gloo")
_EXAMPLE = Path(__file__).resolve().parent.parent / "examples/tiny_gpt.py"
_DESCRIPTION = """\
Train on superpod and on gloo, in turn, on cards of superpod-run, where gloo's may run on any core as under torchrun: a
network of three layers with 350 KB of gradients, and the network of examples/tiny_gpt.py on 64 windows of 64 letters,
all cards together, with DistributedDataParallel; the latter with FSDP2's fully_shard too. After every turn all ranks
must see the same parameters, bit for bit (#wrong)."""


def main(argv: Sequence[str], command: list[str]) -> int:
    """The subcommand; `command` is the whole command line, for the JSON's header. Raises InvalidValue, JobFailed."""
    args = _parser().parse_args(argv)
    models, worlds = plan.choose("--models", args.models, MODELS), plan.worlds(args.cards)
    output = results.Output(args.json, args.csv, command)
    if args.turns < 1:
        raise InvalidValue(f"--turns {args.turns} must be at least 1")
    if models != ("small",) and not _EXAMPLE.exists():
        raise InvalidValue(
            f"--models {models[-1]} needs {_EXAMPLE}; run in a clone of the repository, or --models small"
        )
    for world_size in worlds:
        plan.check_cards(world_size, 16 << 20, results.memory("MemAvailable"))
    output.check()
    header, rows = results.describe(command), list[Row]()
    field = Field(("gloo",), link=args.link)
    for world_size in worlds:
        with Stage(world_size) as stage:
            stage.start("superpod-torch", *field.superpod_torch(stage, "torch_ddp"))
            stage.start("gloo", *field.gloo(stage, "torch_ddp"))
            for model in models:
                print(f"# ddp {model}: nranks {world_size} link {args.link}; median of {args.turns} turns", flush=True)
                task = {"model": model, "file": str(_EXAMPLE), "calls": 100, "warmup": 3}
                found = measure(stage, NAMES, task, args.turns, args.budget)
                for name in NAMES:
                    rows.append(_row(model, name, world_size, found, args.link))
                    print(_line(rows[-1]), flush=True)
                output.write(header, rows)
    return 1 if any(row["wrong"] for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "superpod-bench ddp", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared(parser)
    parser.set_defaults(cards="2,8,64")
    add = parser.add_argument
    add("--models", default="all", metavar="LIST", help=f"of {', '.join(MODELS)} (default all)")
    add("--turns", type=int, default=5, metavar="K", help="turns of each backend and model (default 5)")
    steps = "time for steps of a model and backend, but one in a turn (default 5s)"
    add("--budget", type=checked(parse_seconds), default=5.0, metavar="SECONDS", help=steps)
    return parser


def _row(model: str, name: str, world_size: int, found: dict[str, Row], link: str) -> Row:
    what = {"collective": f"ddp {model}", "backend": name, "through": TORCH, "world_size": world_size, "nbytes": 0}
    result = found[name]
    speed = {"time_us": result["median_us"], "steps_per_s": round(1e6 / result["median_us"], 3)}
    return what | {"link": link if name == NAMES[0] else name} | result | speed | {"ratio": ratio(found, name)}


def _line(row: Row) -> str:
    half = (row["max_us"] - row["min_us"]) / 2 / row["median_us"]
    return (
        f"{row['backend']:>15} {row['steps_per_s']:10.2f} steps/s  {row['median_us'] / 1e3:10.2f} ms ±{half:.0%}  "
        f"ratio {row['ratio']:.2f}  #wrong {row['wrong']}"
    )
