"""Closed forms for traffic that is the same from everywhere, so that 15,488 cards need not be routed pair by pair.

They hold for the first n cards of a machine of levels when those fill whole units (`fill`), nobody is slower than the
others, and routing takes one way per flow; elsewhere they say None and flows are routed one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from superpod.interconnect.wires import FloatArray, IntArray, LevelWires


def fill(wires: LevelWires, n: int) -> tuple[int, ...] | None:
    """How many units of each level the first n cards fill, or None when they do not fill whole ones."""
    used, left = [], n
    for level in wires.levels:
        if left <= level.size:
            used.append(left)
            left = 1
        elif left % level.size:
            return None
        else:
            used.append(level.size)
            left //= level.size
        if level.kind == "ring" and used[-1] not in (1, level.size):
            return None  # part of a ring is a line
    return tuple(used)


def all_pairs(wires: LevelWires, n: int, size: int | None = None, stride: int = 1) -> tuple[FloatArray, float] | None:
    """Among the first n cards, everybody sends 1 to every other: (load of every link, longest latency), or None.

    With `size` and `stride`, only to those of its group, `size` cards that are `stride` apart; whole levels only.
    """
    whole = fill(wires, n)
    used = whole if whole is None or size is None else _between(whole, size, stride)
    if used is None:
        return None
    met = prod(used)
    load = np.zeros(wires.nlinks)
    jumped = 1.0  # share of all n² pairs that no switch above has brought home already
    through = [0.0] * len(used)
    for index in reversed(range(len(used))):
        differ = jumped * (1 - 1 / used[index])
        if wires.levels[index].switched:
            for i in wires.chain(index):
                through[i] += differ
            jumped /= used[index]
        else:
            _fill_mesh(wires, index, n, used, load, met * jumped)
    for index, share in enumerate(through):
        if share:
            unit = wires.unit[index] if wires.levels[index].trunk else 1
            ends = wires.port(index, np.arange(0, n, unit), down=False)
            for links in (ends, ends + wires._count(index) // 2):
                load[links] = met * share * min(unit, n)
    further = float(wires.extra.max()) if wires.extra is not None else 0.0
    return wires.relieve(load), _longest(wires, used) + further


def _between(whole: tuple[int, ...], size: int, stride: int) -> tuple[int, ...] | None:
    """`whole` with 1 for the levels in which the cards of a group are equal, or None if a group is no whole levels."""
    below = [prod(whole[:i]) for i in range(len(whole) + 1)]
    if stride not in below or size * stride not in below:
        return None
    return tuple(k if stride <= b < size * stride else 1 for k, b in zip(whole, below, strict=False))


def _fill_mesh(wires: LevelWires, index: int, n: int, used: tuple[int, ...], load: FloatArray, per_card: float) -> None:
    """`per_card` pairs start, before those of equal coordinates are left out, at each card's links of this level."""
    level, size = wires.levels[index], used[index]
    if size == 1:
        return
    cards = np.arange(n)  # of any group: all have a link of their own
    if level.kind == "ring":
        start = wires.spans[index].start
        load[start : start + 2 * n] = per_card * (size * size // 4) / size / 2
        return
    here = wires.coordinate(index, cards)
    for other in range(size):
        away = cards[here != other]
        load[wires.spans[index].start + away * level.size + other] = per_card / size


def _longest(wires: LevelWires, used: tuple[int, ...]) -> float:
    """The longest way's latency: through the levels from the lowest on, or by a switch that brings one home at once."""
    seconds = 0.0
    for index, size in enumerate(used):
        level = wires.levels[index]
        if size == 1:
            continue
        if level.switched:
            seconds = max(seconds, sum(wires.latency[i] for i in wires.chain(index)))
        elif level.kind == "ring":
            seconds += wires.latency[index] * (size // 2)
        else:
            spread = wires.topology.routing == "all_paths" and level.size > 2
            seconds += wires.latency[index] * (2 if spread else 1)
    return seconds


@dataclass(frozen=True, slots=True)
class Shifts:
    """Steps in which every rank sends 1 to the one `distance` further on, one entry a distance.

    Attributes:
        load: the busiest link of each class, shape (distances, classes); latency: of the longest way [s];
        total: what the links of each class carry together, shape (classes,), summed over the distances.
    """

    load: FloatArray
    latency: FloatArray
    total: FloatArray


def shifts(wires: LevelWires, n: int, distance: IntArray) -> Shifts | None:
    """The shifts by each `distance` (1 to n − 1) among the first n cards, or None.

    Routing from the highest level down, a mesh link meets at most one flow of a shift: the lower coordinates of its
    source, and the higher ones of its target, are the link's own. So what counts is whether a class is used at all.
    """
    used, levels = fill(wires, n), wires.levels
    first_switch = next((i for i, level in enumerate(levels) if level.switched), len(levels))
    mixed = any(not level.switched for level in levels[first_switch:])
    rings = first_switch < len(levels) and any(level.kind == "ring" for level in levels[:first_switch])
    if used is None or mixed or rings or not wires.even or wires.topology.routing == "all_paths":
        return None
    load = np.zeros((len(distance), len(levels)))
    latency = np.zeros(len(distance))
    for index in range(first_switch):
        load[:, index], hops = _mesh_shift(wires, index, used, n, prod(used[:first_switch]), distance)
        latency += hops * wires.latency[index]
    for index in range(first_switch, len(levels)):
        if used[index] > 1:
            jumps = _near(n, distance) < wires.unit[index] * used[index]
            way = sum(wires.latency[i] for i in wires.chain(index))
            latency = np.where(jumps, np.maximum(latency, way), latency)
    for index in range(first_switch, len(levels)):
        load[:, index] = _switch_shift(wires, index, used, n, distance)
    pairs = all_pairs(wires, n)  # all distances together are all pairs
    whole = pairs[0] if pairs is not None else np.zeros(wires.nlinks)
    total = np.array([whole[span].sum() for span in wires.spans]) * (len(distance) / max(n - 1, 1))
    return Shifts(load, latency, total)


def _near(n: int, distance: IntArray) -> IntArray:
    """Of the shift's two halves, forwards by d and, around the end, backwards by n − d: the shorter distance."""
    return np.minimum(distance, n - distance)


def _mesh_shift(
    wires: LevelWires, index: int, used: tuple[int, ...], n: int, block: int, distance: IntArray
) -> tuple[FloatArray, FloatArray]:
    """The busiest mesh or ring link, and most hops; `block`: cards among which no switch takes the flows over."""
    size, unit = used[index], prod(used[:index])
    if size == 1:
        return np.zeros(len(distance)), np.zeros(len(distance))
    d = distance if block == n else _near(n, distance)
    step, carry = d // unit % size, d % unit > 0  # coordinates move by step, or by step + 1 where a lower one overflows
    if wires.levels[index].kind == "ring":
        around = np.minimum(step, size - step)
        further = (step + 1) % size
        also = np.where(carry, np.minimum(further, size - further), 0)
        return np.maximum(_tied(around, size), _tied(also, size)), np.maximum(around, also).astype(np.float64)
    overflows = carry & ((unit - d % unit < block - d) | (block == n))  # one that overflows still lies in the block
    met = ((d < block) & ((step > 0) | overflows)).astype(np.float64)
    return met, met


def _tied(hops: IntArray, size: int) -> FloatArray:
    """The load of a ring whose ranks all send `hops` further: where both ways are equally long, half goes each."""
    return np.where(2 * hops == size, hops / 2, hops)


def _switch_shift(wires: LevelWires, index: int, used: tuple[int, ...], n: int, distance: IntArray) -> FloatArray:
    """The busiest port or trunk of a switch level, also on the way to the trunks above it."""
    top = index
    while top + 1 < len(used) and wires.levels[top + 1].trunk:
        top += 1
    reach, unit = prod(used[: top + 1]), prod(used[:index])
    if reach <= unit:
        return np.zeros(len(distance))
    near = _near(n, distance)
    if not wires.levels[index].trunk:
        return (near < reach).astype(np.float64)
    if reach == n:
        return np.minimum(near, unit).astype(np.float64)
    return np.where(near < reach, np.minimum(unit, reach - near) - np.maximum(0, unit - near), 0).astype(np.float64)
