"""Everybody to everybody among the first n cards of a machine when those fill no whole units: closed forms by counting.

For machines of meshes below switches and one way a flow. On the way from s to d a mesh link is met at the card whose
higher coordinates are d's already and whose lower ones are still s's; so its load is the number of sources with these
lower coordinates times the number of targets with these higher ones, both among the cards that no switch keeps apart.
"""

from __future__ import annotations

import numpy as np

from superpod.interconnect.wires import FloatArray, IntArray, LevelWires


def partial_pairs(wires: LevelWires, n: int) -> tuple[FloatArray, float] | None:
    """Loads of all links and the longest latency (at most: every level of a way once), or None for other machines."""
    levels = wires.levels
    first_switch = next((i for i, level in enumerate(levels) if level.switched), len(levels))
    rings = any(level.kind == "ring" for level in levels)
    if rings or any(not level.switched for level in levels[first_switch:]) or wires.topology.routing == "all_paths":
        return None
    load = np.zeros(wires.nlinks)
    block = wires.unit[first_switch] if first_switch < len(levels) else wires.ncards
    for index in range(first_switch):
        _mesh(wires, index, n, block, load)
    for index in range(first_switch, len(levels)):
        _switch(wires, index, n, load)
    return wires.relieve(load), _latency(wires, n, first_switch)


def _cards(n: int, start: IntArray, size: int) -> IntArray:
    """How many of the first n cards lie in start … start + size − 1."""
    return np.clip(n - start, 0, size)


def _mesh(wires: LevelWires, index: int, n: int, block: int, load: FloatArray) -> None:
    level, unit = wires.levels[index], wires.unit[index]
    whole = min(-(-n // block) * block, wires.ncards)
    cards = np.arange(whole)
    place = cards % (unit * level.size)  # the coordinates of this level and below
    first = cards // block * block + place
    period = unit * level.size
    # sources: cards of the block with the same place, that is first, first + period, …, below n
    sources = np.clip(-(-(np.minimum(n, first - place + block) - first) // period), 0, None)
    for other in range(level.size):
        away = wires.coordinate(index, cards) != other
        targets = _cards(n, cards // period * period + other * unit, unit)
        load[wires.spans[index].start + cards[away] * level.size + other] = (sources * targets)[away]


def _switch(wires: LevelWires, index: int, n: int, load: FloatArray) -> None:
    level = wires.levels[index]
    top = index
    while top + 1 < len(wires.levels) and wires.levels[top + 1].trunk:
        top += 1
    unit, reach = wires.unit[index], wires.unit[top] * wires.levels[top].size
    ends = np.arange(0, n, unit if level.trunk else 1)
    near = _cards(n, ends // unit * unit, unit)
    others = _cards(n, ends // reach * reach, reach) - near
    for down in (False, True):
        load[wires.port(index, ends, down=down)] = others * (near if level.trunk else 1)


def _latency(wires: LevelWires, n: int, first_switch: int) -> float:
    """Of all levels of meshes together, or of the highest switch that is passed."""
    met = [i for i in range(len(wires.levels)) if wires.unit[i] < n]
    seconds = sum(wires.latency[i] for i in met if i < first_switch)
    ways = [sum(wires.latency[j] for j in wires.chain(i)) for i in met if i >= first_switch]
    return max([seconds, *ways]) + (float(wires.extra.max()) if wires.extra is not None else 0.0)
