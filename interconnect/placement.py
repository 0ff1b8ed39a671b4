"""Which card of a machine each rank of a job sits on.

packed          rank r is card r: neighbours in rank are as close as can be (default)
spread          as far apart as can be: the first ranks sit in different units of the highest level, and so on down
0,8,16-23       the cards of ranks 0, 1, 2 ...; also a file with such a list, over as many lines as one likes
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Topology
from superpod.interconnect.wires import IntArray

PACKED, SPREAD = "packed", "spread"


def place(text: str, n: int, topology: Topology) -> IntArray:
    """The card of each of n ranks, shape (n,), all different.

    Raises InvalidValue: the machine has not so many cards, or `text` is no placement of n ranks on it.
    """
    if n > topology.ncards:
        raise InvalidValue(
            f"{n} cards are more than the {topology.ncards} of {topology.name}; "
            "take fewer, or a topology with larger levels"
        )
    if text == PACKED:
        return np.arange(n)
    return _spread(n, topology) if text == SPREAD else _listed(text, n, topology)


def in_words(text: str) -> str:
    """A placement as a list that needs no file any more; the others as they are. Raises InvalidValue."""
    if text in (PACKED, SPREAD) or not Path(text).is_file():
        return text
    try:
        return ",".join(Path(text).read_text().replace(",", " ").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"placement file {text} cannot be read: {error}") from error


def _spread(n: int, topology: Topology) -> IntArray:
    """Rank r counts in the machine's levels, the highest one first; cards count in them lowest first."""
    if not topology.levels:
        return np.arange(n) * topology.ncards // n
    rest, cards = np.arange(n), np.zeros(n, np.int64)
    for index in reversed(range(len(topology.levels))):
        rest, unit = np.divmod(rest, topology.levels[index].size)
        cards += unit * topology.below(index)
    return cards


def _listed(text: str, n: int, topology: Topology) -> IntArray:
    try:
        ranges = [_range(part) for part in in_words(text).split(",")]
    except ValueError:
        raise InvalidValue(
            f"placement {text!r} must be {PACKED}, {SPREAD}, or the cards of ranks 0, 1, 2 ... such as 0,8,16-23, "
            "or a file with such a list"
        ) from None
    listed = sum(max(0, cards.stop - cards.start) for cards in ranges)  # len() ends at 63 bits
    if listed != n:
        raise InvalidValue(f"placement lists {listed} cards and the job has {n} ranks; list {n} of them")
    cards = [card for one in ranges for card in one]
    for rank, card in enumerate(cards):
        if card >= topology.ncards:
            raise InvalidValue(f"placement: card {card} does not exist; {topology.name} has 0 to {topology.ncards - 1}")
        if cards.index(card) != rank:
            raise InvalidValue(
                f"placement: card {card} is given to ranks {cards.index(card)} and {rank}; a card takes one rank"
            )
    return np.array(cards)


def _range(part: str) -> range:
    first, _, last = part.strip().partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise ValueError(part)
    return range(int(first), int(last or first) + 1)
