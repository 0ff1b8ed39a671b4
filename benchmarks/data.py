"""Data whose result is known without computing it again: small integers that differ by rank and by index.

Every value is an integer that the dtype holds exactly, in every partial result too, so that any order of reduction
gives the same bits and a result is right or wrong, never close. Values are made a block at a time, so memory is small.

Contributions to a reduction. With j = (rank + i) mod n, rank brings to element i
    own[i]      if j = 0: one rank in n, a different one for each i
    common[j]   otherwise
so that over the ranks every j occurs once, and element i of the result is own[i] op (common[1] op ... op common[n-1]),
whatever n. A contribution that is missing, or counted twice, changes the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from superpod.interconnect.errors import InvalidValue

Array = npt.NDArray[Any]

# A prime: what lands a power of two, or any shorter distance, from where it belongs does not look right.
_PERIOD = 8191
_BLOCK = 1 << 16  # elements made at a time: they stay in the cache

_UFUNC = {  # said again here, not taken from collectives: a check must not share the mistakes of what it checks
    "sum": np.add,
    "avg": np.add,
    "product": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
DTYPES = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bool", "complex64", "complex128"),
)


class Pattern(Protocol):
    """An endless array, of which `block(low, high)` is a part of at most 65,536 elements."""

    def block(self, low: int, high: int) -> Array: ...


@dataclass(frozen=True, slots=True)
class Repeating:
    """A table over and over again, read from index `start` on."""

    table: Array  # one period and one block more, so that every block is a view
    start: int = 0

    def at(self, start: int) -> Self:
        """The same values from index `start` of these on."""
        return replace(self, start=self.start + start)

    def block(self, low: int, high: int) -> Array:
        first = (low + self.start) % _PERIOD
        return self.table[first : first + high - low]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one rank brings to a reduction, from element `start` on."""

    rank: int
    own: Repeating
    common: Array  # (n,)
    start: int = 0

    def at(self, start: int) -> Self:
        return replace(self, start=self.start + start)

    def block(self, low: int, high: int) -> Array:
        n = len(self.common)
        j = (self.rank + self.start + low) % n
        values = np.resize(np.roll(self.common, -j), high - low)
        own = self.own.at(self.start).block(low, high)
        values[-j % n :: n] = own[-j % n :: n]
        return values


def message(sender: int, dtype: np.dtype[Any]) -> Repeating:
    """What `sender` sends where nothing is reduced."""
    # 2741 spreads the senders over the period: no two of fewer than 8,191 begin at the same place
    return _messages(dtype).at(sender * 2741 % _PERIOD)


def contribution(rank: int, *, op: str, dtype: np.dtype[Any], world_size: int) -> Contribution:
    """What `rank` brings to a reduction. Raises InvalidValue when `dtype` cannot hold the result exactly."""
    own, common, _ = _reduction(op, dtype, world_size)
    return Contribution(rank, own, common)


def reduced(*, op: str, dtype: np.dtype[Any], world_size: int) -> Repeating:
    """What `op` makes of every rank's contribution. Raises InvalidValue as `contribution` does."""
    return _reduction(op, dtype, world_size)[2]


@lru_cache(maxsize=16)
def _messages(dtype: np.dtype[Any]) -> Repeating:
    return _repeating(_letters(dtype, 113 if dtype.itemsize == 1 else 1000))


@lru_cache(maxsize=16)
def _reduction(op: str, dtype: np.dtype[Any], world_size: int) -> tuple[Repeating, Array, Repeating]:
    """(own, common, result) of a reduction over `world_size` ranks."""
    own, common = _terms(op, dtype, world_size)
    total = own
    if world_size > 1:
        with np.errstate(over="ignore"):  # integers wrap around, on the cards as well
            total = _UFUNC[op](own, _UFUNC[op].reduce(common[1:], dtype=dtype))
    if op == "avg":
        total = total / dtype.type(world_size)
    return _repeating(own), common, _repeating(total.astype(dtype))


def _repeating(period: Array) -> Repeating:
    return Repeating(np.resize(period, _PERIOD + _BLOCK))


def _letters(dtype: np.dtype[Any], top: int) -> Array:
    """One period of integers 1 to `top` without visible order; for bool, of both values."""
    numbers: Array = np.arange(_PERIOD) ** 2 % _PERIOD
    if dtype.kind == "b":
        return (numbers % 2).astype(dtype)
    letters: Array = (numbers % top + 1).astype(dtype)
    return letters * dtype.type(1 + 2j) if dtype.kind == "c" else letters


def _terms(op: str, dtype: np.dtype[Any], n: int) -> tuple[Array, Array]:
    """(own, common): one period of an element's own term, and the terms that all elements share, shape (n,)."""
    j = np.arange(n)
    if dtype.kind == "b":  # the shared terms are neutral
        return _letters(dtype, 1), np.full(n, op in ("product", "min", "band"))
    if op == "product":  # at most four twos
        return _letters(dtype, 113), np.where(j % -(-n // 4) == 0, 2, 1).astype(dtype)
    if op in ("min", "max"):  # either from the element's own term or from the shared ones
        return _letters(dtype, 113), (j % 50 + (57 if op == "min" else 1)).astype(dtype)
    if op in ("band", "bor"):
        own, common = 8 * (_letters(dtype, 16) - 1).astype(dtype), (1 << j % 3).astype(dtype)
        return (~own, ~common) if op == "band" else (own, common)
    if op == "bxor":
        return _letters(dtype, 113), (j % 100 + 1).astype(dtype)
    exact = _exact_up_to(dtype)
    if n > exact // 4:
        raise InvalidValue(f"dtype={dtype} counts exactly to {exact} only, too few for world_size={n}; use float32")
    common = j % min(100, exact // 2 // n) + 1
    if op == "sum":
        return _letters(dtype, 113 if dtype.itemsize == 1 else 1000), common.astype(dtype)
    shared = int(common[1:].sum())
    own = _letters(dtype, min(1000, (exact - shared - n) // n)) * dtype.type(n) + dtype.type(-shared % n)
    return own, common.astype(dtype)  # all terms together are a multiple of n: their mean is exact


def _exact_up_to(dtype: np.dtype[Any]) -> int:
    """All integers up to this are exact, or wrap around exactly, in `dtype`."""
    return 1 << 62 if dtype.kind in "iu" else 1 << (np.finfo(dtype).nmant + 1)


def fill(array: Array, parts: Sequence[Pattern]) -> None:
    """Write the patterns into equal parts of a one-dimensional array, one after the other."""
    for view, values in _walk(array, parts):
        view[:] = values


def spoil(array: Array, parts: Sequence[Pattern]) -> None:
    """Make every element differ from the patterns, so that only what is written afterwards can be right."""
    for view, values in _walk(array, parts):
        view[:] = values == 0


def count_wrong(array: Array, parts: Sequence[Pattern]) -> int:
    """How many elements of `array` differ from the patterns in its equal parts."""
    return sum(int(np.count_nonzero(view != values)) for view, values in _walk(array, parts))


def _walk(array: Array, parts: Sequence[Pattern]) -> Iterator[tuple[Array, Array]]:
    size = len(array) // len(parts) if parts else 0
    for part, pattern in enumerate(parts):
        for low in range(0, size, _BLOCK):
            high = min(low + _BLOCK, size)
            yield array[part * size + low : part * size + high], pattern.block(low, high)
