"""Predicted times: exact identities, sharing, protocols, faults, and no time below what is possible."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpod.collectives import algorithms
from superpod.collectives.algorithms import per_dimension
from superpod.collectives.schedule import ROOTED, Schedule, Step
from superpod.collectives.simulate import MEMORY, Machine, suited
from superpod.interconnect import topology_file
from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Cable, Level, Protocol, Spares, Topology
from superpod.interconnect.topology_faults import Faults

S = 64 * 10**9  # divides into the chunks of 8×8 meshes; at 1 GB/s a link n·b is 64 s


def level(kind: str, size: int, latency: float = 0.0, rate: float = 1e9, **more) -> Level:
    return Level(f"{kind}{size}{more}", kind, size, rate, latency, **more)


def mesh(*sizes: int, **more) -> Machine:
    levels = tuple(replace(level("full_mesh", size), name=f"d{i}") for i, size in enumerate(sizes))
    return Machine(Topology("mesh", levels=levels, **more))


def seconds(machine: Machine, schedule: Schedule, nbytes: float = S) -> Fraction:
    return Fraction(machine.predict(schedule, nbytes).seconds)


class TestIdentities:
    """On an 8×8 full mesh, in units of n·b = 64 s: exact, bit for bit."""

    def test_all_reduce_in_halves_reaches_the_bound_in_four_steps(self) -> None:
        schedule = per_dimension.all_reduce(64, shape=(8, 8))
        prediction = mesh(8, 8).predict(schedule, S)
        assert prediction.nsteps == 4
        assert Fraction(prediction.seconds) == Fraction(9, 64) * 64
        assert Fraction(prediction.bound) == Fraction(9, 64) * 64
        assert prediction.share_of_bound == 1.0
        assert [usage.busiest for usage in prediction.usage] == [1.0, 1.0]
        assert [usage.mean for usage in prediction.usage] == [1.0, 1.0]  # all links, all the time

    def test_unsplit_takes_twice_as_long(self) -> None:
        schedule = per_dimension.all_reduce(64, shape=(8, 8), split=False)
        assert seconds(mesh(8, 8), schedule) == Fraction(9, 32) * 64

    def test_all_to_all_takes_an_eighth_and_1_78_times_a_clos(self) -> None:
        exchange = algorithms.build("all_to_all", "direct", 64)
        clos = Machine(Topology("clos", levels=(level("switch", 64, rate=14e9),)))
        assert seconds(mesh(8, 8), exchange) == Fraction(1, 8) * 64
        ratio = mesh(8, 8).predict(exchange, S).seconds / clos.predict(exchange, S).seconds
        assert ratio == pytest.approx(Fraction(16, 9), rel=1e-15)
        assert f"{ratio:.2f}" == "1.78"

    def test_two_ways_all_to_all_loads_both_dimensions_alike(self) -> None:
        schedule = algorithms.get("all_to_all", "two_path").build(64, shape=(8, 8))
        prediction = mesh(8, 8).predict(schedule, S)
        assert Fraction(prediction.seconds) == Fraction(1, 8) * 64
        assert [usage.mean for usage in prediction.usage] == [1.0, 1.0]

    def test_fourteen_rings_reach_the_bound_but_for_nothing(self) -> None:
        schedule = algorithms.get("all_reduce", "multi_ring").build(64, shape=(8, 8))
        assert mesh(8, 8).predict(schedule, S).share_of_bound == pytest.approx(1.0, rel=1e-12)

    def test_six_rings_use_six_sevenths_of_a_board(self) -> None:
        schedule = algorithms.get("all_reduce", "multi_ring").build(8, shape=(8,))
        prediction = mesh(8).predict(schedule, S)
        assert prediction.usage[0].mean == pytest.approx(6 / 7)

    @pytest.mark.parametrize("n", [2, 3, 5, 8, 16])
    def test_a_ring_on_a_ring(self, n: int) -> None:
        machine = Machine(Topology("r", levels=(level("ring", n, latency=1e-6),)))
        prediction = machine.predict(algorithms.build("all_reduce", "ring", n), S)
        link = 2 if n == 2 else 1  # two cards have two links between them, which share
        assert prediction.seconds == pytest.approx(2 * (n - 1) * (1e-6 + S / n / 1e9 / link))

    def test_nccls_constants_give_the_measured_point(self) -> None:
        """Ring LL on 8 H100 at 1 KiB: 6.6 + 14 × 0.6 = 15.0 µs."""
        machine = Machine(topology_file.load("dgx-h100"))
        prediction = machine.predict(algorithms.build("all_reduce", "ring", 8), 1024)
        assert prediction.protocol == "LL"
        assert prediction.seconds == pytest.approx(15.0e-6, rel=0.01)


class TestModel:
    def test_flows_that_share_a_link_share_its_bandwidth(self) -> None:
        hosts = (level("switch", 4, rate=1e12), level("switch", 2, trunk=True))
        machine = Machine(Topology("hosts", levels=hosts))
        for flows in (1, 2, 4):
            step = Step.of(np.arange(flows), 4 + np.arange(flows), 0)
            schedule = Schedule("broadcast", "x", 8, 1, 1, lambda _, step=step: step)
            assert machine.predict(schedule, 1e9).seconds == pytest.approx(flows, rel=1e-2)

    def test_oversubscription_and_ports_and_efficiency_count(self) -> None:
        one = Level("s", "switch", 4, 1e9, ports=4, efficiency=0.5, oversubscription=2.0)
        assert one.rate == 1e9

    def test_adding_has_a_cost_and_can_be_the_bottleneck(self) -> None:
        slow = replace(mesh(8).topology, memory=1e9)
        schedule = algorithms.build("all_reduce", "two_shot", 8)
        prediction = Machine(slow).predict(schedule, 8e9)
        assert prediction.bottleneck == MEMORY
        assert prediction.seconds == pytest.approx(
            7 * 3 + 1
        )  # 7 GB added, three bytes moved for each; then 1 s of link

    def test_the_fastest_protocol_is_taken(self) -> None:
        small, bulk = Protocol("small", call=1e-6, efficiency=0.1), Protocol("bulk", call=1e-3)
        machine = mesh(4, protocols=(small, bulk))
        ring = algorithms.build("all_reduce", "ring", 4)
        assert machine.predict(ring, 1024).protocol == "small"
        assert machine.predict(ring, 1 << 30).protocol == "bulk"

    def test_segments_cost_what_the_best_cut_costs(self) -> None:
        machine = mesh(2, protocols=(Protocol(segment=1e-6),))
        send = Schedule("broadcast", "x", 2, 1, 1, lambda _: Step.of(0, 1, 0))
        by_hand = min(1e-6 * k + 1.0 / k for k in range(1, 5000))  # of 1 s: k segments' cost, and waiting for the last
        assert machine.predict(send, 1e9).seconds - 1.0 == pytest.approx(by_hand, rel=1e-3)

    def test_messages_beyond_the_first_cost_their_sender(self) -> None:
        send = Schedule("broadcast", "x", 4, 1, 1, lambda _: Step.of(0, [1, 2, 3], 0))
        assert mesh(4, message=1.0).predict(send, 0).seconds == 2.0

    def test_processes_of_one_host_share_its_cores_and_memory(self) -> None:
        """Four ranks send 1 GB each: 4 messages over 2 cores, and 4 bytes of memory traffic a byte (in and out)."""
        ring = Schedule("broadcast", "x", 4, 1, 1, lambda _: Step.of([0, 1, 2, 3], [1, 2, 3, 0], 0))
        host = Topology("h", levels=(level("switch", 4, rate=1e15),), memory=1e9, message=1.0, cores=2)
        assert Machine(host).predict(ring, 1e9).seconds == pytest.approx(4 / 2 + 4 * 4)
        assert Machine(replace(host, cores=0)).predict(ring, 1e9).seconds < 0.01

    def test_placement_decides_what_is_shared(self) -> None:
        hosts = (level("switch", 2, rate=1e12), level("switch", 2, trunk=True))
        machine = Machine(Topology("hosts", levels=hosts))
        pairs = Schedule("broadcast", "x", 4, 1, 1, lambda _: Step.of([0, 2], [1, 3], 0))
        near = machine.predict(pairs, 1e9)
        far = machine.predict(pairs, 1e9, cards=np.array([0, 2, 1, 3]))
        assert near.seconds < 0.01
        assert far.seconds == pytest.approx(2.0, rel=1e-2)

    def test_it_says_the_same_twice(self) -> None:
        runs = {
            Machine(topology_file.load("torus")).predict(algorithms.build("all_reduce", "ring", 256), 1e6).seconds
            for _ in range(2)
        }
        assert len(runs) == 1

    def test_impossible_calls_are_refused(self) -> None:
        ring = algorithms.build("all_reduce", "ring", 9)
        with pytest.raises(InvalidValue, match=r"9 cards are more than the 8 of mesh; take fewer, or a topology"):
            mesh(8).predict(ring, 1)
        ring = algorithms.build("all_reduce", "ring", 2)
        with pytest.raises(InvalidValue, match=r"nbytes=-1 must be at least 0"):
            mesh(8).predict(ring, -1)
        with pytest.raises(InvalidValue, match=r"placement of 2 ranks must name 2 different cards among 0 to 7"):
            mesh(8).predict(ring, 1, cards=np.array([3, 3]))


class TestFaults:
    RING = algorithms.build("all_reduce", "ring", 8)

    def test_a_cut_a_slow_link_and_a_straggler_slow_a_ring_down(self) -> None:
        topology = mesh(8).topology
        whole = seconds(Machine(topology), self.RING)
        assert seconds(Machine(topology, Faults(slow=("0-1:0.5",))), self.RING) == 2 * whole
        assert seconds(Machine(topology, Faults(straggler=("3:3",))), self.RING) == 3 * whole
        assert seconds(Machine(topology, Faults(cut=("0-1",))), self.RING) == whole  # six neighbours carry a sixth each

    def test_a_cut_ring_takes_as_long_as_a_line(self) -> None:
        """The link next to the cut carries what it always did, and all that goes the other way around."""
        topology = Topology("r", levels=(level("ring", 8, latency=1e-6),))
        whole, cut = (Machine(topology, f).predict(self.RING, S) for f in (None, Faults(cut=("0-1",))))
        assert cut.seconds == pytest.approx(whole.seconds + 14 * 6e-6)  # the other direction's links were idle

    def test_a_spare_costs_latency_only(self) -> None:
        board = Level("board", "full_mesh", 8, 1e9, 1e-6)
        topology = Topology("b", levels=(board,), spares=Spares("board", 1, 5e-7))
        healthy, spared = (Machine(topology, f).predict(self.RING, S).seconds for f in (None, Faults(dead=("3",))))
        assert spared - healthy == pytest.approx(14 * 5e-7)

    def test_a_faulty_machine_is_never_faster(self) -> None:
        topology = topology_file.load("ub-mesh-rack")
        faults = Faults(("0-1",), ("8-9:0.1",), ("7:2",), ("3",))
        for name in algorithms.names("all_reduce"):
            schedule = algorithms.build("all_reduce", name, 64)
            assert seconds(Machine(topology, faults), schedule, 1e6) >= seconds(Machine(topology), schedule, 1e6)


KINDS = st.sampled_from(["full_mesh", "ring", "switch", "fat_tree"])


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    levels: list[Level] = []
    for i in range(draw(st.integers(1, 3))):
        kind = draw(KINDS)
        switched = kind in ("switch", "fat_tree")
        levels.append(
            Level(
                f"l{i}",
                kind,
                draw(st.integers(2, 4)),
                draw(st.sampled_from([1e9, 3e9, 5e10])),
                draw(st.sampled_from([0.0, 1e-6])),
                trunk=switched and bool(levels) and levels[-1].switched and draw(st.booleans()),
                oversubscription=draw(st.sampled_from([1.0, 3.0])),
            )
        )
    protocols = draw(st.sampled_from([(Protocol(),), (Protocol(call=1e-6, efficiency=0.3), Protocol(segment=1e-6))]))
    routing = draw(st.sampled_from(["shortest", "detour", "all_paths"]))
    return Topology("any", levels=tuple(levels), protocols=protocols, routing=routing, memory=1e11)


class TestBounds:
    @given(topology=topologies(), data=st.data(), nbytes=st.sampled_from([0, 1, 1000, 10**6, 10**9]))
    @settings(deadline=None, max_examples=150)
    def test_no_time_beats_them(self, topology: Topology, data: st.DataObject, nbytes: int) -> None:
        n = data.draw(st.integers(1, topology.ncards))
        collective = data.draw(st.sampled_from(COLLECTIVES))
        name = data.draw(st.sampled_from(algorithms.names(collective)))
        root = data.draw(st.integers(0, n - 1)) if collective in ROOTED else 0
        machine = Machine(topology)
        schedule = data.draw(
            st.sampled_from([algorithms.build(collective, name, n, root), suited(machine, collective, name, n, root)])
        )
        prediction = machine.predict(schedule, nbytes)
        assert prediction.seconds >= prediction.bound * (1 - 1e-9)
        self.beats_no_textbook_bound(topology, collective, n, nbytes, prediction.seconds)

    def beats_no_textbook_bound(self, topology: Topology, collective: str, n: int, nbytes: int, found: float) -> None:
        """2(p−1)/p·n through all that a card has; written down again, without bounds.py."""
        if collective == "all_reduce" and n > 1:
            out = sum(lv.rate * lv.peers for lv in topology.levels if not lv.trunk) or topology.levels[0].rate
            best = max(p.efficiency for p in topology.protocols)
            assert found >= 2 * (n - 1) / n * nbytes / (out * best) * (1 - 1e-9)

    @given(n=st.integers(2, 20), data=st.data())
    @settings(deadline=None)
    def test_one_port_needs_log2_steps(self, n: int, data: st.DataObject) -> None:
        """Where nobody sends to more than one in a step, knowledge at most doubles: latency · ceil(log2 n)."""
        collective = data.draw(st.sampled_from(["all_reduce", "all_gather", "reduce_scatter", "broadcast", "barrier"]))
        name = data.draw(st.sampled_from(algorithms.names(collective)))
        schedule = algorithms.build(collective, name, n)
        for step in schedule.steps():
            away = step.src != step.dst
            pairs = {(int(a), int(b)) for a, b in zip(step.src[away], step.dst[away], strict=True)}
            if len({a for a, _ in pairs}) < len(pairs) or len({b for _, b in pairs}) < len(pairs):
                return
        machine = Machine(Topology("s", levels=(level("switch", 20, latency=1.0),)))
        assert machine.predict(schedule, 0).seconds >= math.ceil(math.log2(n))

    def test_a_graph_has_bounds_too(self) -> None:
        cables = (Cable("wire", 1e9, 1e-6, (("0", "hub"), ("1", "hub"), ("2", "hub"))),)
        machine = Machine(Topology("g", cables=cables, named_cards=3))
        for name in algorithms.names("all_reduce"):
            prediction = machine.predict(algorithms.build("all_reduce", name, 3), 1e9)
            assert prediction.seconds >= prediction.bound > 1.0


class TestScale:
    @pytest.mark.parametrize("collective", COLLECTIVES)
    def test_every_algorithm_at_15488_cards_within_a_second(self, collective: str) -> None:
        machine = Machine(topology_file.load("atlas-960"))
        for name in algorithms.names(collective):
            start = time.process_time()
            schedule = suited(machine, collective, name, 15488)
            assert machine.predict(schedule, 64 << 20).seconds > 0
            assert time.process_time() - start < 1.0, name

    @pytest.mark.parametrize("name", topology_file.presets())
    def test_every_preset_takes_every_algorithm(self, name: str) -> None:
        machine = Machine(topology_file.load(name))
        for collective in COLLECTIVES:
            for algorithm in algorithms.names(collective):
                schedule = suited(machine, collective, algorithm, machine.topology.ncards)
                prediction = machine.predict(schedule, 1 << 20)
                assert prediction.seconds >= prediction.bound * (1 - 1e-12) > 0
