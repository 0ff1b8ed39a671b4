"""Options that the subcommands of superpod-bench share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from superpod.benchmarks.peers import HOME, PEERS
from superpod.interconnect.env import LINKS
from superpod.interconnect.errors import InvalidValue

T = TypeVar("T")

TURNS = 5  # that each program gets, unless the user says otherwise


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` for argparse, which drops the message of a ValueError."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except InvalidValue as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def add_shared(parser: argparse.ArgumentParser) -> None:
    """-n, --link, -J and --csv."""
    add = parser.add_argument
    add("-n", "--cards", default="8", metavar="N", help="number of cards, or a list such as 2,8,64 (default 8)")
    add("--link", choices=LINKS, default="auto", help="what carries the payload (default auto)")
    add("-J", "--json", type=Path, metavar="FILE", help="write the results there too, as JSON")
    add("--csv", type=Path, metavar="FILE", help="and there as CSV")


def add_hosts(parser: argparse.ArgumentParser) -> None:
    """--hosts, --interface and --encryption."""
    add = parser.add_argument
    add(
        "--hosts",
        metavar="A:4,B:4",
        help="cards on several hosts, as superpod-run has them, beside --peers",
    )
    add("--interface", metavar="NAME", help="of every host that all programs use (default: the way there)")
    modes = "on, off, or on,off: series of superpod that encrypt between hosts, and that do not (default on)"
    add("--encryption", metavar="LIST", help=modes)


def add_peers(parser: argparse.ArgumentParser, default: str | None = None, turns: int = TURNS) -> None:
    """--peers, --peers-from and --turns."""
    add = parser.add_argument
    add("--peers", default=default, metavar="LIST", help=f"compare with these, of {', '.join(PEERS)}, or all")
    add("--peers-from", type=Path, default=HOME, metavar="DIR", help="where their MPIs are (default: make bench-peers)")
    add(
        "--turns",
        type=int,
        default=turns,
        metavar="K",
        help=f"turns that each program gets at each size (default {turns})",
    )


def refuse_empty(args: argparse.Namespace) -> None:
    """Raises InvalidValue for an option with an empty text, which would count as if it had been left out."""
    for name, value in vars(args).items():
        if value == "":
            raise InvalidValue(f"--{name} '' must not be empty; give it a value, or leave it out")
