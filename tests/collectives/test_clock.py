"""The modelled clock: it counts every call once, at superpod-sim's price, whatever the order."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from collective_cases import CHECKS, check

from superpod.collectives import algorithms, clock_log
from superpod.collectives.clock import Clock, ends, priced
from superpod.collectives.clock_log import STEP, Kind, Ledger, Log
from superpod.collectives.clock_price import Pricer
from superpod.collectives.communicator import WORLD, Communicator
from superpod.collectives.engine import Call
from superpod.collectives.hosts import Layout
from superpod.collectives.runtime import Runtime
from superpod.collectives.simulate import Machine
from superpod.collectives.statistics import Statistics
from superpod.interconnect import topology_file
from superpod.interconnect.env import Settings
from superpod.interconnect.errors import CollectiveMismatch, InvalidValue
from superpod.simulator import predict

TOPOLOGY = "atlas-950"


class Cards:
    """n cards as threads, each with a clock."""

    def __init__(self, n, topology=TOPOLOGY, placement="packed"):
        """`topology`: of all, or a list, one for each."""
        machines = [topology] * n if isinstance(topology, str) else topology
        pricers = {machine: Pricer.of(machine, placement, n) for machine in machines}
        self.clocks = [Clock(rank, pricers[machine]) for rank, machine in enumerate(machines)]
        self.comms = []
        for runtime, clock in zip(Runtime.in_memory(n, Settings()), self.clocks, strict=True):
            runtime.clock = clock
            self.comms.append(Communicator(runtime, runtime.engine(range(n), WORLD, 30)))

    def do(self, action):
        """Call action(comm, clock) on every card at once."""
        with ThreadPoolExecutor(len(self.comms)) as pool:
            return [
                f.result(60) for f in [pool.submit(action, *both) for both in zip(self.comms, self.clocks, strict=True)]
            ]


@pytest.fixture
def cards():
    made = []

    def make(*args, **options):
        made.append(Cards(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.do(lambda comm, clock: comm.close())


def sim(collective, algorithm, n, nbytes, topology=TOPOLOGY, root=0):
    """What superpod-sim says."""
    machine = Machine(topology_file.load(topology))
    (row,) = predict.rows(machine, n, collective, (algorithm,), [nbytes], root)
    return row


@pytest.mark.parametrize("collective", CHECKS)
@pytest.mark.parametrize("n", [2, 5, 8])
def test_every_call_has_superpod_sims_price(cards, collective, n):
    job = cards(n)
    for name in algorithms.names(collective):
        before = [clock.seconds for clock in job.clocks]
        job.do(lambda comm, clock, name=name: check(comm, collective, name, 1000))
        for rank, clock in enumerate(job.clocks):
            rows = [row for row in clock.operations if row["algorithm"] == name]
            assert [row["operation"] for row in rows] == [collective]
            assert clock.seconds > before[rank]
    log = Log(job.clocks[0]._groups, list(job.clocks[0]._kinds), job.clocks[0]._ledger.counts())
    for kind, times in log.calls():
        priced_alone = job.clocks[0]._pricer.price(*kind[:4], tuple(range(n)))
        row = sim(collective, kind.algorithm, n, kind.nbytes, root=kind.root)
        assert (priced_alone.seconds, priced_alone.bottleneck) == (row["seconds"], row["bottleneck"])
        assert times >= 1


def test_algorithms_with_a_shape_run_by_that_of_the_machine(cards):
    job = cards(16)  # two boards of 8, where 16 alone would be cut into 4 × 4
    job.do(lambda comm, clock: check(comm, "all_reduce", "per_dimension", 1000))
    (row,) = job.clocks[3].operations
    assert (
        row["modelled"]
        == sim("all_reduce", "per_dimension", 16, row["bytes"] // row["calls"])["seconds"] * row["calls"]
    )


def test_ranks_that_go_by_different_machines_disagree(cards):
    """Where the schedule follows from the machine; elsewhere it makes no difference."""
    job = cards(4, ["atlas-950", "cloudmatrix384", "atlas-950", "atlas-950"])
    job.do(lambda comm, clock: check(comm, "all_reduce", "ring", 1000))
    with pytest.raises(CollectiveMismatch) as error:
        job.do(lambda comm, clock: comm.all_reduce(np.ones(1000), algorithm="per_dimension"))
    for name in ("atlas-950", "cloudmatrix384"):
        assert f"by per_dimension in the shape of {name}" in str(error.value)


def test_calls_bytes_and_walls(cards):
    job = cards(3)
    array = np.ones(1000, np.float32)

    def work(comm, clock):
        for _ in range(4):
            comm.all_reduce(array.copy(), algorithm="ring")
        comm.all_reduce(np.ones(10, np.float32), algorithm="ring")
        comm.barrier(algorithm="tree")

    job.do(work)
    ring, barrier = job.clocks[1].operations
    assert (ring["operation"], ring["algorithm"], ring["calls"], ring["bytes"]) == ("all_reduce", "ring", 5, 16040)
    assert ring["wall"] > 0
    assert ring["modelled"] == pytest.approx(
        4 * sim("all_reduce", "ring", 3, 4000)["seconds"] + sim("all_reduce", "ring", 3, 40)["seconds"], rel=1e-15
    )
    assert (barrier["bytes"], barrier["modelled"]) == (0, sim("barrier", "tree", 3, 0)["seconds"])
    assert job.clocks[1].seconds == pytest.approx(ring["modelled"] + barrier["modelled"], rel=1e-15)


def test_groups_are_priced_where_their_ranks_sit(cards):
    job = cards(16)

    def work(comm, clock):
        near, far = comm.group(range(8)), comm.group(range(0, 16, 8))
        for group in (near, far):
            if group is not None:
                group.all_reduce(np.ones(1000, np.float32), algorithm="ring")

    job.do(work)
    kinds = {kind: number for clock in job.clocks[:1] for kind, number in clock._kinds.items()}
    assert len(kinds) == 2
    pricer = job.clocks[0]._pricer
    prices = [pricer.price_of(kind, ends(kind, 0, job.clocks[0]._groups)) for kind in kinds]
    assert [price.bottleneck for price in prices] == ["board", "rack"]
    assert job.clocks[9].operations == []


def test_placement_changes_the_price(cards):
    packed, spread = cards(4), cards(4, placement="spread")
    for job in (packed, spread):
        job.do(lambda comm, clock: comm.all_reduce(np.ones(1 << 16, np.float32), algorithm="ring"))
    assert spread.clocks[0].operations[0]["bottleneck"] == "spine"
    assert packed.clocks[0].operations[0]["bottleneck"] == "board"
    assert (spread.clocks[2].card, packed.clocks[2].card) == (2048, 2)
    assert (packed.clocks[0].topology, "card 2 of atlas-950" in repr(packed.clocks[2])) == (TOPOLOGY, True)


def test_messages_count_at_both_ends(cards):
    job = cards(2)

    def work(comm, clock):
        for nbytes in (8, 1 << 20):
            array = np.zeros(nbytes, np.uint8)
            comm.send(array, 1) if comm.rank == 0 else comm.recv(array, 0)

    job.do(work)
    (sent,), (received,) = (clock.operations for clock in job.clocks)
    assert (sent["operation"], sent["calls"], sent["bytes"]) == ("send", 2, (1 << 20) + 8)
    assert (received["operation"], received["modelled"]) == ("recv", sent["modelled"])
    assert received["modelled"] > (1 << 20) / 56e9 + 2 * 2.1e-6  # a link of 56 GB/s, 2.1 µs


def test_an_uneven_exchange_is_counted_as_an_even_one_of_the_ranks_own_size(cards):
    from superpod.collectives import flat
    from superpod.collectives.flat import Options

    job = cards(2)

    def work(comm, clock):
        sent, taken = ([1, 10], [1, 100]) if comm.rank == 0 else ([100, 2], [10, 2])
        array, out = np.zeros(sum(sent), np.uint8), np.zeros(sum(taken), np.uint8)
        flat.all_to_all(comm._engine, array, out, sent, taken, "uneven", Options("pairwise"), equal=False)

    job.do(work)
    assert [clock.operations[0]["bytes"] for clock in job.clocks] == [101, 102]
    assert job.clocks[0].seconds == sim("all_to_all", "pairwise", 2, 101)["seconds"]


def test_calls_stand_in_the_order_in_which_they_were_issued(cards):
    job = cards(2)

    def work(comm, clock):
        one, two = comm.group([0, 1]), comm.group([0, 1])
        works = [
            group.all_reduce(np.ones(size, np.float32), algorithm="ring", async_op=True)
            for size in (1000, 10)
            for group in (one, two)
        ]
        for each in reversed(works):
            each.wait()
        clock.step()

    job.do(work)
    for clock in job.clocks:
        order, counts = clock._ledger.take()
        kinds = [list(clock._kinds)[number - 1] if number else None for number in order.tolist()]
        assert [kind and (kind.nbytes, kind.group) for kind in kinds] == [(4000, 1), (4000, 2), (40, 1), (40, 2), None]
        assert counts.total() == 4


def test_on_several_hosts_the_schedule_is_that_of_the_hosts():
    pricer = Pricer.of(TOPOLOGY, "packed", 5)
    clock = Clock(0, pricer)
    group = clock.group(range(5), "world", Statistics(0, None))
    group.hosts = (0, 0, 0, 1, 1)
    group.count(Call("all_reduce", "", 1 << 20), "leaders", group.place())
    group.count(Call("all_reduce", "", 1 << 20), "ring", group.place())
    hosted, plain = clock.operations
    ran = Layout(group.hosts).build("all_reduce", "leaders")
    assert hosted["modelled"] == Machine(pricer.topology).predict(ran, 1 << 20).seconds
    assert hosted["modelled"] != sim("all_reduce", "leaders", 5, 1 << 20)["seconds"]
    assert plain["modelled"] == sim("all_reduce", "ring", 5, 1 << 20)["seconds"]


def test_a_call_that_was_refused_costs_nothing(cards):
    job = cards(2)

    def work(comm, clock):
        with pytest.raises(InvalidValue):
            comm.all_reduce(np.ones(3, np.float32), op="none such")

    job.do(work)
    assert job.clocks[0].seconds == 0
    assert job.clocks[0].operations == []


def test_without_a_machine_there_is_no_time():
    clock = Clock(0, None)
    clock.step()
    assert not clock.on
    assert "off, start with superpod-run --topology" in repr(clock)
    for ask in ("seconds", "operations", "topology", "card"):
        with pytest.raises(InvalidValue, match="there is no modelled clock without a machine: start with superpod-run"):
            getattr(clock, ask)


# Sums


def test_sums_do_not_depend_on_the_order_of_the_calls():
    pricer = Pricer.of(TOPOLOGY, "packed", 8)
    kinds = [Kind("all_reduce", "ring", 3**k, 0, 0) for k in range(12)]
    counts = Counter({k + 1: 7**k % 1000 + 1 for k in range(12)})
    sums = set()
    for seed in range(20):
        mixed = random.Random(seed).sample(range(12), 12)
        log = Log(
            [("world", tuple(range(8)))],
            [kinds[k] for k in mixed],
            Counter({place + 1: counts[k + 1] for place, k in enumerate(mixed)}),
        )
        rows = priced(log, lambda kind, log=log: pricer.price_of(kind, ends(kind, 0, log.groups)))
        sums.add(rows["all_reduce", "ring"]["modelled"])
    assert len(sums) == 1


# The log


def test_a_log_survives_the_wire():
    ledger = Ledger()
    for place, number in ((3, 2), (0, 1), (2, STEP), (1, 2), (3, 1)):
        ledger.write(place, number)
    assert ledger.counts() == Counter({1: 2, 2: 2})
    order, counts = ledger.take()
    kinds = [Kind("all_reduce", "ring", 8, 0, 0), Kind("send", "direct", 1 << 40, 1, 1)]
    kinds[1] = kinds[1]._replace(hosts=(0, 1))
    log = Log([("world", (0, 1)), ("a\udcff", (1,))], kinds, counts, order, 3)
    back = Log.unpacked(log.packed())
    assert back.order.tolist() == [1, 2, STEP, 2, 1]
    assert (back.kinds, back.counts, back.unknown) == (kinds, counts, 3)
    assert back.groups[0] == ("world", (0, 1))
    assert list(back.calls()) == [(kinds[0], 2), (kinds[1], 2)]
    assert not back.complete
    assert ledger.counts() == Counter({1: 2, 2: 2})
    ledger.write(9, 1)
    assert ledger.counts()[1] == 3
    order, counts = ledger.take()
    assert back.then(Log(log.groups, kinds, counts, order)).counts == Counter({1: 3, 2: 2})


def test_ten_thousand_steps_take_little_room():
    order = np.array([1, 1, 2, STEP] * 10_000)
    log = Log(
        [("world", tuple(range(64)))], [Kind("all_reduce", "ring", 8, 0, 0)] * 2, Counter({1: 20_000, 2: 10_000}), order
    )
    assert log.complete
    assert len(log.packed()) < 2000


def test_beyond_its_room_a_card_only_counts(monkeypatch):
    monkeypatch.setattr(clock_log, "MOST_CALLS", 5)
    ledger = Ledger()
    for place in range(12):
        ledger.write(place, 1 + place % 2)
    ledger.write(12, STEP)
    assert ledger.counts() == Counter({1: 6, 2: 6})
    order, counts = ledger.take()
    assert len(order) == 5
    assert not Log(kinds=[], counts=counts, order=order).complete
    assert (counts, ledger.counts()) == (Counter({1: 6, 2: 6}), Counter({1: 6, 2: 6}))


def test_calls_of_too_many_kinds_are_left_out_and_said(monkeypatch, cards):
    monkeypatch.setattr("superpod.collectives.clock.MOST_KINDS", 2)
    job = cards(2)
    job.do(lambda comm, clock: [comm.all_reduce(np.ones(size, np.uint8), algorithm="ring") for size in (1, 2, 3, 4, 1)])
    assert job.clocks[0].operations[0]["calls"] == 3
    assert job.clocks[0]._unknown == 2
