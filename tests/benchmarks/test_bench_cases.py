"""Every case, on cards that are threads: right results count as right, and anything else does not."""

import threading

import numpy as np
import pytest

from superpod.benchmarks.cases import CASES, Setup
from superpod.benchmarks.measure import measure
from superpod.benchmarks.plan import Plan
from superpod.collectives.communicator import in_memory

PLACES = [
    (name, place) for name, kind in CASES.items() for place in ("out_of_place", "in_place") if getattr(kind, place)
]
PLAN = Plan((), (8,), iters=3, warmup=1, budget=0.01)


def on_cards(n, function):
    """`function(comm)` on n cards that are threads; its results by rank. The first error is raised."""
    results, errors = [None] * n, []

    def card(comm):
        try:
            results[comm.rank] = function(comm)
        except BaseException as error:
            errors.append(error)

    comms = in_memory(n)
    threads = [threading.Thread(target=card, args=(comm,), daemon=True) for comm in comms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    for comm in comms:
        comm.close()
    if errors:
        raise errors[0]
    return results


def _setup(comm, name, dtype="float32", op="sum", root=0, share=1003):
    count = 0 if name == "barrier" else share * comm.world_size
    return Setup(comm.rank, comm.world_size, count, np.dtype(dtype), op, root)


@pytest.mark.parametrize(("name", "place"), PLACES)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_a_working_collective_has_nothing_wrong(name, place, n):
    if (name, n) == ("sendrecv", 1):
        pytest.skip("nobody to send to")

    def card(comm):
        return measure(comm, CASES[name](_setup(comm, name, root=n - 1), in_place=place == "in_place"), PLAN, None)

    samples = on_cards(n, card)
    assert all(sample == samples[0] for sample in samples)
    sample = samples[0]
    assert sample.wrong == 0
    assert sample.iters == 3
    assert 0 < sample.fastest <= sample.median <= sample.slowest
    assert 0 < sample.seconds <= sample.slowest
    assert (sample.algorithm == "none") == (name == "sendrecv")


@pytest.mark.parametrize(("name", "place"), [pair for pair in PLACES if pair[0] != "barrier"])
def test_a_collective_that_did_nothing_is_wrong(name, place):
    def card(comm):
        case = CASES[name](_setup(comm, name), in_place=place == "in_place")
        case.prepare()
        return case.wrong()

    assert sum(on_cards(3, card)) >= 2 * 1003


@pytest.mark.parametrize(("name", "place"), [pair for pair in PLACES if pair[0] != "barrier"])
def test_a_single_wrong_element_is_counted(name, place):
    def card(comm):
        case = CASES[name](_setup(comm, name), in_place=place == "in_place")
        case.prepare()
        case.run(comm)
        before = case.wrong()
        if comm.rank == 0:
            case.recv[17] += 1
        return before, case.wrong()

    assert on_cards(3, card) == [(0, 1), (0, 0), (0, 0)]


def test_a_send_buffer_that_changed_is_counted():
    def card(comm):
        case = CASES["all_reduce"](_setup(comm, "all_reduce"), in_place=False)
        case.prepare()
        case.run(comm)
        case.send[0] += 1
        return case.wrong()

    assert on_cards(2, card) == [1, 1]


def test_in_place_means_one_memory():
    for name, place in PLACES:
        if place == "in_place":
            case = CASES[name](Setup(1, 4, 400, np.dtype("int8"), "sum", root=1), in_place=True)
            assert np.shares_memory(case.send, case.recv), name


@pytest.mark.parametrize("dtype", ["float16", "bool", "int8", "uint64", "complex64"])
def test_dtypes(dtype):
    def card(comm):
        cases = [CASES[name](_setup(comm, name, dtype), in_place=False) for name in ("all_reduce", "all_to_all")]
        return [measure(comm, case, PLAN, None).wrong for case in cases]

    assert on_cards(4, card) == [[0, 0]] * 4


def test_an_algorithm_by_name_and_no_check():
    def card(comm):
        case = CASES["all_reduce"](_setup(comm, "all_reduce"), in_place=True)
        return measure(comm, case, Plan((), (8,), iters=2, check=False), "ring")

    sample = on_cards(3, card)[0]
    assert (sample.algorithm, sample.wrong, sample.iters) == ("ring", None, 2)


def test_the_average_says_whose_time_is_printed():
    def card(comm):
        class Slow(CASES["barrier"]):
            def run(self, comm, **how):
                super().run(comm, **how)
                if comm.rank == 1:
                    threading.Event().wait(0.02)  # rank 1 takes longer: this is what is measured, not synchronisation

        case = Slow(_setup(comm, "barrier"), in_place=False)
        return [measure(comm, case, Plan((), (8,), iters=3, average=a), None).seconds for a in range(4)]

    rank0, mean, fastest, slowest = on_cards(2, card)[0]
    assert slowest >= 0.02
    assert fastest <= mean <= slowest
    assert rank0 > 0
