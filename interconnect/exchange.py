"""What a card does at a board in compiled code, as numbers: the arrays are those of a call, numbered from 0."""

from __future__ import annotations

from typing import NamedTuple

KINDS = {"float32": ord("f"), "float64": ord("d")} | {
    f"{sign}int{bits}": ord(kind) for sign in ("", "u") for bits, kind in ((32, "i"), (64, "l"))
}
"""What compiled code adds up: numpy's names of dtypes → what it calls them."""


class Exchange(NamedTuple):
    """What a card gives at a meeting, and takes when all have come. Arrays are numbered in a call; -1: none.

    Attributes:
        give, start, given: the array for the beginning of the slot, from where in it, and how much [B].
        kind: one of KINDS: the sum of all slots is taken, from rank 0's to the last, as numpy adds them up; 0: copies.
        into, at: the array where that goes, and where in it [B].
        offset, nbytes: what of a slot is taken [B].
        root: whose slot is copied; -1: all slots, one after the other.
        longer, more: of the first so many slots as many bytes more are copied, if all are.
    """

    give: int = -1
    start: int = 0
    given: int = 0
    kind: int = 0
    into: int = -1
    at: int = 0
    offset: int = 0
    nbytes: int = 0
    root: int = -1
    longer: int = 0
    more: int = 0


class Relay(NamedTuple):
    """What a card does in a relay, see collectives/relay.py. Everything in bytes, but for `window`.

    Attributes:
        kind: one of KINDS.
        array, into: number of the array that is added, and of that where its part of the sum goes.
        itemsize, size: of an element, and of the array.
        first, last: the part of the sum that is taken.
        piece, window: of a piece, and how many pieces a window has.
    """

    kind: int
    array: int
    into: int
    itemsize: int
    size: int
    first: int
    last: int
    piece: int
    window: int


class Reading(NamedTuple):
    """What a card reads of the others' arrays where they lie, between two meetings. Everything else in bytes.

    Attributes:
        show, shown: number of the array that the others read, and how much of it; -1: none of this card's.
        start, step: where in it the part for rank 0 begins, and how much later that for the next rank.
        into: number of the array that is filled; this card's own part is copied, if it is not there already.
        root: whose array alone is read; -1: all cards' are, one after the other.
        stride: how much later the next rank's part is put.
        nbytes: of a part.
    """

    show: int
    shown: int
    start: int
    step: int
    into: int
    root: int
    stride: int
    nbytes: int
