"""A user's numpy arrays as the collectives want them: checked, named in words, flat."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from superpod.collectives.operations import Operation
from superpod.interconnect.errors import InvalidValue

Array = npt.NDArray[Any]


class Flat:
    """A 1-D contiguous view of an array; or, if there is none or a wider dtype is needed, a copy, written back."""

    def __init__(self, array: Array, op: Operation | None = None, *, write_back: bool = True) -> None:
        self._array = array
        wide = array.dtype if op is None else op.wide
        copied = not array.flags.c_contiguous or wide != array.dtype
        self._write_back = copied and write_back
        self.data: Array = copy_flat(array, wide) if copied else np.asarray(array).reshape(-1)  # a matrix stays 2-D

    def __enter__(self) -> Array:
        return self.data

    def __exit__(self, kind: object, *_: object) -> None:
        if self._write_back and kind is None:
            store(self._array, self.data)


def store(array: Array, data: Array) -> None:
    """Put flat numbers into an array of any dtype and shape, rounding once; what it cannot hold is a result, too."""
    with np.errstate(all="ignore"):
        array[...] = data.reshape(array.shape)


def copy_flat(array: Array, dtype: np.dtype[Any]) -> Array:
    """The array's elements in C order and in `dtype`, 1-D, in memory of their own."""
    return np.array(array, dtype, order="C", copy=True).reshape(-1)


def flat_view(array: Array) -> Array:
    """The array's elements in C order, 1-D and contiguous, copied only if they must be."""
    return np.ascontiguousarray(array).reshape(-1)


def lies_apart(target: Array, array: Array) -> bool:
    """Whether what is made of `array` can be put into `target` at once, while `array` is still read."""
    return target.flags.c_contiguous and not np.may_share_memory(target, array)


def label(array: Array) -> str:
    """Length and dtype in words: "12 × float32"."""
    return f"{array.size} × {dtype_name(array.dtype)}"


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """A dtype in a word: "float32". numpy takes longer over it than a small message takes."""
    return str(dtype)


def checked(array: Any) -> Array:
    """`array`, if it is one whose bytes can travel. Raises InvalidValue."""
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        kind = f"{array.dtype} array" if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidValue(f"array is a {kind}, must be a numpy array of numbers or bool; use numpy.asarray")
    return array


def lies_flat(array: Any) -> bool:
    """Whether it is an array whose elements lie in memory one after the other, aligned, and may be written."""
    return type(array) is np.ndarray and array.flags.carray


def writable(array: Any) -> Array:
    """`array`, if it can take a result. Raises InvalidValue."""
    result = checked(array)
    if not result.flags.writeable:
        raise InvalidValue("the array for the result is read-only; pass a copy of it")
    return result


def block_shape(array: Array, n: int) -> tuple[int, ...]:
    """The shape of one of n blocks along the first axis. Raises InvalidValue when it cannot be cut so."""
    if array.ndim == 0 or array.shape[0] % n:
        raise InvalidValue(f"array of shape {array.shape} cannot be cut into {n} blocks along its first axis; pad it")
    return array.shape[1:] if array.shape[0] == n and array.ndim > 1 else (array.shape[0] // n, *array.shape[1:])


def is_rank(value: Any, world_size: int) -> bool:
    """Whether `value` is a rank of a group of that size."""
    return isinstance(value, int | np.integer) and 0 <= int(value) < world_size


def shaped(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """`out`, if it can take a result of that shape and dtype. Raises InvalidValue."""
    result = writable(out)
    if result.shape != shape or result.dtype != dtype:
        raise InvalidValue(f"out is {result.dtype} of shape {result.shape}, must be {dtype} of shape {shape}")
    return result


def blocks_like(array: Array, n: int, out: Any) -> Array:
    """Room for n blocks like `array`: `out`, if it is given. Raises InvalidValue."""
    shape = (n, *array.shape)
    return np.empty(shape, array.dtype) if out is None else shaped(out, shape, array.dtype)


def block_of(array: Array, n: int, out: Any) -> Array:
    """Room for one of the n blocks of `array`: `out`, if it is given. Raises InvalidValue."""
    shape = block_shape(array, n)
    return np.empty(shape, array.dtype) if out is None else shaped(out, shape, array.dtype)
