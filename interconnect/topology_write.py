"""A topology as TOML text that topology_file.py reads back: the same value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from superpod.interconnect.topology import Cable, Level, Protocol, Topology

_DEFAULTS = {"ports": 1, "efficiency": 1.0, "oversubscription": 1.0, "trunk": False, "planes": 1, "tiers": 1}


def to_toml(topology: Topology) -> str:
    """The text."""
    return "\n".join(_lines(topology)) + "\n"


def _lines(topology: Topology) -> Iterator[str]:
    yield f"title = {_text(topology.title)}"
    yield f"routing = {_text(topology.routing)}"
    for name in ("sources", "assumed"):
        yield f"{name} = [" + ", ".join(_text(line) for line in getattr(topology, name)) + "]"
    if topology.cables:
        yield f"cards = {topology.named_cards}"
    yield "\n[card]"
    if topology.memory != float("inf"):
        yield f"memory = {_rate(topology.memory)}"
    yield f"message = {_time(topology.message)}"
    if topology.cores:
        yield f"cores = {topology.cores}"
    if topology.published is not None:
        yield f"published = {_rate(topology.published)}\npublished_mark = {_text(topology.published_mark)}"
    if (spares := topology.spares) is not None:
        yield f"spares = {{ level = {_text(spares.level)}, count = {spares.count}, latency = {_time(spares.latency)} }}"
    for level in topology.levels:
        yield from _level(level)
    for cable in topology.cables:
        yield from _cable(cable)
    for protocol in topology.protocols:
        yield from _protocol(protocol)


def _level(level: Level) -> Iterator[str]:
    yield f"\n[[level]]\nname = {_text(level.name)}\nkind = {_text(level.kind)}\nsize = {level.size}"
    yield f"bandwidth = {_rate(level.bandwidth)}\nlatency = {_time(level.latency)}"
    for name, default in _DEFAULTS.items():
        if (value := getattr(level, name)) != default:
            yield f"{name} = {json.dumps(value)}"
    yield from _marks(level.marks)


def _cable(cable: Cable) -> Iterator[str]:
    yield f"\n[[links]]\nname = {_text(cable.name)}\nbandwidth = {_rate(cable.bandwidth)}"
    yield f"latency = {_time(cable.latency)}\npairs = {json.dumps(cable.pairs)}"
    yield from _marks(cable.marks)


def _protocol(protocol: Protocol) -> Iterator[str]:
    yield f"\n[[protocol]]\nname = {_text(protocol.name)}"
    for name in ("call", "step", "segment"):
        yield f"{name} = {_time(getattr(protocol, name))}"
    yield f"ramp = {protocol.ramp!r}\nefficiency = {protocol.efficiency!r}\nmark = {_text(protocol.mark)}"


def _marks(marks: Mapping[str, str]) -> Iterator[str]:
    if marks:
        yield "marks = { " + ", ".join(f"{key} = {_text(value)}" for key, value in marks.items()) + " }"


def _text(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _rate(bytes_per_s: float) -> str:
    return f'"{bytes_per_s / 1e9!r}GB/s"'


def _time(seconds: float) -> str:
    return f'"{seconds!r}s"'
