"""Rings through a mesh of one or more dimensions that share no link: as many as there are, found by exchanging links.

A card of a mesh k0 × k1 × … has D = Σ(k − 1) neighbours, so at most D/2 undirected rings fit, each used in both
directions. Strides give D/2 sets of circles that visit every card once (and, if D is odd, pairs that are left over).
Two circles of a set become one when a square of links is exchanged with another set; a fixed pseudo-random order of
tries makes all of them rings for every shape that was tried up to 128 cards.

Source: for one dimension Walecki (Lucas, Récréations mathématiques II, 1892); the search is ours.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd, prod

import numpy as np

from superpod.collectives.schedule import IntArray

MOST_CARDS, MOST_RINGS = 128, 16
_TRIES = 60_000

Links = list[set[int]]
"""The neighbours of every card in one set of circles."""


@lru_cache(maxsize=64)
def rings(shape: tuple[int, ...]) -> IntArray:
    """Directed rings without a link in common, shape (number, n): the cards in their order.

    Every undirected ring comes twice, forwards and backwards. In meshes of more than MOST_CARDS cards: the strides that
    are coprime with n, which are rings of links between any two cards. At most MOST_RINGS.
    """
    n = prod(shape)
    if n < 3 or n > MOST_CARDS:
        strides = [s for s in range(1, max(n, 2)) if gcd(s, n) == 1][:MOST_RINGS]
        return np.array([np.arange(n) * s % n for s in strides])
    sets, left = _circles(shape)
    _join(n, sets, [set() for _ in range(n)] if left is None else left)
    found = [order for links in sets if len(order := _walk(links, 0)) == n] or [list(range(n))]
    both = [way for order in found for way in (order, [order[0], *reversed(order[1:])])]
    return np.array(both[:MOST_RINGS])


def _circles(shape: tuple[int, ...]) -> tuple[list[Links], Links | None]:
    """Sets of circles, and the pairs that are left over if a card has an odd number of neighbours."""
    n = prod(shape)
    sets: list[Links] = []
    halves: list[Links] = []
    for d, size in enumerate(shape):
        stride = prod(shape[:d])
        for step in range(1, size // 2 + 1):
            x = np.arange(n) // stride % size
            ahead, back = (np.arange(n) + ((x + sign * step) % size - x) * stride for sign in (1, -1))
            links = [set(pair) for pair in zip(ahead.tolist(), back.tolist(), strict=True)]
            (halves if 2 * step == size else sets).append(links)
    while len(halves) > 1:  # two sets of pairs make circles of four
        one, other = halves.pop(), halves.pop()
        sets.append([a | b for a, b in zip(one, other, strict=True)])
    return sets, halves[0] if halves else None


def _walk(links: Links, start: int) -> list[int]:
    """The cards of a circle, in order."""
    order, before, here = [start], -1, start
    while True:
        ahead = next((card for card in links[here] if card != before), before)
        if ahead == start:
            return order
        order.append(ahead)
        before, here = here, ahead


def _count(links: Links) -> int:
    seen, number = set[int](), 0
    for card in range(len(links)):
        if card not in seen:
            seen.update(_walk(links, card))
            number += 1
    return number


def _join(n: int, sets: list[Links], left: Links) -> None:
    """Exchange squares of links between sets, and with those left over, while any set is more than one circle."""
    random = np.random.default_rng(0)
    counts = [_count(links) for links in sets]
    for _ in range(_TRIES):
        broken = [i for i, count in enumerate(counts) if count > 1]
        if not broken or 2 * (len(counts) - len(broken)) >= MOST_RINGS:
            return
        i = broken[int(random.integers(len(broken)))]
        j = int(random.integers(len(sets) + 1))
        other = sets[j] if j < len(sets) else left
        a = int(random.integers(n))
        b = _pick(sets[i][a], random)
        if i == j or not other[a]:
            continue
        c, d = _pick(other[b], random), _pick(other[a], random)
        if c == d or d not in sets[i][c]:
            continue
        _exchange(sets[i], other, a, b, c, d)
        now = {k: _count(sets[k]) for k in (i, j) if k < len(sets)}
        if sum(now.values()) <= sum(counts[k] for k in now):
            for k, count in now.items():
                counts[k] = count
        else:
            _exchange(other, sets[i], a, b, c, d)


def _pick(cards: set[int], random: np.random.Generator) -> int:
    ordered = sorted(cards)
    return ordered[int(random.integers(len(ordered)))]


def _exchange(one: Links, other: Links, a: int, b: int, c: int, d: int) -> None:
    """Links a-b and c-d of `one` for b-c and d-a of `other`: each loses what it has and gets what it has not."""
    for links in (one, other):
        for x, y in ((a, b), (b, c), (c, d), (d, a)):
            links[x] ^= {y}
            links[y] ^= {x}
