"""A topology in figures: cards, links, what a card has, bisection, diameter, total; with the marks of sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from superpod.collectives.simulate import Machine
from superpod.interconnect.topology import Topology
from superpod.interconnect.units import rate_text, seconds_text
from superpod.interconnect.wires import LevelWires
from superpod.interconnect.wires_regular import all_pairs


def figures(machine: Machine) -> dict[str, Any]:
    """The figures as data: rates in B/s each way unless said, times in s."""
    wires, topology = machine.wires, machine.topology
    each = [
        float(wires.rate[span].sum() * wires.links_of(i) / max(span.stop - span.start, 1))
        for i, span in enumerate(wires.spans)
    ]
    return {
        "name": topology.name,
        "title": topology.title,
        "cards": wires.ncards,
        "classes": [
            {
                "name": name,
                "links": wires.links_of(i),
                "total": each[i],
                "latency": wires.latency[i],
                "marks": dict((topology.levels or topology.cables)[i].marks),
            }
            for i, name in enumerate(wires.classes)
        ],
        "published_total_both_ways": None if topology.published is None else 2 * wires.ncards * topology.published,
        "links_total_both_ways": _both_ways(machine),
        "bisection": bisection(machine),
        "diameter_seconds": diameter(machine),
        "mark": topology.weakest_mark(),
        "sources": list(topology.sources),
        "assumed": list(topology.assumed),
    }


def per_card(topology: Topology) -> list[float]:
    """What a card has at each level, all its links of that level together, each way [B/s]; of trunks, its share."""
    shares = []
    for index, level in enumerate(topology.levels):
        share = 1 / topology.below(index) if level.trunk else 1.0
        shares.append(level.bandwidth * level.ports * level.peers * share)
    return shares


def _both_ways(machine: Machine) -> float:
    """What all cards' own links carry, sent and received."""
    if isinstance(machine.wires, LevelWires):
        ports = [
            r for r, level in zip(per_card(machine.topology), machine.topology.levels, strict=True) if not level.trunk
        ]
        return 2 * machine.wires.ncards * sum(ports)
    return float(machine.wires.rate.sum())


def bisection(machine: Machine) -> float | None:
    """What two halves of the cards can send each other, each way [B/s], halved where least is cut; None for a graph."""
    wires = machine.wires
    if not isinstance(wires, LevelWires):
        return None
    return min(_cut(wires, index) for index in range(len(wires.levels)))


def _cut(wires: LevelWires, index: int) -> float:
    """Every unit that this level makes is halved; switches further up still join the halves."""
    level, unit, n = wires.levels[index], wires.unit[index], wires.ncards
    a, b = level.size // 2, level.size - level.size // 2
    groups = n // (unit * level.size)
    if level.switched:
        crossing = a * level.rate * (1 if level.trunk else unit)
    elif level.kind == "full_mesh":
        crossing = a * b * unit * level.rate
    else:
        crossing = (2 if level.size > 2 else 1) * unit * level.rate
    above = [
        one.rate * n / 2 / (wires.unit[index + 1 + i] if one.trunk else 1)
        for i, one in enumerate(wires.levels[index + 1 :])
        if one.switched
    ]
    return groups * crossing + sum(above)


def diameter(machine: Machine) -> float:
    """Latency of the longest way between two cards [s]."""
    wires = machine.wires
    if isinstance(wires, LevelWires):
        closed = all_pairs(wires, wires.ncards)
        if closed is not None:
            return closed[1]
    src, dst = np.divmod(np.arange(wires.ncards**2), wires.ncards)
    away = src != dst
    return wires.carry(src[away], dst[away], np.ones(int(away.sum())))[1]


def _short(bytes_per_s: float) -> str:
    """Three digits: a total is not surer than the figures that it was added up from."""
    return rate_text(float(f"{bytes_per_s:.3g}"))


def text(machine: Machine) -> Iterator[str]:
    """The figures line by line."""
    topology, found = machine.topology, figures(machine)
    yield f"{topology.name}: {topology.title}"
    yield f"  cards              {found['cards']:,}"
    shares = per_card(topology)
    for index, one in enumerate(found["classes"]):
        kind, card = "links", ""
        marks = topology.levels[index].marks if topology.levels else topology.cables[index].marks
        if topology.levels:
            level = topology.levels[index]
            kind = f"{level.kind} of {level.size}" + (", trunks" if level.trunk else "")
            kind += f", {level.planes} planes" if level.planes > 1 else ""
            card = f", {rate_text(shares[index])} a card in all"
        rate = (
            topology.levels[index].bandwidth * topology.levels[index].ports
            if topology.levels
            else (topology.cables[index].bandwidth)
        )
        yield (
            f"  {one['name']:<18} {kind}: {one['links']:,} links of {rate_text(rate)} each way "
            f"({marks.get('bandwidth', 'no mark')}){card}, {seconds_text(one['latency'])} "
            f"({marks.get('latency', 'no mark')})"
        )
    if shares:
        own = sum(s for s, level in zip(shares, topology.levels, strict=True) if not level.trunk)
        yield f"  a card             {rate_text(own)} each way over all its links"
    if topology.published is not None:
        yield (
            f"  total bandwidth    {_short(found['published_total_both_ways'])} both ways: {found['cards']:,} x "
            f"{rate_text(2 * topology.published)}, as published ({topology.published_mark})"
        )
    yield f"  of the links       {_short(found['links_total_both_ways'])} both ways, as wired here (D)"
    if found["bisection"] is not None:
        yield f"  bisection          {_short(found['bisection'])} each way, where least is cut (D)"
    yield f"  diameter           {seconds_text(found['diameter_seconds'])}, the longest way"
    if topology.cores:
        memory = rate_text(topology.memory)
        yield f"  cores              {topology.cores}, shared by all cards, like one memory of {memory}"
    if topology.spares is not None:
        yield f"  spares             {topology.spares.count} a {topology.spares.level}"
    for protocol in topology.protocols:
        yield (
            f"  protocol           {protocol.name}: {seconds_text(protocol.call)} a call, "
            f"{seconds_text(protocol.step)} a step, {100 * protocol.efficiency:.3g} % of the rate ({protocol.mark})"
        )
    yield from (f"  source             {line}" for line in topology.sources)
    yield from (f"  assumed            {line}" for line in topology.assumed)
