"""The command line of superpod-run: what it offers, and the JobSpec that follows from what was typed."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from superpod import __version__
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.binding import POLICIES
from superpod.launcher.console import write_no_more
from superpod.launcher.explain import explain
from superpod.launcher.host_options import add_cards, add_hosts, add_nodes, cards_from, nodes_from, reach_from
from superpod.launcher.job import START_METHODS, JobSpec, StreamChoice
from superpod.launcher.machine_options import add_machine, machine_from


def job_from(options: argparse.Namespace) -> JobSpec:
    """Raises InvalidValue."""
    kind = "module" if options.module else "program" if options.no_python else "script"
    nodes = nodes_from(options)
    reach = reach_from(options)
    world_size, hosts = cards_from(options) if nodes is None else (nodes.cards, ())
    return JobSpec(
        target=options.target,
        args=tuple(options.args),
        kind=kind,
        world_size=world_size,
        start_method=options.start_method,
        preload=tuple(options.preload),
        auto_preload=not options.no_preload,
        bind_to=options.bind_to,
        log_dir=_folder(options.log_dir),
        redirects=StreamChoice.parse(options.redirects),
        tee=StreamChoice.parse(options.tee),
        shown_ranks=_ranks(options.local_ranks_filter),
        summary=options.summary,
        summary_json=options.summary_json,
        record=options.record,
        grace=options.grace,
        machine=machine_from(options, reach.exports),
        hosts=hosts,
        reach=reach,
        nodes=nodes,
    )


class _Explain(argparse.Action):
    """--explain FILE: like --version, it needs no script and ends superpod-run."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        story = explain(Path(values))
        try:
            sys.stdout.write(story)
            sys.stdout.flush()
        except BrokenPipeError:
            write_no_more()
            parser.exit(128 + signal.SIGPIPE)
        except OSError as error:
            write_no_more()
            parser.exit(1, f"superpod-run: cannot write to stdout: {error.strerror}\n")
        parser.exit()


def _folder(text: str | None) -> Path | None:
    if text == "":
        raise InvalidValue("--log-dir '' must be a folder, such as logs; leave it out to keep no files")
    return None if text is None else Path(text)


def _ranks(text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    if not all(part.isdecimal() for part in text.split(",")):
        raise InvalidValue(f"--local-ranks-filter {text!r} must be ranks with commas between them, such as 0,3")
    return frozenset(int(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(
        prog="superpod-run",
        description="Start n cards, on this host or several: processes that run the same script, as `python script.py` "
        "would.",
        epilog="Every option goes before the script; everything after it belongs to the script. "
        "The cards' standard input is empty. Variables that cards read: SUPERPOD_LINK (auto, zmq or shm), "
        "SUPERPOD_TIMEOUT (longest wait of a call, default 30m), SUPERPOD_WATCHDOG (after so long a wait, say who "
        "waits for whom), SUPERPOD_DEBUG=info (say which algorithm was chosen and why), "
        "SUPERPOD_TUNING (a table of superpod-bench tune, or off); superpod/interconnect/env.py, "
        "or `pydoc superpod.interconnect.env`, has them all.",
        allow_abbrev=False,
    )
    cli.add_argument("--version", action="version", version=f"superpod {__version__}")
    add_cards(cli)
    what = cli.add_mutually_exclusive_group()
    what.add_argument("-m", "--module", action="store_true", help="the target is a module, as for `python -m`")
    what.add_argument(
        "--no-python", "--no_python", action="store_true", help="the target is any program, started as it is"
    )
    cli.add_argument(
        "--explain", action=_Explain, metavar="FILE", help="say what a flight record means, and run nothing"
    )
    _add_start(cli)
    _add_output(cli)
    add_hosts(cli)
    add_nodes(cli)
    add_machine(cli)
    cli.add_argument("target", metavar="script", help="the script (the module with -m, the program with --no-python)")
    cli.add_argument("args", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")
    return cli


def _add_start(cli: argparse.ArgumentParser) -> None:
    start = cli.add_argument_group("start and end")
    start.add_argument(
        "--start-method",
        "--start_method",
        choices=START_METHODS,
        default="fork",
        help="fork: from a process that has imported what the script needs (default); exec: fresh interpreters",
    )
    start.add_argument(
        "--preload",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this, too, before the fork (repeatable)",
    )
    start.add_argument(
        "--no-preload",
        action="store_true",
        help="do not look for what the script imports; each card imports for itself",
    )
    start.add_argument(
        "--bind-to",
        "--bind_to",
        choices=POLICIES,
        default="auto",
        help="core: each card stays on one core, neighbours on different ones; none: on any; auto (default): on one "
        "core if all cards are on this host, meet in shared memory, and every core gets as many of them",
    )
    start.add_argument(
        "--grace",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="time from SIGTERM to SIGKILL for cards that do not end by themselves (default 5)",
    )


def _add_output(cli: argparse.ArgumentParser) -> None:
    output = cli.add_argument_group("output")
    output.add_argument(
        "--log-dir",
        "--log_dir",
        metavar="DIR",
        help="keep each card's output in DIR/rank<r>.stdout and .stderr, besides the console",
    )
    streams = "0 none, 1 stdout, 2 stderr, 3 both; or rank:streams pairs such as 0:3,1:2; needs --log-dir"
    output.add_argument("-t", "--tee", default="0", metavar="S", help=f"these to the console and to files: {streams}")
    output.add_argument("-r", "--redirects", default="0", metavar="S", help=f"these to files only: {streams}")
    output.add_argument(
        "--local-ranks-filter",
        "--local_ranks_filter",
        metavar="RANKS",
        help="the console shows only these ranks, such as 0,3",
    )
    output.add_argument("--summary", action="store_true", help="print a closing table of what the cards did")
    output.add_argument(
        "--summary-json", "--summary_json", type=Path, metavar="FILE", help="write the closing summary as JSON"
    )
    output.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write the cards' last calls as JSON, also of a job that goes well "
        "(default: only of one that fails, to DIR/flight.json of --log-dir, or else a temporary file)",
    )
