"""Boards: meetings of real processes in shared memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cards import exit_code, forked

from superpod.interconnect import futex
from superpod.interconnect.board import TEXT, Board, Seat, nbytes, possible
from superpod.interconnect.exchange import KINDS, Exchange, Relay

pytestmark = pytest.mark.skipif(not possible(), reason="boards need x86-64, futex and memfd_create")

SLOT = 4096
CODES = ["compiled", "plain", "mixed"]
"""In which code cards meet; mixed: the even ranks in compiled code, the odd ones in Python."""
LONG = 10.0  # seconds that nothing here takes


def meet(board: Board, tag: int = 7, text: str = "a call", patience: float = 0.0) -> None:
    wanted = board.come(tag, text)
    end = time.monotonic() + LONG
    while not board.watch(wanted, patience, patience) and not board.sleep(wanted, LONG):
        assert time.monotonic() < end, f"{board.absent()} have not come"


def total(board: Board, value: int) -> int:
    slots = board.begin().view(np.int64)
    slots[board.rank, 0] = value
    meet(board)
    return int(slots[:, 0].sum())


def native(code: str, rank: int) -> bool:
    if Seat is None and code != "plain":
        pytest.skip("superpod was installed without a C compiler")
    return code == "compiled" or (code == "mixed" and rank % 2 == 0)


def with_others(n: int, body: Callable[[Board], Any], code: str = "plain") -> Any:
    """`body` on n cards: this process is rank 0, the others are forked."""
    board = Board.create(0, n, SLOT, native=native(code, 0))
    address = board.address
    with contextlib.ExitStack() as running:
        pids = [
            running.enter_context(
                forked(lambda rank=rank: body(Board.open(address, rank, n, SLOT, native=native(code, rank))))
            )
            for rank in range(1, n)
        ]
        result = body(board)
        assert [exit_code(pid) for pid in pids] == [0] * (n - 1)
    board.close_descriptor()
    return result


@pytest.mark.skipif(
    shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="there is no C compiler, or no header of this Python",
)
def test_where_there_is_a_compiler_there_is_compiled_code() -> None:
    assert Seat is not None


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_everybody_sees_what_everybody_wrote_meeting_after_meeting(n: int, code: str) -> None:
    def body(board: Board) -> None:
        for i in range(300):
            assert total(board, board.rank + i) == sum(range(n)) + n * i

    with_others(n, body, code)


@pytest.mark.parametrize("code", CODES)
def test_who_sleeps_is_woken_by_the_last_to_come(code: str) -> None:
    """Nobody gives way first, so every meeting but a few is slept for; a lost wake-up would cost 10 s."""

    def body(board: Board) -> float:
        start = time.monotonic()
        for i in range(500):
            if (i + board.rank) % 7 == 0:
                os.sched_yield()
            total(board, 1)
        return time.monotonic() - start

    assert with_others(4, body, code) < LONG


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("n", [2, 5])
def test_compiled_code_adds_up_with_the_bits_of_numpy(n: int, dtype: str) -> None:
    """Floats of very different sizes, integers that overflow; more elements than are added up at a time, and few."""

    def body(board: Board) -> None:
        for count in (1, 2, 511, SLOT // np.dtype(dtype).itemsize):
            rows = [np.random.default_rng(rank).integers(0, 256, SLOT, np.uint8) for rank in range(n)]
            arrays = [row.view(dtype)[:count].copy() for row in rows]
            if np.dtype(dtype).kind == "f":
                arrays = [np.where(np.isnan(a), 1, a).astype(dtype) for a in arrays]
            with np.errstate(all="ignore"):
                expected = sum_of(arrays)
            own = arrays[board.rank]
            data = own if count % 2 else own.ctypes.data  # the array, or its address
            assert board.exchange(7, "a sum", sum_of_all(own.nbytes, dtype), (data,), 0.001, LONG)
            assert own.tobytes() == expected.tobytes()

    with_others(n, body, "compiled")


def sum_of_all(nbytes: int, dtype: str = "float32") -> Exchange:
    return Exchange(give=0, given=nbytes, kind=KINDS[dtype], into=0, nbytes=nbytes)


def sum_of(arrays: list[Any]) -> Any:
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return total


def test_a_sum_for_which_not_all_come_in_time_is_taken_later() -> None:
    one = Board.create(0, 2, SLOT, native=native("compiled", 0))
    other = Board.open(one.address, 1, 2, SLOT)
    mine, theirs = np.array([1.5, 2.0], np.float32), np.array([3.0, 4.0], np.float32)
    assert not one.exchange(7, "a sum", sum_of_all(8), (mine,), 0.001, 0.001)
    assert mine.tolist() == [1.5, 2.0]
    assert other.exchange(7, "a sum", sum_of_all(8), (theirs,), 0.001, 0.001)
    assert one.met(one.wanted)
    one.take(sum_of_all(8), (mine,))
    assert mine.tolist() == theirs.tolist() == [4.5, 6.0]


@pytest.mark.parametrize("n", [1, 2, 5])
def test_compiled_code_copies_what_is_wanted(n: int) -> None:
    """A part of one card's slot or of all, or nothing; what is given may be read-only."""

    def body(board: Board) -> None:
        own = bytes(range(10 * board.rank, 10 * board.rank + 8))
        everything, one, two = bytearray(3 * n + 1), np.zeros(4, np.uint8), np.zeros(2, np.float32)
        numbers = np.array([0, 0, board.rank, 1], np.float32)
        exchanges = [
            (Exchange(give=0, given=8, into=1, at=1, offset=2, nbytes=3), (own, everything)),
            (Exchange(0 if board.rank == n - 1 else -1, 0, 8, into=1, offset=4, nbytes=4, root=n - 1), (own, one)),
            (Exchange(give=1, given=16, kind=KINDS["float32"], into=0, offset=8, nbytes=8), (two, numbers)),
            (Exchange(), ()),
            (Exchange(give=0, start=5, given=3), (own,)),
        ]
        for what, arrays in exchanges * 2:
            assert board.exchange(7, "an exchange", what, arrays, 0.001, LONG)
        assert list(everything) == [0] + [10 * rank + k for rank in range(n) for k in (2, 3, 4)]
        assert one.tolist() == [10 * (n - 1) + k for k in (4, 5, 6, 7)]
        assert two.tolist() == [n * (n - 1) / 2, n]

    with_others(n, body, "compiled")


@pytest.mark.parametrize(
    ("what", "array", "error", "words"),
    [
        (sum_of_all(SLOT + 1), np.zeros(SLOT + 1, np.uint8), ValueError, f"{SLOT + 1} bytes must be 0 to {SLOT}"),
        (sum_of_all(20), np.zeros(4, np.float32), ValueError, "the array has 16 bytes, fewer than 20"),
        (sum_of_all(8), bytes(8), BufferError, "not writable"),
        (sum_of_all(16), np.zeros((4, 4), np.float32)[:, 1], ValueError, "not C-contiguous"),
        (sum_of_all(8)._replace(kind=7), bytearray(8), ValueError, "kind 7 must be 0 or one of the letters fdil"),
        (sum_of_all(8)._replace(start=4), bytearray(8), ValueError, "the array has 8 bytes, fewer than 12"),
        (Exchange(into=0, offset=SLOT - 4, nbytes=8, root=0), bytearray(8), ValueError, "8 bytes must be 0 to 4"),
        (Exchange(into=0, offset=-1, nbytes=8, root=0), bytearray(8), ValueError, "-1 bytes must be 0 to"),
        (Exchange(into=0, nbytes=8), bytearray(8), ValueError, "the array has 8 bytes, fewer than 16"),
        (Exchange(into=0, at=1, nbytes=8, root=0), bytearray(8), ValueError, "the array has 8 bytes, fewer than 9"),
        (Exchange(into=0, nbytes=8, root=2), bytearray(8), ValueError, "2 must be -1 to 1"),
        (Exchange(into=1, nbytes=8), bytearray(8), ValueError, "1 must be -1 to 0"),
        (Exchange()[:10], bytearray(8), TypeError, "a tuple of 11 numbers"),
    ],
)
def test_what_cannot_be_exchanged_is_refused_before_anybody_hears_of_it(
    what: Any, array: Any, error: type[Exception], words: str
) -> None:
    board = Board.create(0, 2, SLOT, native=native("compiled", 0))
    with pytest.raises(error, match=words):
        board.exchange(7, "an exchange", what, (array,), 0.0, 0.0)
    assert board.meetings == 0


def test_the_absent_are_named_until_they_come() -> None:
    boards = [Board.create(0, 3, SLOT)]
    boards += [Board.open(boards[0].address, rank, 3, SLOT) for rank in (1, 2)]
    wanted = boards[0].come(7, "a call")
    assert boards[0].absent() == [1, 2]
    assert not boards[0].watch(wanted, 0.001, 0.001)
    assert not boards[0].sleep(wanted, 0.001)
    boards[2].come(7, "a call")
    assert boards[0].absent() == [1]
    boards[1].come(7, "a call")
    assert boards[0].met(wanted)
    assert boards[0].absent() == []


def test_who_comes_for_another_reason_is_named_with_its_call() -> None:
    one = Board.create(0, 2, SLOT)
    other = Board.open(one.address, 1, 2, SLOT)
    wanted = one.come(7, "all_reduce(10 × float32, sum)")
    assert one.at_odds() is None
    other.come(8, "broadcast(12 × float32, root 0)" + "x" * TEXT)
    assert not one.met(wanted)
    rank, text = one.at_odds() or (None, "")
    assert (rank, text[:31]) == (1, "broadcast(12 × float32, root 0)")
    assert other.at_odds() == (0, "all_reduce(10 × float32, sum)")


def test_a_late_reader_is_not_overtaken() -> None:
    """Slots are written again only when everybody has come to the meeting after the one in which they were read."""

    def body(board: Board) -> None:
        for i in range(50):
            slots = board.begin()
            slots[board.rank] = i
            meet(board)
            if board.rank == 1:
                time.sleep(0.001)
            assert (slots == i).all()

    with_others(2, body)


def test_a_board_of_another_size_is_refused() -> None:
    board = Board.create(0, 2, SLOT)
    size = nbytes(2, SLOT)
    with pytest.raises(OSError, match=f"shared memory of {size} B must have {nbytes(2, 2 * SLOT)} to "):
        Board.open(board.address, 1, 2, 2 * SLOT)


def test_what_lies_untouched_takes_no_memory() -> None:
    board = Board.create(0, 64, 1 << 20)
    file = os.stat(board.address.partition("#")[0])
    assert file.st_size > 128 << 20
    assert file.st_blocks * 512 < 1 << 20


def test_only_the_board_that_was_meant_is_opened(tmp_path: Path) -> None:
    board, size = Board.create(0, 2, SLOT), nbytes(2, SLOT)
    file, _, token = board.address.partition("#")
    with pytest.raises(OSError, match="another board is there now"):
        Board.open(f"{file}#{token[::-1]}", 1, 2, SLOT)
    (tmp_path / "file").write_bytes(bytes(size))
    with pytest.raises(OSError, match="no board's address"):
        Board.open(f"{tmp_path / 'file'}#{token}", 1, 2, SLOT)
    with (tmp_path / "file").open("r+b") as open_file, pytest.raises(OSError, match=r"not of shared memory|not sealed"):
        Board.open(f"/proc/{os.getpid()}/fd/{open_file.fileno()}#{token}", 1, 2, SLOT)


def test_a_futex_waits_only_for_the_value_that_it_is_told() -> None:
    word = np.array([5], np.uint32)
    futex.wait(word.ctypes.data, 4, LONG)  # or it would take that long
    start = time.monotonic()
    futex.wait(word.ctypes.data, 5, 0.01)
    assert time.monotonic() - start >= 0.01
    waiter = threading.Thread(target=futex.wait, args=(word.ctypes.data, 5, LONG))
    waiter.start()
    while not futex.wake(word.ctypes.data):
        time.sleep(0.001)
    waiter.join(LONG)
    assert not waiter.is_alive()
    with pytest.raises(OSError, match="futex wait at 0x10"):
        futex.wait(16, 5, 0.01)


def test_nothing_has_a_name() -> None:
    before = set(Path("/dev/shm").iterdir())
    board = Board.create(0, 2, SLOT)
    assert set(Path("/dev/shm").iterdir()) == before
    board.close_descriptor()
    board.close_descriptor()


def late_in(board: Board) -> Callable[[int, int], None]:
    return lambda rank, count: reach(board, rank, count, 0.0)


@pytest.mark.parametrize("seconds", [(0.0, 0.0), (0.001, 0.003)])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_compiled_relay_adds_up_and_takes_a_part(n: int, seconds: tuple[float, float]) -> None:
    """Of any number of pieces and windows, among meetings; waiting in C alone, or mostly in Python."""

    def body(board: Board) -> None:
        for turn, count in enumerate([0, 1, 7, 64, 65, 400, 1023] * 4):
            for dtype in KINDS:
                arrays = [(np.arange(count) % 50 + rank + turn).astype(dtype) for rank in range(n)]
                own, size, whole = arrays[board.rank], arrays[0].itemsize, sum_of(arrays)
                first, last = count // 3, count - count // 4
                part = own if turn % 2 else np.zeros(last - first, dtype)
                bounds = (0, own.nbytes) if turn % 2 else (first * size, last * size)
                what = Relay(KINDS[dtype], 0, 1, size, own.nbytes, *bounds, piece=16 * size, window=1 + turn % 3)
                board.relay(7, "a relay", what, (own.copy(), part), (*seconds, late_in(board)))
                assert part.tobytes() == (whole if turn % 2 else whole[first:last]).tobytes(), (turn, dtype)
            assert total(board, 1) == n

    with_others(n, body, "compiled")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": 7}, "no kind that can be added up"),
        ({"itemsize": 0}, "no kind"),
        ({"piece": 0}, "or does not fit"),
        ({"window": 1000}, "or does not fit"),
        ({"size": 65}, "fewer than 65"),
        ({"last": 65}, "65 bytes must be 0 to 64"),
        ({"first": 33, "last": 32}, "33 bytes must be 0 to 32"),
        ({"array": 2}, "2 must be 0 to 1"),
        ({"into": -1}, "-1 must be 0 to 1"),
    ],
)
def test_a_relay_that_does_not_fit_is_refused(change: dict[str, int], words: str) -> None:
    board = Board.create(0, 2, SLOT, native=native("compiled", 0))
    what = Relay(KINDS["float32"], 0, 1, 4, 64, 0, 64, 16, 4)._replace(**change)
    arrays = np.zeros(16, np.float32), np.zeros(16, np.float32)
    with pytest.raises(ValueError, match=words):
        board.relay(7, "a relay", what, arrays, (0.0, 0.0, late_in(board)))
    assert board.meetings == 0


def passed_on(board: Board, past: int, pieces: int, patience: float) -> list[int]:
    """What lies on the board in the end, if every card adds its rank + 1 to each piece that the one before has done."""
    room, before = board.begin_relay(pieces)
    assert before == past
    room = room.view(np.int64)
    board.come(7, "a relay")
    for piece in range(pieces):
        if board.rank == 0:
            room[piece] = 1
        else:
            reach(board, board.rank - 1, past + piece + 1, patience)
            room[piece] += board.rank + 1
        board.tell(past + piece + 1)
    reach(board, board.world_size - 1, past + pieces, patience)
    return room[:pieces].tolist()


def reach(board: Board, rank: int, count: int, patience: float) -> None:
    end = time.monotonic() + LONG
    while not board.watch_for(rank, count, patience) and not board.sleep_for(rank, count, LONG):
        assert time.monotonic() < end, f"rank {rank} has not got to {count}"


@pytest.mark.parametrize("patience", [0.0, 0.001])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_relay_waits_for_who_comes_before_and_for_the_last(n: int, patience: float) -> None:
    """A lost wake-up would cost 10 s."""

    def body(board: Board) -> float:
        start, past = time.monotonic(), 0
        for i in range(200):
            pieces = 1 + i % 4
            assert passed_on(board, past, pieces, patience) == [n * (n + 1) // 2] * pieces
            past += pieces
            if i % 3 == 0:
                assert total(board, board.rank) == n * (n - 1) // 2
        return time.monotonic() - start

    assert with_others(n, body) < LONG


def test_who_has_come_for_another_reason_is_not_waited_for_in_a_relay() -> None:
    boards = [Board.create(0, 2, SLOT)]
    boards.append(Board.open(boards[0].address, 1, 2, SLOT))
    boards[0].come(7, "all_reduce(1)")
    boards[0].tell(5)
    boards[1].come(8, "all_reduce(2)")
    assert not boards[1].watch_for(0, 5, 0.0)
    assert not boards[1].sleep_for(0, 5, 0.0)
    assert boards[1].at_odds() == (0, "all_reduce(1)")
    for board in boards:
        board.close_descriptor()
