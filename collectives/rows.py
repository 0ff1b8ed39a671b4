"""Where chunks and blocks of an array lie in the slots of a board: a row of `width` elements for a piece of each."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from superpod.collectives.execute import Array, Bounds
from superpod.collectives.meeting import Meeting


def rows_of(meeting: Meeting, dtype: Any, n: int, width: int) -> Array:
    """The slots as (world_size, n chunks, width elements)."""
    rows: Array = meeting.begin().view(dtype)[:, : n * width].reshape(meeting.world_size, n, width)
    return rows


def _even(bounds: Bounds) -> int:
    """The length of the chunks if all have one, else 0."""
    length = bounds[1] - bounds[0]
    return length if length and bounds == tuple(range(bounds[0], bounds[-1] + 1, length)) else 0


def put(rows: Array, array: Array, bounds: Bounds, start: int) -> None:
    """Copy a piece of every chunk of `array`, from element `start` of it on, into its row."""
    width = rows.shape[1]
    if length := _even(bounds):
        pieces = array[bounds[0] : bounds[-1]].reshape(-1, length)[:, start : start + width]
        rows[:, : pieces.shape[1]] = pieces
        return
    for row, first, last in zip(rows, bounds[:-1], bounds[1:], strict=True):
        piece = array[first + start : min(first + start + width, last)]
        row[: piece.size] = piece


def take(rows: Array, array: Array, bounds: Bounds, start: int) -> None:
    """The reverse of `_put`."""
    width = rows.shape[1]
    if length := _even(bounds):
        pieces = array[bounds[0] : bounds[-1]].reshape(-1, length)[:, start : start + width]
        pieces[...] = rows[:, : pieces.shape[1]]
        return
    for row, first, last in zip(rows, bounds[:-1], bounds[1:], strict=True):
        piece = array[first + start : min(first + start + width, last)]
        piece[...] = row[: piece.size]


def longest_of(bounds: Bounds) -> int:
    """Elements of the longest chunk."""
    return max(last - first for first, last in pairwise(bounds))
