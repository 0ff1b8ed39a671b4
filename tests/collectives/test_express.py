"""The short way for an all_reduce that is made again and again: the same results, records, errors and order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from superpod.collectives.communicator import Communicator
from superpod.collectives.engine import _PREPARED
from superpod.collectives.torch_backend_coalesced import SuperpodProcessGroup
from superpod.interconnect import board
from superpod.interconnect.errors import CollectiveMismatch, InvalidValue, PeerLost, RemoteError
from superpod.launcher.testing import run_ranks

pytestmark = pytest.mark.skipif(not board.possible(), reason="boards need x86-64, futex and memfd_create")

ENV = {"SUPERPOD_LINK": "shm"}
CODES = ["compiled", "plain", "mixed"]
OPERATIONS = [("sum", "f4"), ("sum", "f8"), ("sum", "i4"), ("sum", "u8"), ("sum", "i1"), ("sum", "c8"), ("avg", "f4")]
OPERATIONS += [("min", "f4"), ("max", "i2"), ("product", "c16"), ("bxor", "u4"), ("sum", ">f4"), ("sum", "f2")]
COUNTS = (0, 1, 3, 1000, 20_003, 30_000, 400_001)  # by one meeting, two, and a relay


def on(n: int, card: Callable[..., Any], code: str, *args: Any) -> list[Any]:
    """`card(comm, *args)` on n cards, with compiled code, without, or with it on every other one."""

    def begin(comm: Communicator) -> Any:
        if code == "plain" or (code == "mixed" and comm.rank % 2):
            board.Seat = None  # type: ignore[assignment, misc]  # in this process, which ends with the job
        return card(comm, *args)

    if code != "plain" and board.Seat is None:
        pytest.skip("superpod was installed without a C compiler")
    return run_ranks(n, begin, env=ENV)


def numbers(rank: int, turn: int, count: int, dtype: str) -> Any:
    rng = np.random.default_rng(100 * rank + turn)
    with np.errstate(all="ignore"):
        return (rng.standard_normal(count) * 10.0 ** rng.integers(-6, 6, count)).astype(dtype)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [2, 5])
def test_every_call_has_the_bits_of_the_first(n: int, code: str) -> None:
    """The first call goes the long way; those that ask for something, here an algorithm, always do."""

    def card(comm: Communicator) -> int:
        taken = 0
        for op, dtype in OPERATIONS:
            for count in COUNTS:
                for turn in range(3):
                    own = numbers(comm.rank, turn, count, dtype)
                    by = comm._engine.algorithm_for("all_reduce", max(own.nbytes, 4 * count))
                    long = comm.all_reduce(own.copy(), op, algorithm=by)
                    assert comm.all_reduce(own, op).tobytes() == long.tobytes(), (op, dtype, count, turn)
                taken += ("all_reduce", op, own.dtype, count) in comm._engine.expresses
        return taken

    taken = on(n, card, code)
    assert taken == [len(COUNTS) * (len(OPERATIONS) - 1)] * n  # all but what is added up in float32


COLLECTIVES: dict[str, Callable[[Communicator, Any, dict[str, str]], Any]] = {
    "broadcast": lambda comm, array, how: comm.broadcast(array, root=1, **how),
    "all_gather": lambda comm, array, how: comm.all_gather(array, **how),
    "all_gather_into": lambda comm, array, how: comm.all_gather(
        array, np.empty((comm.world_size, *array.shape), array.dtype), **how
    ),
    "all_to_all": lambda comm, array, how: comm.all_to_all(array, **how),
    "all_to_all_in_place": lambda comm, array, how: comm.all_to_all(array, array, **how),
}


@pytest.mark.parametrize("what", COLLECTIVES)
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [2, 5])
def test_other_collectives_do_again_what_they_did_first(n: int, code: str, what: str) -> None:
    def card(comm: Communicator) -> int:
        call = COLLECTIVES[what]
        for dtype in ("f4", "u1", ">i2", "c16"):
            for shape in ((0,), (n,), (3 * n, 2), (n, 5000)):
                for turn in range(3):
                    own = numbers(comm.rank, turn, int(np.prod(shape)), dtype).reshape(shape)
                    collective = what.partition("_in")[0]
                    by = comm._engine.algorithm_for(collective, own.nbytes)
                    long = call(comm, own.copy(), {"algorithm": by})
                    short = call(comm, own, {})
                    assert short.tobytes() == long.tobytes(), (dtype, shape, turn)
                    assert (short.shape, short.dtype) == (long.shape, long.dtype)
        return len(comm._engine.expresses)

    shapes = 1 if what == "all_to_all_in_place" else 4  # in place only if there is nothing to move
    assert on(n, card, code) == [4 * shapes] * n


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [2, 5])
def test_a_reduce_scatter_does_again_what_it_did_first(n: int, code: str) -> None:
    """Into a new array or a given one; the array that is reduced stays as it is."""

    def card(comm: Communicator) -> int:
        taken = 0
        for op, dtype in OPERATIONS:
            for count in (0, 1, 700, 30_000):
                for turn in range(3):
                    own = numbers(comm.rank, turn, n * count, dtype)
                    by = comm._engine.algorithm_for("reduce_scatter", max(own.nbytes, 4 * own.size))
                    before, long = own.tobytes(), comm.reduce_scatter(own, op, algorithm=by)
                    out = np.empty(count, own.dtype)
                    for short in (comm.reduce_scatter(own, op), comm.reduce_scatter(own, op, out=out)):
                        assert short.tobytes() == long.tobytes(), (op, dtype, count, turn)
                    assert short is out
                    assert own.tobytes() == before
                taken += ("reduce_scatter", op, own.dtype, own.size) in comm._engine.expresses
        return taken

    natively = [(op, dtype) for op, dtype in OPERATIONS if dtype != "f2"]  # which is added up in float32
    assert on(n, card, code) == [4 * len(natively)] * n


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [2, 5])
def test_a_gather_and_a_scatter_do_again_what_they_did_first(n: int, code: str) -> None:
    def card(comm: Communicator) -> int:
        root, rank = n - 1, comm.rank
        for dtype in ("f4", "f8", "c8"):  # a float too large for an integer is any
            for count in (0, 1, 700, 150_001):
                for turn in range(3):
                    every = [numbers(r, turn, count, dtype) for r in range(n)]
                    for out in (None, np.empty((n, count), every[0].dtype)):
                        whole = comm.gather(every[rank], root, out)
                        assert (
                            whole is None if rank != root else whole.tobytes() == b"".join(e.tobytes() for e in every)
                        )
                        assert out is None or rank != root or whole is out
                    own, blocks = np.empty(count, every[0].dtype), np.concatenate(every)
                    before = blocks.tobytes()
                    assert comm.scatter(blocks if rank == root else None, root, own) is own
                    assert (own.tobytes(), blocks.tobytes()) == (every[rank].tobytes(), before), (dtype, count, turn)
        return len(comm._engine.expresses)

    found = on(n, card, code)
    assert [count > 0 for count in found] == [code == "compiled" or (code == "mixed" and r % 2 == 0) for r in range(n)]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [2, 5])
def test_a_reduce_does_again_what_it_did_first(n: int, code: str) -> None:
    """At the root in place or in a given array; no other array is touched."""

    def card(comm: Communicator) -> int:
        root, rank = n - 1, comm.rank
        for op, dtype in OPERATIONS:
            for count in (0, 1, 700, 30_000):
                for turn in range(3):
                    own = numbers(rank, turn, count, dtype)
                    long = comm.reduce(own.copy(), root, op, algorithm="star")
                    out, before = np.empty_like(own), own.tobytes()
                    apart = comm.reduce(own, root, op, out=out)
                    assert own.tobytes() == before
                    within = comm.reduce(own, root, op)
                    assert (apart is None, within is None) == (rank != root, rank != root)
                    assert own.tobytes() == (before if long is None else long.tobytes()), (op, dtype, count, turn)
                    assert long is None or out.tobytes() == long.tobytes()
        return len(comm._engine.expresses)

    found = on(n, card, code)
    assert [count > 0 for count in found] == [code == "compiled" or (code == "mixed" and r % 2 == 0) for r in range(n)]


@pytest.mark.parametrize("code", CODES)
def test_a_barrier_holds_back_every_time(code: str) -> None:
    def card(comm: Communicator) -> None:
        for turn in range(6):
            if comm.rank == turn % 3:
                time.sleep(0.02)
                comm.send(np.array([turn]), (comm.rank + 1) % 3)
            comm.barrier()
            if (comm.rank - 1) % 3 == turn % 3:
                start = time.monotonic()
                assert comm.recv(np.zeros(1, int), turn % 3)[0] == turn
                assert time.monotonic() - start < 1

    on(3, card, code)


@pytest.mark.parametrize("code", CODES)
def test_arrays_that_do_not_lie_flat_go_the_long_way(code: str) -> None:
    def card(comm: Communicator) -> None:
        comm.all_reduce(np.ones(6, np.float32))
        wide = np.ones((6, 2), np.float32)
        comm.all_reduce(wide[:, 0])
        assert wide.tolist() == [[2, 1]] * 6
        square = np.ones((2, 3), np.float32)
        assert comm.all_reduce(square) is square
        assert square.tolist() == [[2, 2, 2]] * 2
        square.flags.writeable = False
        with pytest.raises(InvalidValue, match="read-only"):
            comm.all_reduce(square)

    on(2, card, code)


@pytest.mark.parametrize("code", CODES)
def test_calls_are_recorded_and_counted(code: str) -> None:
    def card(comm: Communicator) -> tuple[list[Any], list[Any]]:
        array = np.ones(4, np.float32)
        for _ in range(5):
            comm.all_reduce(array)
        records = comm._engine._recorder.records()
        rows = [(r["operation"], r["calls"], r["bytes"]) for r in comm._engine.statistics.rows()]
        return [(r.number, r.call, r.state, r.place.rpartition(":")[0]) for r in records], rows

    for records, rows in on(2, card, code):
        text = "all_reduce(4 × float32, sum) by one_shot"
        place = f"card() at {__file__.rpartition('/tests/')[2]}"
        assert [(n, call, state) for n, call, state, _ in records] == [(i, text, "done") for i in range(5)]
        assert all(where.endswith(place.removeprefix("card() at ")) for *_, where in records)
        assert rows == [("all_reduce", 5, 5 * 16)]


def test_what_is_kept_is_bounded_however_many_lengths_and_groups_there_are() -> None:
    def card(comm: Communicator) -> tuple[int, int, list[tuple[str, int]]]:
        for count in range(_PREPARED + 50):
            for _ in range(2):
                comm.all_reduce(np.ones(count, np.uint8))
        for _ in range(20):
            group = comm.group([0, 1])
            assert group is not None
            for _ in range(3):
                group.barrier()
            group.close()
        statistics = comm._engine.statistics
        rows = [(r["operation"], r["calls"]) for r in statistics.rows()]
        return len(comm._engine.expresses), len(statistics._ledgers), rows

    rows = [("all_reduce", 2 * (_PREPARED + 50)), ("barrier", 60)]
    for expresses, ledgers, counted in on(2, card, "plain"):
        assert (expresses <= _PREPARED, ledgers, sorted(counted)) == (True, 1, rows)


@pytest.mark.parametrize("code", CODES)
def test_it_waits_for_what_was_issued_before(code: str) -> None:
    def card(comm: Communicator) -> None:
        array = np.ones(4, np.float32)
        comm.all_reduce(array)
        for _ in range(50):
            array[:] = 1
            work = comm.all_reduce(array, async_op=True)
            other = comm.all_reduce(np.full(4, 3, np.float32))
            work.wait()
            assert array.tolist() == [2.0] * 4
            assert other.tolist() == [6.0] * 4

    on(2, card, code)


@pytest.mark.parametrize("code", CODES)
def test_a_call_that_differs_is_noticed(code: str) -> None:
    def card(comm: Communicator) -> str:
        comm.all_reduce(np.ones(4, np.float32))
        comm.all_reduce(np.ones(5, np.float32))
        with pytest.raises(CollectiveMismatch) as raised:
            comm.all_reduce(np.ones(4 + comm.rank, np.float32))
        return str(raised.value)

    words = [f"all_reduce({count} × float32, sum) by one_shot (#2)" for count in (4, 5)]
    assert all(word in text for text in on(2, card, code) for word in words)


@pytest.mark.parametrize("code", CODES)
def test_a_card_that_dies_is_named(code: str) -> None:
    def card(comm: Communicator) -> tuple[str, float]:
        array = np.ones(4, np.float32)
        for _ in range(3):
            comm.all_reduce(array)
        if comm.rank == 2:
            comm.close()
            return "", 0.0
        start = time.monotonic()
        with pytest.raises((PeerLost, RemoteError)) as raised:
            comm.all_reduce(array)
        with pytest.raises((PeerLost, RemoteError)):
            comm.all_reduce(array)
        return str(raised.value), time.monotonic() - start

    *others, _ = on(3, card, code)
    assert all("rank 2" in text and seconds < 5 for text, seconds in others)


@pytest.mark.parametrize("code", CODES)
def test_it_ends_with_its_group(code: str) -> None:
    def card(comm: Communicator) -> int:
        group = comm.group(range(comm.world_size))
        assert group is not None
        for one in (comm, group):
            for _ in range(2):
                one.all_reduce(np.ones(4, np.float32))
        group.close()
        with pytest.raises(Exception, match="closed group"):
            group.all_reduce(np.ones(4, np.float32))
        return int(comm.all_reduce(np.ones(4, np.float32))[0])

    assert on(2, card, code) == [2, 2]


@pytest.mark.parametrize("code", CODES)
def test_torch_tensors_of_one_length_and_several_dtypes(code: str) -> None:
    def card(comm: Communicator) -> int:
        torch, group = pytest.importorskip("torch"), SuperpodProcessGroup(comm._engine, None, None)
        options = torch.distributed.AllreduceOptions()
        options.asyncOp = False
        for _ in range(3):
            for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool):
                tensor = torch.tensor([1, 0, 1, 1], dtype=dtype)
                group.allreduce([tensor], options)
                assert tensor.tolist() == torch.tensor([2, 0, 2, 2]).to(dtype).tolist(), dtype
            wide = torch.ones(4, 2)
            group.allreduce([wide[:, 0]], options)
            assert wide.tolist() == [[2, 1]] * 4
        return len(comm._engine.expresses)

    assert on(2, card, code) == [3, 3]
