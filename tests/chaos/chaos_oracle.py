"""What each rank brings to a call of a program and what it must hold afterwards, in numpy; small whole numbers.

Sums and products of these are exact in the dtypes that are added up in, whatever the order; an average is rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from chaos_programs import Call

Array = npt.NDArray[Any]
UFUNCS: dict[str, np.ufunc] = {  # said again here: an oracle must not share the mistakes of what it checks
    "sum": np.add,
    "avg": np.add,
    "product": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


def wide(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that numbers of `dtype` are brought and added up in; those that numpy does not know, too."""
    return np.dtype(np.float32 if dtype in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2") else dtype)


def brought(call: Call, rank: int, count: int, part: int = 0) -> Array:
    """What group rank `rank` brings, flat, in the wide dtype: every value can be held by `call.dtype`."""
    index = np.arange(count, dtype=np.int64) * 31 + rank * 101 + call.number * 7 + part * 13
    dtype = wide(call.dtype)
    if call.op == "product":
        numbers = np.array([1, 2, 1, 3, 1])[index % 5] if dtype.kind in "iu" else np.array([1, 2, 1, -1, 1])[index % 5]
    else:
        numbers = index % (15 if call.dtype.startswith("float8") else 100)
        if dtype.kind in "ifc":
            numbers = numbers - (7 if call.dtype.startswith("float8") else 50)
    if dtype.kind == "c":
        return (numbers + 1j * (numbers[::-1] % 9)).astype(dtype)
    return (index % 3 == 0) if dtype.kind == "b" else numbers.astype(dtype)


def reduced(call: Call, n: int, count: int, part: int = 0) -> Array:
    """All ranks' numbers together, in the wide dtype."""
    total = brought(call, 0, count, part)
    for rank in range(1, n):
        total = UFUNCS[call.op](total, brought(call, rank, count, part))
    if call.op != "avg":
        return total
    real = total.real.dtype.type  # complex numbers are divided as pairs of real ones
    return (total.view(real) / real(n)).view(total.dtype)


def uneven(call: Call, source: int, target: int) -> int:
    """How much `source` sends to `target` in an all_to_all."""
    return (call.count + 3 * source + 5 * target) % 11 * 3 if call.uneven else call.count


def expected(call: Call, rank: int, n: int) -> Array | None:
    """What group rank `rank` must hold afterwards, flat, in the wide dtype; None where it gets nothing."""
    make = _EXPECTED[call.kind]
    return None if call.kind in _AT_ROOT and rank != call.root else np.asarray(make(call, rank, n))


def _reduce_scatter(call: Call, rank: int, n: int) -> Array:
    blocks = call.blocks(n)
    start = sum(blocks[:rank])
    return reduced(call, n, sum(blocks))[start : start + blocks[rank]]


def _scatter(call: Call, rank: int, n: int) -> Array:
    return brought(call, call.root, n * call.count)[rank * call.count : (rank + 1) * call.count]


def _all_to_all(call: Call, rank: int, n: int) -> Array:
    blocks = []
    for source in range(n):
        lengths = [uneven(call, source, target) for target in range(n)]
        start = sum(lengths[:rank])
        blocks.append(brought(call, source, sum(lengths))[start : start + lengths[rank]])
    return np.concatenate(blocks)


def _gathered(call: Call, rank: int, n: int) -> Array:
    return np.concatenate([brought(call, r, count) for r, count in enumerate(call.blocks(n))])


def _coalesced(call: Call, rank: int, n: int) -> Array:
    return np.concatenate([reduced(call, n, count, part) for part, count in enumerate(parts(call))])


def parts(call: Call) -> list[int]:
    """The lengths of the tensors of a coalesced call."""
    return [call.count, 1, call.count // 3, 40]


_AT_ROOT = ("reduce", "gather", "message", "anyone")
_EXPECTED: dict[str, Any] = {
    "all_reduce": lambda call, rank, n: reduced(call, n, call.count),
    "reduce": lambda call, rank, n: reduced(call, n, call.count),
    "broadcast": lambda call, rank, n: brought(call, call.root, call.count),
    "all_gather": _gathered,
    "gather": _gathered,
    "reduce_scatter": _reduce_scatter,
    "scatter": _scatter,
    "all_to_all": _all_to_all,
    "barrier": lambda call, rank, n: np.zeros(0),
    "coalesced": _coalesced,
    "message": lambda call, rank, n: brought(call, call.sender, call.count),
    "anyone": lambda call, rank, n: np.concatenate([brought(call, r, call.count) for r in range(n) if r != call.root]),
    "batch": lambda call, rank, n: brought(call, (rank - 1) % n, call.count),
}
