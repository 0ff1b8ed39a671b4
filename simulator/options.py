"""Options that the subcommands of superpod-sim share, and what they make: a machine."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from superpod.benchmarks.options import checked
from superpod.collectives.simulate import Machine
from superpod.interconnect import topology_file
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import ROUTINGS
from superpod.interconnect.topology_faults import Faults
from superpod.interconnect.units import parse_size

SIZE: dict[str, Any] = {"type": checked(parse_size), "metavar": "SIZE"}


def add_machine(parser: argparse.ArgumentParser) -> None:
    """--topology, --cards, --routing and what is wrong with the machine."""
    add = parser.add_argument
    known = ", ".join(topology_file.presets())
    add("-t", "--topology", required=True, metavar="T", help=f"a TOML file, or one of {known}")
    add("-n", "--cards", type=int, metavar="N", help="the first N cards of it (default all)")
    add("--routing", choices=ROUTINGS, help="default: what the topology says")
    many: dict[str, Any] = {"action": "append", "default": []}
    add(
        "--cut",
        metavar="A-B",
        **many,
        help="cut the link between two cards, one port: 5@spine, or one plane: @spine; may be repeated",
    )
    add("--slow", metavar="A-B:F", **many, help="a link, or 5@spine, carries only the share F of its rate")
    add("--straggler", metavar="C:F", **many, help="card C takes F times as long for everything")
    add("--dead", metavar="C", **many, help="card C is replaced by the spare of its unit")


def machine(args: argparse.Namespace) -> tuple[Machine, int]:
    """The machine, and how many of its cards take part. Raises InvalidValue."""
    topology = topology_file.load(args.topology)
    if args.routing is not None:
        topology = replace(topology, routing=args.routing)
    n = topology.ncards if args.cards is None else args.cards
    if not 1 <= n <= topology.ncards:
        raise InvalidValue(
            f"--cards {n} must be 1 to {topology.ncards}, all that {topology.name} has; "
            "take fewer, or a topology with larger levels"
        )
    return Machine(topology, faults(args)), n


def faults(args: argparse.Namespace) -> Faults:
    """What is wrong with the machine."""
    return Faults(tuple(args.cut), tuple(args.slow), tuple(args.straggler), tuple(args.dead))
