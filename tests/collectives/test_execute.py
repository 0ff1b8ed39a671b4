"""The executor on cards that are threads: every algorithm to the bit, and every hazard that it must handle."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from collective_cases import EVERY, WORLDS, brought, check, rooted, same, sizes
from hypothesis import given
from hypothesis import strategies as st

from superpod.collectives import algorithms, flat
from superpod.collectives.communicator import Communicator
from superpod.collectives.engine import Engine
from superpod.collectives.execute import Circumstances, bind, block_bounds, even_bounds, run
from superpod.collectives.operations import operation
from superpod.collectives.schedule import Schedule, Step
from superpod.collectives.verify import verify
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.testing import run_ranks

ALL_REDUCE = algorithms.names("all_reduce")
SUM = operation("sum", np.dtype(np.float32))
NO_LIMITS = flat.Options(timeout=60)
TIGHT = {"SUPERPOD_SEGMENT": "1024", "SUPERPOD_WINDOW": "2048"}  # 10,001 floats are 40 segments, two under way at most

every_algorithm = pytest.mark.parametrize(("collective", "name"), EVERY, ids=lambda part: part)


def in_memory(n: int, fn: Callable[..., Any], *args: Any, env: dict[str, str] | None = None) -> list[Any]:
    return run_ranks(n, fn, *args, link="memory", env=env)


@every_algorithm
def test_every_algorithm_gives_numpys_bits(collective: str, name: str) -> None:
    def card(comm: Communicator) -> None:
        for root in rooted(collective, comm.world_size):
            for count in sizes(comm.world_size) if collective != "barrier" else [1]:
                check(comm, collective, name, count, root)
        assert comm.last is not None
        assert comm.last.algorithm == name

    for n in WORLDS:
        in_memory(n, card)


@every_algorithm
@pytest.mark.parametrize("n", [2, 5, 8])
def test_small_windows_change_nothing(collective: str, name: str, n: int) -> None:
    """Sends are still under way when what they send from is overwritten."""
    in_memory(n, lambda comm: check(comm, collective, name, 10_001, rooted(collective, n)[-1]), env=TIGHT)


# Uneven blocks

UNEVEN = {
    "one": lambda n: [int(r == n // 2) * 5 for r in range(n)],
    "none": lambda n: [0] * n,
    "ramp": lambda n: [37 * r for r in range(n)],
    "steep": lambda n: [(r * 2_654_435_761) % 1013 for r in range(n)],
}
uneven = pytest.mark.parametrize("blocks", UNEVEN.values(), ids=UNEVEN)


def named(collective: str, *, equal_blocks: bool) -> list[str]:
    return [a for a in algorithms.names(collective) if algorithms.get(collective, a).equal_blocks is equal_blocks]


@uneven
@pytest.mark.parametrize("name", named("all_gather", equal_blocks=False))
def test_all_gather_of_uneven_blocks(name: str, blocks: Callable[[int], list[int]]) -> None:
    def card(comm: Communicator) -> None:
        counts = blocks(comm.world_size)
        expected = np.concatenate([brought(r, c, np.uint8) for r, c in enumerate(counts)])
        out = np.full(sum(counts), 255, np.uint8)
        start = sum(counts[: comm.rank])
        out[start : start + counts[comm.rank]] = brought(comm.rank, counts[comm.rank], np.uint8)
        options = flat.Options(name, 60)
        comm._engine.issue("", lambda: flat.all_gather(comm._engine, out, counts, "x", options), async_op=False)
        same(out, expected)

    for n in (1, 2, 3, 5, 8):
        in_memory(n, card)


@uneven
@pytest.mark.parametrize("name", named("reduce_scatter", equal_blocks=False))
def test_reduce_scatter_of_uneven_blocks(name: str, blocks: Callable[[int], list[int]]) -> None:
    def card(comm: Communicator) -> None:
        counts = blocks(comm.world_size)
        array = brought(comm.rank, sum(counts))
        own = flat.reduce_scatter(comm._engine, array, counts, SUM, "x", flat.Options(name, 60))
        start = sum(counts[: comm.rank])
        everything = np.sum([brought(r, sum(counts)) for r in range(comm.world_size)], axis=0, dtype=np.float32)
        same(own, everything[start : start + counts[comm.rank]])

    for n in (1, 2, 3, 5, 8):
        in_memory(n, card)


@pytest.mark.parametrize("name", named("all_to_all", equal_blocks=False))
@pytest.mark.parametrize("some", [0, 1], ids=["nobody sends", "uneven"])
def test_all_to_all_of_uneven_blocks(name: str, some: int) -> None:
    def count(source: int, target: int) -> int:
        return (source * 5 + target * 3) % 7 * 11 * some

    def card(comm: Communicator) -> None:
        n, me = comm.world_size, comm.rank
        blocks, out_blocks = [count(me, q) for q in range(n)], [count(q, me) for q in range(n)]
        pieces = [brought(me * n + q, count(me, q), np.uint8) for q in range(n)]
        out = np.zeros(sum(out_blocks), np.uint8)
        array, options = np.concatenate(pieces), flat.Options(name, 60)
        flat.all_to_all(comm._engine, array, out, blocks, out_blocks, "x", options, equal=False)
        same(out, np.concatenate([brought(q * n + me, count(q, me), np.uint8) for q in range(n)]))

    for n in (1, 2, 3, 5, 8):
        in_memory(n, card)


@pytest.mark.parametrize("name", named("all_to_all", equal_blocks=True) or ["bruck"])
def test_uneven_blocks_are_refused_where_they_must_be_equal(name: str) -> None:
    def card(comm: Communicator) -> None:
        data, blocks, engine = np.zeros(3, np.uint8), [1, 2], comm._engine

        def call() -> None:
            flat.all_to_all(engine, data, data, blocks, blocks, "x", flat.Options(name), equal=False)

        with pytest.raises(InvalidValue, match=f"algorithm='{name}' needs blocks of one length; all_to_all"):
            engine.issue("all_to_all", call, async_op=False)
        assert comm.all_reduce(np.array(1)) == 2  # nothing was sent, so the group goes on

    in_memory(2, card)


# The order of a reduction


def replayed(schedule: Schedule, arrays: list[Any]) -> list[Any]:
    """What bank 0 of every rank holds after the schedule: all moves of a step read the state before it, and those
    that reduce are applied in the order in which they are listed.
    """
    k = schedule.nchunks
    state = [[np.array_split(a, k)[s % k].copy() for s in range(schedule.nslots)] for a in arrays]
    for step in schedule.steps():
        before = [[chunk.copy() for chunk in slots] for slots in state]
        columns = (getattr(step, name).tolist() for name in Step.__slots__)
        for src, dst, first, count, to, reducing in zip(*columns, strict=True):
            for i in range(count):
                sent = before[src][first + i]
                state[dst][to + i] = state[dst][to + i] + sent if reducing else sent
    return [np.concatenate(slots[:k]) for slots in state]


def random_floats(rank: int, count: int) -> Any:
    """Of many magnitudes, so that every other order of additions shows."""
    rng = np.random.default_rng(1000 + rank)
    return (rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count)).astype(np.float32)


@pytest.mark.parametrize("name", ALL_REDUCE)
def test_all_reduce_adds_in_the_schedules_order(name: str) -> None:
    def card(comm: Communicator, count: int) -> list[Any]:
        return [comm.all_reduce(random_floats(comm.rank, count), algorithm=name) for _ in range(3)]

    for n in WORLDS:
        for count in (n, 1009):
            expected = replayed(algorithms.build("all_reduce", name, n), [random_floats(r, count) for r in range(n)])
            for results in in_memory(n, card, count):
                for result in results:
                    same(result, expected[0])


@pytest.mark.parametrize("name", algorithms.names("reduce"))
def test_reduce_adds_in_the_schedules_order(name: str) -> None:
    for n in WORLDS:
        schedule = algorithms.build("reduce", name, n, n - 1)
        expected = replayed(schedule, [random_floats(r, 1009) for r in range(n)])[n - 1]
        results = in_memory(
            n, lambda comm, root: comm.reduce(random_floats(comm.rank, 1009), root, algorithm=name), n - 1
        )
        same(results[n - 1], expected)


@pytest.mark.parametrize("name", algorithms.names("reduce_scatter"))
def test_reduce_scatter_adds_in_the_schedules_order(name: str) -> None:
    for n in WORLDS:
        schedule = algorithms.build("reduce_scatter", name, n)
        expected = replayed(schedule, [random_floats(r, 54 * n) for r in range(n)])
        results = in_memory(
            n, lambda comm: comm.reduce_scatter(random_floats(comm.rank, 54 * comm.world_size), algorithm=name)
        )
        for rank, result in enumerate(results):
            same(result, expected[rank][54 * rank : 54 * (rank + 1)])


@pytest.mark.parametrize("name", ALL_REDUCE)
def test_all_ranks_hold_the_same_bits_even_where_the_order_of_two_operands_matters(name: str) -> None:
    """numpy's product of complex numbers, and the smaller of two zeros, depend on it."""

    def card(comm: Communicator) -> list[bytes]:
        rng = np.random.default_rng(comm.rank)
        product = rng.standard_normal(1000) + 1j * rng.standard_normal(1000)
        zeros = np.where(rng.random(1000) < 0.5, 0.0, -0.0)
        given = [(product, "product"), (product.astype(np.complex64), "product"), (zeros, "min"), (zeros, "max")]
        return [comm.all_reduce(array.copy(), op, algorithm=name).tobytes() for array, op in given]

    for n in (2, 3, 4, 5, 7):
        results = in_memory(n, card)
        assert all(result == results[0] for result in results)


def test_another_order_gives_other_bits() -> None:
    """Or the three tests above could not fail."""
    n, arrays = 8, [random_floats(r, 1009) for r in range(8)]
    results = {replayed(algorithms.build("all_reduce", name, n), arrays)[0].tobytes() for name in ALL_REDUCE}
    assert len(results) > 2


# Hazards of handmade schedules


def handmade(step: Step, n: int, nchunks: int = 1, nbanks: int = 1) -> Schedule:
    return Schedule("all_reduce", "handmade", n, nchunks, 1, lambda _: step, nbanks)


def execute(comm: Communicator, schedule: Schedule, array: Any, scratch: Any = None) -> Any:
    engine: Engine = comm._engine
    plan = bind(schedule, comm.rank, [even_bounds(array.size, schedule.nchunks)], 1)
    spaces = [array] if not plan.scratch else [array, np.zeros(plan.scratch, array.dtype)]
    where = Circumstances(engine.mesh, engine.group, engine.ranks, "handmade")
    run(plan, spaces, where, sequence=0, seconds=60, reduce=np.add)
    return array


@pytest.mark.parametrize("reduce", [False, True])
def test_what_is_sent_may_be_overwritten_in_the_same_step(reduce: bool) -> None:
    swap = handmade(Step.of([0, 1], [1, 0], 0, reduce=reduce), 2)
    results = in_memory(2, lambda comm: execute(comm, swap, brought(comm.rank, 10_001)), env=TIGHT)
    both = brought(0, 10_001) + brought(1, 10_001)
    for rank, result in enumerate(results):
        same(result, both if reduce else brought(1 - rank, 10_001))


def test_a_local_move_may_overwrite_what_is_sent() -> None:
    step = Step.join(Step.of(0, 1, 0), Step.of(0, 0, 1, 1, 0))  # chunk 0 goes to rank 1; chunk 1 takes its place
    results = in_memory(2, lambda comm: execute(comm, handmade(step, 2, 2), brought(comm.rank, 9_000)), env=TIGHT)
    first, second = np.split(brought(0, 9_000), 2)
    same(results[0], np.concatenate([second, second]))
    same(results[1], np.concatenate([first, brought(1, 9_000)[4_500:]]))


def test_local_moves_read_the_state_before_the_step() -> None:
    rotate = handmade(Step.of(0, 0, [0, 1, 2], 1, [1, 2, 0]), 1, 3)
    (result,) = in_memory(1, lambda comm: execute(comm, rotate, np.arange(6.0)))
    assert result.tolist() == [4, 5, 0, 1, 2, 3]


def test_local_reductions_are_made_in_their_order() -> None:
    step = Step.of(0, 0, [1, 2, 3], 1, 0, reduce=True)
    (result,) = in_memory(1, lambda comm: execute(comm, handmade(step, 1, 4), np.array([1e8, 1, 1, -1e8], np.float32)))
    assert result[0] == ((np.float32(1e8) + 1) + 1) - np.float32(1e8) == 0


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 3, 1)])
def test_several_receives_into_one_place_are_taken_in_the_order_of_the_step(order: tuple[int, ...]) -> None:
    """The messages arrive in the order 1, 2, 3 whatever the schedule says."""
    step = Step.of(order, 0, 0, reduce=True)
    verify(Schedule("reduce", "handmade", 4, 1, 1, lambda _: step))
    sent = [threading.Event() for _ in range(4)]
    sent[0].set()

    def card(comm: Communicator) -> Any:
        array = random_floats(comm.rank, 501)
        if comm.rank == 0:
            assert sent[3].wait(60)
        else:
            assert sent[comm.rank - 1].wait(60)
        execute(comm, handmade(step, 4), array)
        sent[comm.rank].set()
        return array

    expected = random_floats(0, 501)
    for rank in order:
        expected = expected + random_floats(rank, 501)
    same(in_memory(4, card)[0], expected)


def test_scratch_holds_only_what_the_rank_touches() -> None:
    """Rank 2 receives one chunk of five in bank 1, so its scratch has room for that one."""
    step = Step.of(0, 2, 3, 1, 5 + 3)
    plan = bind(handmade(step, 3, 5, nbanks=2), 2, [even_bounds(12, 5)], 1)
    assert plan.scratch == 2
    assert list(plan.places) == [8]
    assert bind(handmade(step, 3, 5, nbanks=2), 1, [even_bounds(12, 5)], 1).steps == ()


@given(count=st.integers(0, 100), nchunks=st.integers(1, 20))
def test_even_bounds_cut_as_numpy_does(count: int, nchunks: int) -> None:
    lengths = [len(part) for part in np.array_split(np.zeros(count), nchunks)]
    assert np.diff(even_bounds(count, nchunks)).tolist() == lengths


@given(blocks=st.lists(st.integers(0, 30), min_size=1, max_size=8), a_block=st.integers(1, 5))
def test_block_bounds_cut_every_block_evenly(blocks: list[int], a_block: int) -> None:
    edges = block_bounds(blocks, a_block * len(blocks))
    assert len(edges) == a_block * len(blocks) + 1
    for q, count in enumerate(blocks):
        own = edges[q * a_block : (q + 1) * a_block + 1]
        assert tuple(edge - own[0] for edge in own) == even_bounds(count, a_block)
