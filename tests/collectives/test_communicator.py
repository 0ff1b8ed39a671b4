"""The numpy API: layouts, dtypes, operations, groups, life and end of a communicator."""

from __future__ import annotations

import functools
import gc
import os
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from collective_cases import CHECKS, brought, check, same
from communicator_cards import cards

import superpod
from superpod.collectives import algorithms
from superpod.collectives.communicator import Communicator, in_memory
from superpod.collectives.operations import OPERATIONS
from superpod.interconnect.errors import InvalidValue, LinkClosed
from superpod.launcher.testing import run_ranks


@pytest.mark.parametrize("collective", CHECKS)
def test_every_collective_with_the_algorithm_of_the_table(collective: str) -> None:
    for n in (1, 2, 3, 5, 8):
        cards(n, lambda comm: [check(comm, collective, None, count) for count in (0, 1, 1000)])


# Layouts

LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "C": lambda a: a.copy(),
    "F": lambda a: np.asfortranarray(a),
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "offset": lambda a: np.concatenate([a[:1], a])[1:],
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def matrix(rank: int, rows: int = 6) -> Any:
    return brought(rank, rows * 4).reshape(rows, 4)


@layouts
@pytest.mark.parametrize("n", [1, 2, 3])
def test_in_place_in_any_layout(layout: Callable[[Any], Any], n: int) -> None:
    def card(comm: Communicator) -> None:
        me, everything = comm.rank, [matrix(r) for r in range(n)]
        array = layout(matrix(me))
        assert comm.all_reduce(array) is array
        assert np.array_equal(array, sum(everything))
        array = layout(matrix(me))
        comm.broadcast(array, n - 1)
        assert np.array_equal(array, everything[-1])
        array = layout(matrix(me))
        comm.reduce(array, n - 1)
        assert np.array_equal(array, sum(everything) if me == n - 1 else matrix(me))
        array = layout(matrix(me))
        assert comm.all_to_all(array, array) is array
        assert np.array_equal(array, np.concatenate([np.split(one, n)[me] for one in everything]))

    cards(n, card)


@layouts
@pytest.mark.parametrize("n", [1, 2, 3])
def test_out_of_place_in_any_layout(layout: Callable[[Any], Any], n: int) -> None:
    def card(comm: Communicator) -> None:
        me, everything = comm.rank, [matrix(r) for r in range(n)]
        given = layout(matrix(me))
        given.flags.writeable = False
        whole, block = layout(np.zeros((6, 4), np.float32)), layout(np.zeros((6 // n, 4), np.float32))
        stack = layout(np.zeros((n, 6, 4), np.float32))
        assert comm.all_reduce(given, out=whole) is whole
        assert np.array_equal(whole, sum(everything))
        assert comm.all_gather(given, stack) is stack
        assert np.array_equal(stack, everything)
        assert comm.reduce_scatter(given, out=block) is block
        assert np.array_equal(block, np.split(sum(everything), n)[me])
        assert comm.all_to_all(given, whole) is whole
        assert np.array_equal(whole, np.concatenate([np.split(one, n)[me] for one in everything]))
        assert comm.scatter(given if me == 0 else None, 0, block) is block
        assert np.array_equal(block, np.split(everything[0], n)[me])
        for result in (comm.reduce(given, 0, out=whole), comm.gather(given, 0, stack)):
            assert (result is None) == (me != 0)
        if me == 0:
            assert np.array_equal(whole, sum(everything))
            assert np.array_equal(stack, everything)

    cards(n, card)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0)])
def test_numbers_without_a_shape_and_arrays_without_numbers(shape: tuple[int, ...]) -> None:
    def card(comm: Communicator) -> None:
        array = np.full(shape, comm.rank, np.float32)
        same(comm.all_reduce(array), np.full(shape, 3, np.float32))
        same(comm.all_gather(array), np.full((3, *shape), 3, np.float32))
        same(comm.broadcast(np.full(shape, comm.rank), 2), np.full(shape, 2))
        if comm.rank == 1:
            same(comm.gather(array, 1), np.full((3, *shape), 3, np.float32))
        else:
            assert comm.gather(array, 1) is None
        if shape and shape[0] % 3 == 0:
            assert comm.all_to_all(array).shape == shape
            assert comm.reduce_scatter(array).size == array.size // 3

    cards(3, card)


def test_a_block_loses_its_axis_only_if_another_is_left() -> None:
    def card(comm: Communicator) -> list[tuple[int, ...]]:
        shapes = [(2,), (4,), (2, 5), (4, 5), (2, 2, 3)]
        return [comm.reduce_scatter(np.ones(shape)).shape for shape in shapes]

    assert cards(2, card) == [[(1,), (2,), (5,), (2, 5), (2, 3)]] * 2


@pytest.mark.parametrize("algorithm", algorithms.names("reduce_scatter"))
@pytest.mark.parametrize("n", [1, 3, 4])
def test_reduce_scatter_leaves_its_array_as_it_is_unless_the_result_goes_there(algorithm: str, n: int) -> None:
    def card(comm: Communicator) -> None:
        array = brought(comm.rank, 5 * n)
        before, expected = array.copy(), sum(brought(q, 5 * n) for q in range(n))[comm.rank * 5 :][:5]
        for out in (None, np.empty(5, array.dtype), np.empty(10, array.dtype)[::2]):
            assert np.allclose(comm.reduce_scatter(array, out=out, algorithm=algorithm), expected)
            assert array.tobytes() == before.tobytes()
        comm.reduce_scatter(array, out=array[-5:], algorithm=algorithm)
        assert np.allclose(array[-5:], expected)

    cards(n, card)


# Dtypes and operations

DTYPES = [np.dtype(c) for c in "?bBhHiIlLqQefdgFDG"] + [
    np.dtype(">i4"),
    np.dtype(">f8"),
    np.dtype("V3"),
    np.dtype("U2"),
]
KINDS = {"sum": "biufc", "avg": "fc", "product": "biufc", "min": "biuf", "max": "biuf", "band": "biu"}
UFUNCS = {"sum": np.add, "avg": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum}
UFUNCS |= {"band": np.bitwise_and, "bor": np.bitwise_or, "bxor": np.bitwise_xor}


def equal(result: Any, expected: Any) -> None:
    """As numbers: of a long double's sixteen bytes, six mean nothing."""
    assert result.dtype == expected.dtype
    assert np.array_equal(result, expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_with_every_operation(dtype: np.dtype[Any]) -> None:
    def card(comm: Communicator) -> None:
        for op in OPERATIONS:
            if dtype.kind not in KINDS.get(op, "biu"):
                with pytest.raises(InvalidValue, match=f"op='{op}' makes no sense for .*{re.escape(str(dtype))}"):
                    comm.all_reduce(np.zeros(1, dtype), op)
                continue
            given = [((np.arange(40) + 3 * r) % 5 % 3 + 1).astype(dtype) for r in range(4)]
            expected = functools.reduce(UFUNCS[op], given)
            expected = (expected / np.array(4, dtype) if op == "avg" else expected).astype(dtype)
            equal(comm.all_reduce(given[comm.rank].copy(), op), expected)
            equal(comm.reduce_scatter(given[comm.rank], op), np.split(expected, 4)[comm.rank])
            if (result := comm.reduce(given[comm.rank].copy(), 2, op)) is not None:
                equal(result, expected)

    cards(4, card)


@pytest.mark.parametrize("dtype", [*DTYPES, np.dtype([("a", "i1"), ("b", "f4")]), np.dtype("M8[s]")], ids=str)
def test_every_dtype_can_be_moved(dtype: np.dtype[Any]) -> None:
    def card(comm: Communicator) -> None:
        given = [np.frombuffer(bytes((7 * r + i) % 2 for i in range(6 * dtype.itemsize)), dtype) for r in range(3)]
        own = given[comm.rank].copy()
        same(comm.all_gather(own), np.stack(given).astype(dtype))
        same(comm.all_to_all(own), np.concatenate([np.split(one, 3)[comm.rank] for one in given]).astype(dtype))
        same(comm.broadcast(own.copy(), 1), given[1])

    cards(3, card)


def test_an_unknown_operation_lists_the_known_ones() -> None:
    with (
        in_memory(1)[0] as comm,
        pytest.raises(InvalidValue, match="op='mean' is unknown; the operations are sum, avg"),
    ):
        comm.all_reduce(np.ones(3), "mean")


@pytest.mark.parametrize("algorithm", ["ring", "tree", "recursive_doubling", "one_shot"])
def test_half_precision_is_added_up_in_single(algorithm: str) -> None:
    """In half, 2048 + 1 is 2048."""

    def card(comm: Communicator) -> Any:
        return comm.all_reduce(np.array([2048 if comm.rank == 0 else 1] * 4, np.float16), algorithm=algorithm)

    for result in cards(5, card):
        same(result, np.full(4, 2052, np.float16))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
def test_an_overflow_is_a_result_and_no_warning(link: str) -> None:
    def card(comm: Communicator) -> list[Any]:
        values = [np.full(9, 60_000, np.float16), np.full(9, 3e38, np.float32), np.full(9, 2**31 - 1, np.int32)]
        works = [comm.all_reduce(value.copy(), async_op=True) for value in values]
        return [comm.all_reduce(value)[0] for value in values] + [work.wait()[0] for work in works]

    for result in run_ranks(3, card, link=link):
        assert result == [np.inf, np.inf, 2**31 - 3] * 2


# Life and end


def test_the_world_of_one() -> None:
    with superpod.init() as comm:
        for collective in CHECKS:
            check(comm, collective, None, 5)
        assert repr(comm) == f"<Communicator world: rank 0 of 1, link {comm.link}>"
        assert comm.all_reduce(np.ones(2), async_op=True).wait(5).tolist() == [1, 1]
    with pytest.raises(LinkClosed, match="rank 0 has closed group world; make a new communicator"):
        comm.all_reduce(np.ones(2))
    comm.close()


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
def test_nothing_works_after_close(link: str) -> None:
    def card(comm: Communicator) -> None:
        assert comm.all_reduce(np.array(1)) == 2
        group = comm.group([0, 1])
        comm.close()
        comm.close()
        other = 1 - comm.rank
        for broken in (comm, group):
            for call in (
                lambda c: c.barrier(),
                lambda c: c.send(np.ones(3), other),
                lambda c: c.recv(np.ones(3), other),
            ):
                with pytest.raises(LinkClosed, match=r"has closed (its mesh|group world)"):
                    call(broken)
            with pytest.raises(LinkClosed):
                broken.barrier(async_op=True).wait(5)

    run_ranks(2, card, link=link)


def test_one_communicator_after_the_other_in_one_process() -> None:
    def card(comm: Communicator) -> list[int]:
        results = [int(comm.all_reduce(np.array(1)))]
        comm.close()
        for _ in range(3):
            with superpod.init() as following:
                results.append(int(following.all_reduce(np.array(1))))
        return results

    assert run_ranks(3, card) == [[3] * 4] * 3


def test_a_forked_child_cannot_use_its_parents_communicator_and_ends_well() -> None:
    def card(comm: Communicator) -> int:
        comm.all_reduce(np.ones(3))
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                comm.all_reduce(np.ones(3))
            except LinkClosed as error:
                os.write(writer, str(error).encode())
            comm.close()
            os._exit(7)
        assert re.match(rb"this process was forked from rank \d, whose connections", os.read(reader, 999))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        return int(comm.all_reduce(np.array(1)))

    assert run_ranks(2, card) == [2, 2]


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
def test_no_array_is_kept_after_the_call(link: str) -> None:
    def card(comm: Communicator) -> list[bool]:
        def watched() -> tuple[Any, weakref.ref[Any]]:
            array = np.ones(5000)
            return array, weakref.ref(array)

        seen, other = [], 1 - comm.rank
        for call in (
            lambda a: comm.all_reduce(a),
            lambda a: comm.all_reduce(a, async_op=True).wait(),
            lambda a: comm.all_gather(a),
            lambda a: comm.send(a, other) if comm.rank else comm.recv(a, other),
            lambda a: (
                comm.recv(a, other, async_op=True).wait() if comm.rank else comm.send(a, other, async_op=True).wait()
            ),
        ):
            array, seen_array = watched()
            call(array)
            del array
            comm.barrier(async_op=True).wait()  # the worker has let go of what it did before
            gc.collect()
            seen.append(seen_array() is None)
        return seen

    assert run_ranks(2, card, link=link) == [[True] * 5] * 2
