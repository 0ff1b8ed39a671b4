"""Arguments of the numpy API: what is refused, with which words and without harm, and what is taken in any type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from communicator_cards import cards

import superpod
from superpod.collectives.communicator import Communicator
from superpod.interconnect.errors import InvalidValue

THREE, READ_ONLY = np.zeros(3), np.zeros(3)
READ_ONLY.flags.writeable = False
REFUSED: list[tuple[Callable[[Communicator], Any], str]] = [
    (lambda c: c.all_reduce([1, 2]), "array is a list, must be a numpy array of numbers or bool; use numpy.asarray"),
    (lambda c: c.all_gather(np.array([None])), "array is a object array, must be a numpy array"),
    (lambda c: c.all_reduce(READ_ONLY), "the array for the result is read-only; pass a copy of it"),
    (lambda c: c.broadcast(READ_ONLY, 1 - c.rank), "the array for the result is read-only"),
    (
        lambda c: c.all_reduce(THREE, out=np.zeros(4)),
        r"out is float64 of shape \(4,\), must be float64 of shape \(3,\)",
    ),
    (lambda c: c.all_reduce(THREE, out=np.zeros(3, "f4")), "out is float32 of shape"),
    (lambda c: c.all_gather(THREE, np.zeros((3, 3))), r"out is .* must be float64 of shape \(2, 3\)"),
    (lambda c: c.reduce_scatter(THREE), r"array of shape \(3,\) cannot be cut into 2 blocks along its first axis"),
    (lambda c: c.all_to_all(np.array(1.0)), r"array of shape \(\) cannot be cut into 2 blocks"),
    (lambda c: c.scatter(None, c.rank), "array=None at the root of a scatter; the root passes n blocks"),
    (lambda c: c.scatter(None, 1 - c.rank), "out=None on a rank that is not the root of a scatter"),
    (lambda c: c.broadcast(THREE, 2), "root=2 must be a rank of the group: 0 to 1"),
    (lambda c: c.broadcast(THREE, "0"), "root='0' must be a rank of the group: 0 to 1"),
    (lambda c: c.send(THREE, 1.0), "rank 1.0 must be a rank of the group: 0 to 1"),
    (lambda c: c.gather(THREE, -1), "root=-1 must be a rank of the group: 0 to 1"),
    (
        lambda c: c.all_reduce(THREE, algorithm="rign"),
        "algorithm='rign' does not exist for all_reduce; there are ring, ",
    ),
    (lambda c: c.barrier(algorithm="ring"), "algorithm='ring' does not exist for barrier; there are"),
    (lambda c: c.all_reduce(THREE, timeout=0), "timeout=0 must be above 0 seconds, or None"),
    (lambda c: c.all_reduce(THREE, timeout="3"), "timeout='3' must be above 0 seconds"),
    (lambda c: c.barrier(timeout=10**400), "timeout=10+ must be above 0 seconds"),
    (lambda c: c.all_reduce(THREE, ["sum"]), r"op=\['sum'\] is unknown"),
    (lambda c: c.reduce_scatter(np.zeros(4), ["sum"]), r"op=\['sum'\] is unknown"),
    (lambda c: c.broadcast(THREE, [0]), r"root=\[0\] must be a rank of the group"),
    (lambda c: c.recv(THREE, 0, timeout=float("nan")), "timeout=nan must be above 0 seconds"),
    (lambda c: c.send(THREE, 2), r"rank 2 must be a rank of the group: 0 to 1 but this card's own [01]"),
    (lambda c: c.send(THREE, c.rank), "but this card's own"),
    (lambda c: c.send(THREE, 1 - c.rank, tag=-1), r"tag=-1 must be a whole number, 0 to 2\^31 - 1"),
    (lambda c: c.recv(THREE, 1 - c.rank, tag=1 << 31), r"tag=2147483648 must be a whole number, 0 to"),
    (lambda c: c.send(THREE, 1 - c.rank, tag=1.5), "tag=1.5 must be a whole number"),
    (lambda c: c.recv(THREE, 1 - c.rank, tag=True), "tag=True must be a whole number"),
    (lambda c: c.send(THREE, 1 - c.rank, tag="x"), "tag='x' must be a whole number"),
    (lambda c: c.recv(np.zeros((3, 3)).T, 1 - c.rank), r"array with strides \(8, 24\) is not contiguous"),
    (lambda c: c.group([0, 0]), r"ranks=\[0, 0\] must be distinct, and at least one"),
    (lambda c: c.group([]), r"ranks=\[\] must be distinct, and at least one"),
    (lambda c: c.group([0, 2]), "rank 2 must be a rank of the group: 0 to 1"),
]


def test_wrong_arguments_are_refused_and_do_no_harm() -> None:
    """On one rank only, too: nothing has been sent, and the next call is the same on all."""

    def card(comm: Communicator, who: int) -> None:
        for call, message in REFUSED:
            if comm.rank <= who:
                with pytest.raises(InvalidValue, match=message):
                    call(comm)
            assert comm.all_reduce(np.ones(3)).tolist() == [2, 2, 2]

    cards(2, card, 0)
    cards(2, card, 1)


@pytest.mark.parametrize("one", [np.int64(1), np.uint8(1), True])
def test_whole_numbers_of_any_type_are_ranks(one: Any) -> None:
    def card(comm: Communicator) -> None:
        for _ in range(2):  # the second call goes the short way
            assert comm.broadcast(np.full(2, comm.rank), one).tolist() == [1, 1]
            assert comm.rank != 1 or comm.gather(np.full(2, comm.rank), one).tolist() == [[0, 0], [1, 1]]
            assert comm.rank == 1 or comm.gather(np.full(2, comm.rank), one) is None
            assert comm.scatter(np.arange(4).reshape(2, 2), one, np.zeros(2, int)).tolist() == [
                2 * comm.rank,
                2 * comm.rank + 1,
            ]
        if one is not True:
            comm.send(np.full(3, comm.rank), 1 - comm.rank, one)
            assert comm.recv(np.zeros(3, int), 1 - comm.rank, one).tolist() == [1 - comm.rank] * 3

    cards(2, card)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # numpy would rather have none
def test_a_matrix_is_an_array() -> None:
    def card(comm: Communicator) -> None:
        matrix = np.asmatrix([[1.0, 2.0]])
        assert comm.all_reduce(matrix).tolist() == [[2, 4]]
        assert comm.all_gather(matrix).tolist() == [[[2, 4]]] * 2

    cards(2, card)


@pytest.mark.parametrize("timeout", [float("nan"), -1, 0, "x"])
def test_a_time_limit_of_the_communicator_is_checked(timeout: Any) -> None:
    with pytest.raises(InvalidValue, match=f"timeout={timeout!r} must be above 0 seconds"):
        superpod.init(timeout=timeout)
