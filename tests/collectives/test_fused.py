"""The reader on a board does what `execute` does, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NoReturn
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpod.collectives import algorithms
from superpod.collectives.communicator import Communicator, in_memory
from superpod.collectives.execute import block_bounds, even_bounds
from superpod.collectives.fused import FUSED, Task
from superpod.collectives.schedule import ROOTED
from superpod.collectives.window import Window, share

WORLDS = (1, 2, 3, 5, 8, 13)
DTYPES = (np.float32, np.float64, np.complex64, np.int16, np.bool_)
RELAYED = [("all_reduce", "two_shot_ordered"), ("reduce", "star"), ("reduce_scatter", "direct_ordered")]
SUM = {"all_reduce": np.add, "reduce": np.add, "reduce_scatter": np.add}


class Round:
    """The slots of n threads, and where they meet. Then the other set is overwritten, so that late readers show."""

    def __init__(self, n: int, slot: int) -> None:
        self.slots = [np.full((n, slot), 0xA5, np.uint8) for _ in range(2)]
        self.barrier = threading.Barrier(n, self._met, timeout=60)
        self.meetings = self.current = 0
        self.told = [0] * n
        self.news = threading.Condition()

    def _met(self) -> None:
        self.meetings += 1
        self.slots[self.current ^ 1][:] = 0x5A


class Seat:
    windows = False

    def __init__(self, table: Round, rank: int) -> None:
        self._table, self.rank = table, rank
        self.world_size, self.slot = table.slots[0].shape
        self._set = self._past = self._all = 0

    def begin(self) -> Any:
        self._set ^= 1
        return self._table.slots[self._set]

    def meet(self) -> None:
        self._table.current = self._set
        self._table.barrier.wait()

    def window(self, array: Any, starts: Any) -> Window | None:
        return share(self, array, starts, missed) if self.windows else None

    def carry(self, *_: Any) -> bool:
        return False

    def relay(self, pieces: int) -> Any:
        self._set ^= 1
        self._past, self._all = self._all, self._all + pieces
        room = self._table.slots[self._set].reshape(-1)
        if self.rank == 0:
            room[:] = 0x5A
        return room

    def tell(self, count: int) -> None:
        with self._table.news:
            self._table.told[self.rank] = self._past + count
            self._table.news.notify_all()

    def wait_for(self, rank: int, count: int) -> None:
        assert rank in (self.rank - 1, self.world_size - 1), "whom a board wakes"
        with self._table.news:
            assert self._table.news.wait_for(lambda: self._table.told[rank] >= self._past + count, 60)


def missed(rank: int, error: OSError) -> NoReturn:
    raise AssertionError(f"rank {rank} could not be read") from error


def brought(rank: int, count: int, dtype: Any) -> Any:
    """Numbers of very different sizes: another order of addition shows in the bits."""
    rng = np.random.default_rng(1000 + rank)
    values = rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count)
    return (values > 0) if dtype is np.bool_ else values.astype(dtype)


def threads(n: int, body: Callable[[int], Any]) -> list[Any]:
    results: list[Any] = [None] * n
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = body(rank)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def fused(collective: str, name: str, n: int, slot: int, count: int, dtype: Any, root: int) -> tuple[list[Any], int]:
    """What every rank holds afterwards, and how many meetings it took."""
    table = Round(n, slot)

    def body(rank: int) -> Any:
        seat = Seat(table, rank)
        array = brought(rank, count, dtype)
        rooted = collective in ROOTED
        chunks = algorithms.build(collective, name, n, root if rooted else 0).nchunks
        if collective in ("all_reduce", "reduce", "broadcast"):
            task = Task((array,), (even_bounds(count, chunks),), SUM.get(collective), root)
        elif collective == "reduce_scatter":
            bounds, into = block_bounds([count // n] * n, chunks), np.empty(count // n, dtype)
            before = array.tobytes()
            FUSED[collective, name](seat, Task((array,), (bounds,), np.add, root, into=into))
            assert array.tobytes() == before
            seat.meet()
            task = Task((array,), (bounds,), np.add, root)
            FUSED[collective, name](seat, task)
            block = array[rank * (count // n) :][: count // n]
            assert block.tobytes() == into.tobytes()
            return array
        elif collective in ("gather", "scatter"):
            return rooted_blocks(collective, name, seat, array[: count // n * n], root)
        elif collective == "all_gather":
            block = count // n
            whole = np.zeros(block * n, dtype).view(np.uint8)
            width = whole.size // n
            whole[rank * width : (rank + 1) * width] = array[:block].view(np.uint8)
            task = Task((whole,), (block_bounds([width] * n, chunks),), None, root)
            FUSED[collective, name](seat, task)
            return whole.view(dtype)
        else:
            data = array[: count // n * n].view(np.uint8)
            out = np.zeros_like(data)
            bounds = block_bounds([data.size // n] * n, n)
            FUSED[collective, name](seat, Task((data, out), (bounds, bounds), None, root))
            return out.view(dtype)
        with np.errstate(all="ignore"):
            FUSED[collective, name](seat, task)
        return array

    return threads(n, body), table.meetings


def rooted_blocks(collective: str, name: str, seat: Seat, array: Any, root: int) -> Any:
    """What a gather leaves at the root, and a scatter everywhere; blocks lie one after the other."""
    n, rank, is_root = seat.world_size, seat.rank, seat.rank == root
    width = array.nbytes // n
    whole, own = array.copy().view(np.uint8), array.copy().view(np.uint8)[:width]
    if collective == "gather" and is_root:
        whole[root * width : (root + 1) * width] = own
    bounds = block_bounds([width] * n, n)
    task = Task((whole,) if is_root else (), (bounds,), None, root, own=None if is_root else own)
    FUSED[collective, name](seat, task)
    if collective == "gather":
        return whole.view(array.dtype) if is_root else None
    return (whole[rank * width : (rank + 1) * width] if is_root else own).view(array.dtype)


def executed(collective: str, name: str, n: int, count: int, dtype: Any, root: int) -> list[Any]:
    """The same through messages."""

    def card(comm: Communicator) -> Any:
        array = brought(comm.rank, count, dtype)
        if collective == "all_reduce":
            return comm.all_reduce(array, algorithm=name)
        if collective == "reduce":
            return comm.reduce(array, root, algorithm=name)
        if collective == "broadcast":
            return comm.broadcast(array, root, algorithm=name)
        blocks = array[: count // n * n]
        if collective == "gather":
            whole = comm.gather(blocks[: count // n], root, algorithm=name)
            return None if whole is None else whole.reshape(-1)
        if collective == "scatter":
            return comm.scatter(blocks, root, np.empty(count // n, dtype), algorithm=name).reshape(-1)
        if collective == "reduce_scatter":
            return comm.reduce_scatter(array, algorithm=name)
        if collective == "all_gather":
            return comm.all_gather(array[: count // n], algorithm=name).reshape(-1)
        return comm.all_to_all(array[: count // n * n], algorithm=name).reshape(-1)

    comms = in_memory(n)
    try:
        return threads(n, lambda rank: card(comms[rank]))
    finally:
        for comm in comms:
            comm.close()


def same(collective: str, n: int, rank: int, count: int, result: Any, expected: Any) -> None:
    if expected is None:  # only the root of a reduce has something
        return
    if collective == "reduce_scatter":
        result = result[rank * (count // n) : (rank + 1) * (count // n)]
    assert result.tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("collective", "name"), [key for key in FUSED if key[0] != "barrier"])
def test_the_same_bits_as_through_messages(collective: str, name: str, dtype: Any) -> None:
    compare(collective, name, dtype)


def always_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superpod.collectives.relay._LEAST", ((1000, 0),))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("collective", "name"), RELAYED)
def test_the_same_bits_in_a_relay(collective: str, name: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    always_relay(monkeypatch)
    compare(collective, name, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("collective", ["all_gather", "all_to_all", "scatter"])
def test_the_same_bits_through_windows(collective: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("superpod.collectives.fused._READ", {collective: (1, 13)})
    monkeypatch.setattr(Seat, "windows", True)
    compare(collective, "direct", dtype)
    count = fused(collective, "direct", 4, 4096, 4096, np.float32, 0)[1]
    assert count == 2, "one to tell where the arrays lie, one when all have read; else a piece would need one each"


def compare(collective: str, name: str, dtype: Any) -> None:
    for n in WORLDS:
        count, root = 37 * n, n // 2
        slot = 64 * n
        results, _ = fused(collective, name, n, slot, count, dtype, root)
        expected = executed(collective, name, n, count, dtype, root)
        for rank in range(n):
            same(collective, n, rank, count, results[rank], expected[rank])


@pytest.mark.parametrize("op", [np.add, np.multiply])
@pytest.mark.parametrize(("collective", "name"), [key for key in FUSED if key[0] in SUM])
def test_zeros_keep_their_sign_and_infinities_are_numbers(collective: str, name: str, op: np.ufunc) -> None:
    """What is not so when numpy begins with 0, or with 1."""
    n, table, wanted = 3, Round(3, 1024), np.full(9, complex(-0.0, -0.0), np.complex64)
    wanted[::2] = complex(np.inf, 1)

    def body(rank: int) -> Any:
        array = wanted.copy()
        with np.errstate(all="ignore"):
            FUSED[collective, name](Seat(table, rank), Task((array,), (even_bounds(9, n),), op, rank))
        return array

    rank, array = next(enumerate(threads(n, body)))
    with np.errstate(all="ignore"):
        expected = op(op(wanted, wanted), wanted)
    rows = slice(3 * rank, 3 * rank + 3) if collective == "reduce_scatter" else slice(None)
    assert array[rows].tobytes() == expected[rows].tobytes()


@settings(max_examples=40, deadline=None)
@given(
    which=st.sampled_from([key for key in FUSED if key[0] in ("all_reduce", "reduce", "broadcast")]),
    n=st.integers(1, 6),
    count=st.integers(0, 300),
    slot=st.integers(1, 5).map(lambda k: 64 * k),
    meeting=st.sampled_from([0, 32 << 10]),
)
def test_any_length_in_any_slot(which: tuple[str, str], n: int, count: int, slot: int, meeting: int) -> None:
    with mock.patch("superpod.collectives.relay._LEAST", ((1000, meeting),)):
        results, _ = fused(*which, n, slot, count, np.float32, n - 1)
    expected = executed(*which, n, count, np.float32, n - 1)
    for rank in range(n):
        same(which[0], n, rank, count, results[rank], expected[rank])


def test_a_barrier_is_a_meeting() -> None:
    table = Round(3, 64)
    threads(3, lambda rank: FUSED["barrier", "dissemination"](Seat(table, rank), Task((), (), None, 0)))
    assert table.meetings == 1


def test_a_relay_needs_no_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    always_relay(monkeypatch)
    assert fused("all_reduce", "two_shot_ordered", 4, 256, 256, np.float32, 0)[1] == 0
    assert fused("all_reduce", "two_shot_ordered", 2, 4096, 256, np.float32, 0)[1] == 2


def test_how_often_they_meet() -> None:
    """Once in one shot, twice in two, for each slot full."""
    assert [fused("all_reduce", name, 4, 4096, 256, np.float32, 0)[1] for name in ("one_shot", "two_shot")] == [1, 2]
    assert fused("all_reduce", "one_shot", 4, 256, 256, np.float32, 0)[1] == 4
    assert fused("all_reduce", "two_shot", 4, 256, 256, np.float32, 0)[1] == 8


@pytest.mark.parametrize(("collective", "name"), FUSED)
def test_every_fused_algorithm_is_a_registered_one(collective: str, name: str) -> None:
    assert name in algorithms.names(collective)
