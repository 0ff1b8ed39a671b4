"""The data are exactly predictable, and the check sees what can go wrong in a collective."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpod.benchmarks.data import DTYPES, contribution, count_wrong, fill, message, reduced, spoil
from superpod.collectives.operations import OPERATIONS, operation
from superpod.interconnect.errors import InvalidValue

WORLDS = (1, 2, 3, 4, 5, 7, 8, 16, 64, 300)


def _fits(op, dtype):
    try:
        operation(op, np.dtype(dtype))
    except InvalidValue:
        return False
    return True


REDUCTIONS = [(op, dtype) for op in OPERATIONS for dtype in DTYPES if _fits(op, dtype)]


def _array(pattern, count, dtype):
    array = np.empty(count, dtype)
    fill(array, [pattern])
    return array


def _brought(n, op, dtype, count):
    return [_array(contribution(r, op=op, dtype=np.dtype(dtype), world_size=n), count, dtype) for r in range(n)]


def _combined(op, arrays):
    """The reduction in rank order, in the dtype itself; a rounding would be raised as an error."""
    ufunc = operation(op, arrays[0].dtype).ufunc
    total = arrays[0].copy()
    with np.errstate(over="raise", invalid="raise", under="raise"):
        for array in arrays[1:]:
            ufunc(total, array, out=total)
    return total / arrays[0].dtype.type(len(arrays)) if op == "avg" else total


def _wrong(op, dtype, n, array, start=0):
    return count_wrong(array, [reduced(op=op, dtype=np.dtype(dtype), world_size=n).at(start)])


@pytest.mark.parametrize(("op", "dtype"), REDUCTIONS)
def test_the_predicted_result_is_what_the_contributions_make(op, dtype):
    for n in WORLDS:
        forward = _brought(n, op, dtype, 1201)
        assert _wrong(op, dtype, n, _combined(op, forward)) == 0, n
        assert _wrong(op, dtype, n, _combined(op, forward[::-1])) == 0, n  # any order: no rounding anywhere


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "complex64"])
def test_a_missing_and_a_doubled_contribution_are_seen(dtype):
    n = 8
    arrays = _brought(n, "sum", dtype, 1000)
    for rank in range(n):
        missing = arrays[:rank] + arrays[rank + 1 :]
        assert _wrong("sum", dtype, n, _combined("sum", missing)) == 1000
        twice = [*missing, arrays[(rank + 1) % n]]
        assert _wrong("sum", dtype, n, _combined("sum", twice)) > 900


@pytest.mark.parametrize("op", ["product", "min", "max", "band", "bor", "bxor"])
def test_a_missing_contribution_is_seen_by_every_operation(op):
    arrays = _brought(4, op, "int32", 1000)
    for rank in range(4):
        assert _wrong(op, "int32", 4, _combined(op, arrays[:rank] + arrays[rank + 1 :])) > 0


@given(n=st.integers(2, 64), exponent=st.integers(0, 20), dtype=st.sampled_from(["float32", "int8", "float16"]))
def test_a_block_from_another_place_or_sender_is_seen(n, exponent, dtype):
    block, kind = 1 << exponent, np.dtype(dtype)
    size = min(block, 500) if block > 1 else 1
    here = _array(message(0, kind).at(block), size, dtype)
    if size > 8:
        assert count_wrong(here, [message(0, kind)]) > size // 2
        assert count_wrong(here, [message(n - 1, kind).at(block)]) > size // 2


def test_a_result_from_another_place_is_seen():
    moved = _array(reduced(op="sum", dtype=np.dtype("float32"), world_size=8).at(4096), 4096, "float32")
    assert _wrong("sum", "float32", 8, moved) > 4000
    assert _wrong("sum", "float32", 8, moved, start=4096) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_spoiled_arrays_are_wrong_everywhere(dtype):
    for op in OPERATIONS:
        if _fits(op, dtype):
            pattern = reduced(op=op, dtype=np.dtype(dtype), world_size=5)
            array = np.empty(70_000, dtype)
            spoil(array, [pattern])
            assert count_wrong(array, [pattern]) == 70_000


def test_parts_follow_one_another_across_blocks():
    patterns = [message(sender, np.dtype("int64")) for sender in range(3)]
    array = np.empty(3 * 70_000, np.int64)
    fill(array, patterns)
    assert count_wrong(array, patterns) == 0
    assert count_wrong(array[70_000:140_000], [patterns[1]]) == 0
    array[[5, 69_999, 140_000]] += 1
    assert count_wrong(array, patterns) == 3


def test_contributions_from_an_offset_are_the_same_numbers():
    whole = contribution(3, op="sum", dtype=np.dtype("int32"), world_size=7)
    array = _array(whole, 100_000, "int32")
    assert np.array_equal(array[66_000:], _array(whole.at(66_000), 34_000, "int32"))


def test_contributions_differ_by_rank_and_by_index():
    arrays = _brought(8, "sum", "float32", 1000)
    for rank in range(1, 8):
        assert np.count_nonzero(arrays[0] != arrays[rank]) > 900
        assert len(np.unique(arrays[rank])) > 100


def test_what_a_dtype_cannot_count_to_is_refused():
    with pytest.raises(InvalidValue, match="dtype=float16 counts exactly to 2048 only, too few for world_size=513"):
        contribution(0, op="sum", dtype=np.dtype("float16"), world_size=513)
    contribution(0, op="sum", dtype=np.dtype("float16"), world_size=512)
