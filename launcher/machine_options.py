"""superpod-run's options for the machine that a job pretends to run on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from superpod.interconnect.env import Settings, child_environment
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.machine import MachineSpec, machine_spec


def add_machine(cli: argparse.ArgumentParser) -> None:
    """The option group."""
    group = cli.add_argument_group(
        "the machine that the cards stand for",
        "Data and processes are real; beside the wall clock runs a modelled one (docs/model.md).",
    )
    add = group.add_argument
    add(
        "--topology",
        metavar="T",
        help="a preset (superpod-sim topology lists them) or a TOML file: at the end a table says how long the "
        "collectives would have taken on that machine; superpod.clock() says it in the program",
    )
    add(
        "--placement",
        metavar="P",
        help="which of its cards the ranks sit on: packed (default), spread, a list such as 0,8,16-23, or a file",
    )
    add(
        "--machine-fault",
        "--machine_fault",
        action="append",
        default=[],
        metavar="FAULT",
        help="what is wrong with it, as superpod-sim says it: 'straggler 7:2', 'slow 0-1:0.5', 'cut 0-1', 'dead 9'; "
        "may be repeated",
    )
    add(
        "--what-if",
        "--what_if",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="price the run's calls at another scale beside: cards, topology, placement, algorithm (a name, or best); "
        "such as cards=1024; may be repeated",
    )
    add("--shape", action="store_true", help="the links really take their time: that of the machine, scaled")
    add(
        "--time-scale",
        "--time_scale",
        metavar="F",
        help="with --shape: so many times as long as on the machine (default 1000: its microseconds take milliseconds)",
    )
    add("--hbm", metavar="SIZE", help="what a card may allocate beyond what it has at its start, such as 2GiB")


def machine_from(options: argparse.Namespace, exports: Mapping[str, str]) -> MachineSpec:
    """Raises InvalidValue. What is not typed, the environment or the cards' `exports` may say."""
    for name in ("topology", "placement", "time_scale", "hbm"):
        if getattr(options, name) == "":
            raise InvalidValue(f"--{name.replace('_', '-')} '' must not be empty; leave it out")
    if not all(fault.strip() for fault in options.machine_fault):
        raise InvalidValue("--machine-fault '' must be a fault, such as 'straggler 7:2'; leave it out for none")
    said = Settings.read(child_environment(exports))
    scale = repr(said.time_scale) if said.time_scale else None
    return machine_spec(
        options.topology or said.topology,
        options.placement or (said.placement if said.placement != "packed" else None),
        options.what_if,
        faults=", ".join(options.machine_fault) or said.machine_faults,
        shape=options.shape or scale is not None,
        time_scale=options.time_scale or scale,
        hbm=options.hbm or (None if said.hbm is None else str(said.hbm)),
    )
