"""What a reduction does, for which dtypes, and in which precision it adds up.

float16 is added up in float32, from the first operand to the last, and rounded once at the end; so are bfloat16 and the
float8 kinds, which only torch knows. A combination that makes no sense (the minimum of complex numbers, bits of
floats, the average of integers) is refused by name. MIN and MAX of floats give 0 for -0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from superpod.interconnect.errors import InvalidValue

Array = npt.NDArray[Any]


class _ComplexProduct:
    """np.multiply for complex numbers, used as it is, with the same bits for one element as for several.

    A single element that is multiplied in place goes through code of its own in numpy, which rounds once more (2.4).
    """

    reduce = staticmethod(np.multiply.reduce)

    def __call__(self, one: Any, other: Any, out: Array) -> Array:
        if out.size == 1:
            out[...] = np.multiply(one, other)
        else:
            np.multiply(one, other, out=out)
        return out


_COMPLEX_PRODUCT = cast(np.ufunc, _ComplexProduct())
_UFUNCS: dict[str, np.ufunc] = {
    "sum": np.add,
    "avg": np.add,
    "product": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}
OPERATIONS = tuple(_UFUNCS)
_KINDS = {  # numpy's kinds: b bool, i and u integers, f floats, c complex
    "sum": "biufc",
    "avg": "fc",
    "product": "biufc",
    "min": "biuf",
    "max": "biuf",
    "band": "biu",
    "bor": "biu",
    "bxor": "biu",
}
_KIND_NAMES = {"b": "bool", "i": "integers", "u": "unsigned integers", "f": "floating point", "c": "complex"}


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A reduction on one dtype: `ufunc` combines arrays of dtype `wide`; before that, each rank's is times `factor`."""

    name: str
    ufunc: np.ufunc
    wide: np.dtype[Any]
    factor: complex | None = None

    def begin(self, array: Array) -> None:
        """What this rank does to its own operand before it is combined with others, in place."""
        if self.factor is not None:
            numbers = array if isinstance(self.factor, complex) else _real(array)
            multiply = _COMPLEX_PRODUCT if numbers.dtype.kind == "c" else np.multiply
            with np.errstate(all="ignore"):
                multiply(numbers, self.factor, out=numbers)

    def finish(self, array: Array, world_size: int) -> None:
        """What remains to be done once all operands are in, in place."""
        if self.name == "avg":
            numbers = _real(array)
            np.divide(numbers, world_size, out=numbers)
        elif self.name in ("min", "max") and self.wide.kind == "f":
            np.add(array, 0, out=array)  # of -0 and 0 numpy takes either, by their order, which differs between ranks


def _real(array: Array) -> Array:
    """Complex numbers as pairs of real ones: exact where numpy's complex arithmetic rounds more often than once."""
    return array.view(array.real.dtype) if array.dtype.kind == "c" else array


def operation(name: str, dtype: np.dtype[Any]) -> Operation:
    """Raises InvalidValue for an unknown name, or one that makes no sense for `dtype`."""
    if type(name) is not str or name not in _UFUNCS:
        raise InvalidValue(f"op={name!r} is unknown; the operations are {', '.join(OPERATIONS)}")
    return _operation(name, dtype)


@cache
def _operation(name: str, dtype: np.dtype[Any]) -> Operation:
    ufunc = _UFUNCS[name]
    if dtype.kind not in _KINDS[name]:
        able = [n for n, kinds in _KINDS.items() if dtype.kind in kinds]
        means = f"it works for {', '.join(able)}" if able else "only numbers and bool can be reduced"
        raise InvalidValue(f"op={name!r} makes no sense for {_KIND_NAMES.get(dtype.kind, 'such')} {dtype}; {means}")
    if name == "product" and dtype.kind == "c":
        ufunc = _COMPLEX_PRODUCT
    return Operation(name, ufunc, np.dtype(np.float32) if dtype == np.float16 else dtype)


def premul_sum(factor: complex, dtype: np.dtype[Any]) -> Operation:
    """The sum of all ranks' operands, each times its own rank's `factor`. Raises InvalidValue.

    The product is made in the dtype that is added up in. torch only: no other interface can pass a factor.
    """
    able = "fc" if not isinstance(factor, complex) else "c"
    if dtype.kind not in able:
        raise InvalidValue(
            f"op='premul_sum' with factor={factor!r} makes no sense for {_KIND_NAMES.get(dtype.kind, 'such')} {dtype}; "
            f"it works for {' and '.join(_KIND_NAMES[kind] for kind in able)}"
        )
    return Operation("premul_sum", np.add, operation("sum", dtype).wide, factor)
