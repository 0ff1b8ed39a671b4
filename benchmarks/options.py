"""Options that the subcommands of superpod-bench share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from superpod.interconnect.env import LINKS
from superpod.interconnect.errors import InvalidValue

T = TypeVar("T")


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` for argparse, which drops the message of a ValueError."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except InvalidValue as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def add_shared(parser: argparse.ArgumentParser) -> None:
    """-n, --link and -J."""
    add = parser.add_argument
    add("-n", "--cards", default="8", metavar="N", help="number of cards, or a list such as 2,8,64 (default 8)")
    add("--link", choices=LINKS, default="auto", help="what carries the payload (default auto)")
    add("-J", "--json", type=Path, metavar="FILE", help="write the results there too")
