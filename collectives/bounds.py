"""What no algorithm can beat: the least time of a collective on given links.

Bytes. Cut the cards into k groups of which each has the same way out. Whatever the algorithm, so many bytes leave the
groups together: all_reduce 2(k−1)·S (every part of the array must come together, and its sum must go out again),
reduce_scatter and all_gather (k−1)·S; so the busiest group sends at least a k-th of it, 2(k−1)/k·S. With groups of one
card that is the well-known 2(p−1)/p·S; with racks or hosts it says what the links between those allow. all_to_all: a
group of g cards sends g·(p−g)/p·S. broadcast and reduce: S passes every group's way in or out. Latency: one hop.

Source: Patarasuk & Yuan, JPDC 69 (2009), for single cards; groups by the same counting.
"""

from __future__ import annotations

import numpy as np

from superpod.interconnect.topology_faults import Wires
from superpod.interconnect.wires import LevelWires


def lower_bound(collective: str, wires: Wires, n: int, nbytes: float) -> float:
    """Seconds for S = `nbytes` among the first n cards; 0 for a card alone."""
    if n < 2:
        return 0.0
    least = 0.0
    for size, out in ways_out(wires):
        if size < n:
            least = max(least, leaving(collective, n, size) * nbytes / out)
    hop = min(wires.latency)
    return min(p.call + p.step + hop + least / p.efficiency for p in wires.topology.protocols)


def leaving(collective: str, n: int, size: int) -> float:
    """Bytes, as a multiple of S, that the busiest group of `size` of n cards must send or receive."""
    groups = -(-n // size)
    share = (groups - 1) / groups
    if collective == "all_reduce":
        return 2 * share
    if collective in ("reduce_scatter", "all_gather"):
        return share
    if collective in ("broadcast", "reduce"):
        return 1.0
    if collective in ("gather", "scatter"):
        return (n - size) / n
    return size * (n - size) / n if collective == "all_to_all" else 0.0


def ways_out(wires: Wires) -> list[tuple[int, float]]:
    """(cards of a group, what the links out of it carry each way [B/s]) for cards and every kind of unit."""
    if not isinstance(wires, LevelWires):
        out = np.zeros(wires.ncards)
        card = wires.ends[:, 0] < wires.ncards
        np.add.at(out, wires.ends[card, 0], wires.rate[card])
        return [(1, float(out.max()))]
    found = []
    for index, size in enumerate(wires.unit):
        level = wires.levels[index]
        trunk = level.rate if level.trunk else 0.0  # trunks further up are reached through this one, or through ports
        ports = sum(one.rate * one.peers for one in wires.levels[index:] if not one.trunk)
        found.append((size, trunk + size * ports))
    return found
