"""SUPERPOD_DETERMINISTIC=1: the bits of numpy's sum from rank 0 to the last, whatever the algorithm, size and link."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from superpod.collectives import algorithms
from superpod.collectives.communicator import Communicator, in_memory
from superpod.collectives.operations import operation
from superpod.collectives.schedule import REDUCING
from superpod.interconnect.env import Settings
from superpod.interconnect.errors import InvalidValue, SuperpodError
from superpod.interconnect.shm_link import possible
from superpod.launcher.testing import run_ranks

WORLDS = range(1, 10)
CASES = [
    ("sum", np.float32),
    ("sum", np.float64),
    ("sum", np.float16),
    ("avg", np.float32),
    ("avg", np.float16),
    ("product", np.float32),
    ("sum", np.complex64),
    ("avg", np.complex128),
    ("product", np.complex64),
    ("product", np.complex128),
    ("min", np.float64),
    ("sum", np.int16),
]
UFUNCS = {"sum": np.add, "avg": np.add, "product": np.multiply, "min": np.minimum}
SEGMENTS = {"SUPERPOD_SEGMENT": "4K", "SUPERPOD_WINDOW": "16K"}
LINKS = ["zmq", pytest.param("shm", marks=pytest.mark.skipif(not possible(), reason="no such link here"))]


def brought(rank: int, count: int, dtype: Any) -> Any:
    """Numbers of very different sizes: every order of addition has bits of its own."""
    rng = np.random.default_rng([rank, count])
    if np.dtype(dtype).kind == "i":
        return rng.integers(-30_000, 30_000, count).astype(dtype)
    values = rng.standard_normal(count) * 10.0 ** rng.integers(-2, 3, count)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(count)
    return values.astype(dtype)


def folded(n: int, count: int, op: str, dtype: Any) -> Any:
    """((x0 + x1) + x2) + … in the dtype that is added up in, rounded once."""
    what = operation(op, np.dtype(dtype))
    total = brought(0, count, dtype).astype(what.wide)
    with np.errstate(all="ignore"):
        for rank in range(1, n):
            total = UFUNCS[op](total, brought(rank, count, dtype).astype(what.wide))
        what.finish(total, n)
        return total.astype(dtype)


def ways(collective: str) -> list[str | None]:
    """The algorithms that may be chosen, and the one that is."""
    return [None, *algorithms.in_fixed_order(collective)]


def card(comm: Communicator, counts: list[int]) -> int:
    """Every way to reduce, compared with numpy's; how many there were."""
    n, done = comm.world_size, 0
    for op, dtype in CASES:
        for count in counts:
            for what, result, expected in results(comm, op, dtype, count - count % n):
                assert result.dtype == expected.dtype
                assert result.tobytes() == expected.tobytes(), f"{what}, {n} ranks, {count} × {np.dtype(dtype)}, {op}"
                done += 1
    return done


def results(comm: Communicator, op: str, dtype: Any, count: int) -> Iterator[tuple[str, Any, Any]]:
    n, rank, expected = comm.world_size, comm.rank, folded(comm.world_size, count, op, dtype)
    for way in ways("all_reduce"):
        yield f"all_reduce by {way}", comm.all_reduce(brought(rank, count, dtype), op, algorithm=way), expected
    for way in ways("reduce"):
        for root in {0, n // 2, n - 1}:
            result = comm.reduce(brought(rank, count, dtype), root, op, algorithm=way)
            if rank == root:
                yield f"reduce to {root} by {way}", result, expected
    block = expected[rank * (count // n) : (rank + 1) * (count // n)]
    for way in ways("reduce_scatter"):
        result = comm.reduce_scatter(brought(rank, count, dtype), op, algorithm=way)
        yield f"reduce_scatter by {way}", result, block


def in_threads(n: int, settings: Settings, fn: Callable[[Communicator], Any]) -> list[Any]:
    comms, found, errors = in_memory(n, settings), [None] * n, list[BaseException]()

    def body(comm: Communicator) -> None:
        try:
            found[comm.rank] = fn(comm)
        except BaseException as error:
            errors.append(error)
            comm.close()

    threads = [threading.Thread(target=body, args=(comm,)) for comm in comms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for comm in comms:
        comm.close()
    if errors:
        raise min(errors, key=lambda error: isinstance(error, SuperpodError))  # a consequence comes last
    return found


@pytest.mark.parametrize("n", WORLDS)
def test_between_threads(n: int) -> None:
    settings = Settings(deterministic=True, segment=1 << 10, window=1 << 12)
    counts = [n, 2 * n, 1000 + n, *([9_001] if n < 6 else [])]
    assert min(in_threads(n, settings, lambda comm: card(comm, counts))) > 0


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("n", [2, 3, 5, 8, 9])
def test_between_processes(n: int, link: str) -> None:
    """The second size goes in many segments, and on boards in several pieces."""
    env = {"SUPERPOD_DETERMINISTIC": "1", "SUPERPOD_LINK": link, **SEGMENTS}
    run_ranks(n, card, [n, 5_003], env=env)


def large(comm: Communicator) -> None:
    """As long as the tables' last rules want it."""
    count = 3_000_000 - 3_000_000 % comm.world_size
    for what, result, expected in results(comm, "sum", np.float32, count):
        assert result.tobytes() == expected.tobytes(), what


@pytest.mark.slow
@pytest.mark.parametrize("link", LINKS)
def test_large_arrays(link: str) -> None:
    for n in (2, 5):
        run_ranks(n, large, env={"SUPERPOD_DETERMINISTIC": "1", "SUPERPOD_LINK": link})


@pytest.mark.parametrize("n", [3, 4, 8])
def test_without_it_algorithms_differ(n: int) -> None:
    """Or the tests above could not fail."""

    def bits(comm: Communicator) -> dict[str, int]:
        return {
            collective: len(
                {
                    getattr(comm, collective)(brought(comm.rank, 840, np.float32), algorithm=name).tobytes()
                    for name in algorithms.names(collective)
                }
            )
            for collective in ("all_reduce", "reduce_scatter")
        }

    assert min(min(found.values()) for found in in_threads(n, Settings(), bits)) > 1


def test_without_it_the_size_decides() -> None:
    """The same numbers, reduced alone and as the beginning of a longer array."""

    def differ(comm: Communicator) -> bool:
        long = brought(comm.rank, 400_000, np.float32)
        short = long[:1000].copy()
        return bool(comm.all_reduce(short).tobytes() != comm.all_reduce(long)[:1000].tobytes())

    assert any(in_threads(4, Settings(), differ))
    assert not any(in_threads(4, Settings(deterministic=True), differ))


class TestWhatIsRefused:
    @pytest.mark.parametrize("collective", REDUCING)
    def test_a_variable_that_names_another_algorithm(self, collective: str) -> None:
        able = ", ".join(algorithms.in_fixed_order(collective))
        for text in ("tree:0-4K;star:5K-max", "tree") if collective != "reduce_scatter" else ("ring",):
            name = text.partition(":")[0]
            with pytest.raises(
                InvalidValue,
                match=f"^SUPERPOD_{collective.upper()}='{text}': algorithm='{name}' does not add up in the order of "
                f"the ranks, as SUPERPOD_DETERMINISTIC=1 wants it of {collective}; {able} do, or unset SUPERPOD_D",
            ):
                run_ranks(1, lambda comm: None, env=_variables(collective, text), link="zmq")

    def test_one_with_the_order_is_taken(self) -> None:
        def chosen(comm: Communicator) -> Any:
            comm.all_reduce(np.ones(3))
            return comm.last

        env = _variables("all_reduce", "two_shot_ordered")
        choice = run_ranks(2, chosen, env=env)[1]
        assert choice.algorithm == "two_shot_ordered"
        assert choice.reason == "SUPERPOD_ALL_REDUCE says so for any size; SUPERPOD_DETERMINISTIC=1"

    def test_copies_go_by_any_algorithm(self) -> None:
        run_ranks(2, lambda comm: comm.barrier(), env=_variables("all_gather", "ring"))

    def test_an_algorithm_in_the_call(self) -> None:
        def ring(comm: Communicator) -> float:
            with pytest.raises(InvalidValue, match=r"^algorithm='ring' does not add up in the order of the ranks"):
                comm.all_reduce(np.ones(3), algorithm="ring")
            work = comm.all_reduce(np.ones(3), algorithm="ring", async_op=True)
            with pytest.raises(InvalidValue, match=r"star, .* do, or unset SUPERPOD_DETERMINISTIC"):
                work.wait(20)
            return float(comm.all_reduce(np.ones(3))[0])  # the group is as it was

        assert in_threads(2, Settings(deterministic=True), ring) == [2.0, 2.0]

    def test_a_card_that_is_set_otherwise(self) -> None:
        """Algorithms are part of what ranks must agree on."""
        comms = [in_memory(2, Settings(deterministic=d))[0] for d in (False, True)]
        names = [comm._engine.algorithm_for("reduce_scatter", 64) for comm in comms]
        for comm in comms:
            comm.close()
        assert names[0] != names[1]


def _variables(collective: str, text: str) -> dict[str, str]:
    return {"SUPERPOD_DETERMINISTIC": "1", f"SUPERPOD_{collective.upper()}": text}
