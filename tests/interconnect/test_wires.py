"""Links and ways: closed forms against routing one by one, shared links, detours, spares, graphs."""

from __future__ import annotations

import numpy as np
import pytest

from superpod.interconnect import topology_file
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Cable, Level, Spares, Topology
from superpod.interconnect.topology_faults import Faults, Wires, lay
from superpod.interconnect.wires import LevelWires
from superpod.interconnect.wires_partial import partial_pairs
from superpod.interconnect.wires_regular import all_pairs, fill, shifts


def level(name: str, kind: str, size: int, **more) -> Level:
    return Level(name, kind, size, 1e9, 1e-6 * (1 + len(name)), **more)


MESH = (level("a", "full_mesh", 4), level("bb", "full_mesh", 3))
MACHINES = {
    "mesh": MESH,
    "mesh behind ports": (*MESH, level("s", "switch", 3)),
    "tree": (level("a", "switch", 4), level("bb", "switch", 3, trunk=True), level("c", "switch", 3, trunk=True)),
    "tree below ports": (level("a", "switch", 4), level("bb", "switch", 3, trunk=True), level("c", "switch", 3)),
    "trunks on ports": (
        level("a", "switch", 4),
        level("bb", "switch", 3),
        level("c", "fat_tree", 3, trunk=True, tiers=2),
    ),
    "torus": (level("a", "ring", 4), level("bb", "ring", 5)),
    "ring and mesh": (level("a", "ring", 2), level("bb", "full_mesh", 5)),
    "mesh of switches": (level("a", "switch", 4), level("bb", "full_mesh", 3)),
    "rings behind ports": (level("a", "ring", 6), level("s", "switch", 5)),
}
every_machine = pytest.mark.parametrize("levels", MACHINES.values(), ids=MACHINES)


def machine(levels: tuple[Level, ...], routing: str = "detour", faults: Faults | None = None) -> Wires:
    return lay(Topology("t", levels=levels, routing=routing), faults)


def regular(wires: Wires) -> LevelWires:
    assert isinstance(wires, LevelWires)
    return wires


def one(wires: Wires, src: int, dst: int) -> tuple[dict[str, float], float]:
    load, latency = wires.carry(np.array([src]), np.array([dst]), np.ones(1))
    return {wires.words(int(i)): round(float(load[i]), 6) for i in np.flatnonzero(load)}, latency


class TestClosedForms:
    @every_machine
    @pytest.mark.parametrize("routing", ["detour", "all_paths"])
    def test_all_pairs_are_what_routing_says(self, levels: tuple[Level, ...], routing: str) -> None:
        wires = regular(machine(levels, routing))
        n = wires.ncards
        src, dst = np.divmod(np.arange(n * n), n)
        away = src != dst
        load, latency = wires.carry(src[away], dst[away], np.ones(int(away.sum())))
        closed = all_pairs(wires, n)
        assert closed is not None
        np.testing.assert_allclose(closed[0], load, rtol=1e-12, atol=1e-9)
        assert closed[1] == pytest.approx(latency)

    @every_machine
    def test_groups_are_what_routing_says(self, levels: tuple[Level, ...]) -> None:
        wires = regular(machine(levels))
        n, size, stride = wires.ncards, levels[-1].size, wires.unit[-1]
        ranks = np.arange(n)
        for k, apart in ((levels[0].size, 1), (size, stride)):
            x = ranks // apart % k
            src = np.tile(ranks, k - 1)
            dst = np.concatenate([ranks + ((x + d) % k - x) * apart for d in range(1, k)])
            load, latency = wires.carry(src, dst, np.ones(len(src)))
            closed = all_pairs(wires, n, k, apart)
            assert closed is not None
            np.testing.assert_allclose(closed[0], load, rtol=1e-12, atol=1e-9)
            assert closed[1] == pytest.approx(latency)

    @every_machine
    def test_shifts_are_what_routing_says(self, levels: tuple[Level, ...]) -> None:
        wires = regular(machine(levels))
        n = wires.ncards
        closed = shifts(wires, n, np.arange(1, n))
        if closed is None:
            assert "ring" in {lv.kind for lv in levels} or not levels[-1].switched
            return
        for d in range(1, n):
            load, latency = wires.carry(np.arange(n), (np.arange(n) + d) % n, np.ones(n))
            np.testing.assert_allclose(closed.load[d - 1], [load[span].max() for span in wires.spans])
            assert closed.latency[d - 1] == pytest.approx(latency)

    def test_part_of_a_machine(self) -> None:
        wires = regular(machine(MACHINES["mesh behind ports"]))
        assert fill(wires, 24) == (4, 3, 2)
        assert fill(wires, 8) == (4, 2, 1)
        assert fill(wires, 3) == (3, 1, 1)
        assert fill(wires, 13) is None
        assert fill(regular(machine(MACHINES["torus"])), 8) is None  # part of a ring is a line


class TestPartOfAMachine:
    @pytest.mark.parametrize("name", ["mesh", "mesh behind ports", "tree", "tree below ports", "trunks on ports"])
    def test_all_pairs_are_what_routing_says(self, name: str) -> None:
        wires = regular(machine(MACHINES[name]))
        for n in range(2, wires.ncards + 1, 3):
            src, dst = np.divmod(np.arange(n * n), n)
            away = src != dst
            load, latency = wires.carry(src[away], dst[away], np.ones(int(away.sum())))
            closed = partial_pairs(wires, n)
            assert closed is not None
            np.testing.assert_allclose(closed[0], load, rtol=1e-12, atol=1e-9, err_msg=str(n))
            assert closed[1] >= latency - 1e-12

    def test_rings_and_several_ways_are_left_to_routing(self) -> None:
        assert partial_pairs(regular(machine(MACHINES["torus"])), 7) is None
        assert partial_pairs(regular(machine(MACHINES["mesh"], "all_paths")), 7) is None


class TestWays:
    def test_a_mesh_corrects_one_coordinate_a_hop(self) -> None:
        assert one(machine(MESH), 0, 5) == (
            {"the bb link 0→4": 1.0, "the a link 4→5": 1.0},
            pytest.approx(5e-6),
        )

    def test_a_switch_brings_one_home_at_once(self) -> None:
        assert one(machine(MACHINES["mesh behind ports"]), 0, 17) == (
            {"the s port up from 0": 1.0, "the s port down to 17": 1.0},
            pytest.approx(2e-6),
        )

    def test_a_trunk_is_reached_through_the_switches_below(self) -> None:
        ways, _ = one(machine(MACHINES["tree"]), 0, 35)
        assert set(ways) == {
            "the a port up from 0",
            "the bb trunk up from 0",
            "the c trunk up from 0",
            "the c trunk down to 2",
            "the bb trunk down to 8",
            "the a port down to 35",
        }

    def test_a_ring_goes_the_shorter_way_and_shares_a_tie(self) -> None:
        wires = machine((level("r", "ring", 4),))
        assert set(one(wires, 0, 3)[0]) == {"the r link 0→3"}
        ways, latency = one(wires, 0, 2)
        assert ways == {f"the r link {x}": 0.5 for x in ("0→1", "1→2", "0→3", "3→2")}
        assert latency == pytest.approx(4e-6)

    def test_all_paths_spread_over_the_neighbours(self) -> None:
        ways, latency = one(machine((level("m", "full_mesh", 4),), "all_paths"), 0, 1)
        assert ways == {f"the m link {x}": 0.333333 for x in ("0→1", "0→2", "2→1", "0→3", "3→1")}
        assert latency == pytest.approx(4e-6)


class TestFaults:
    def test_a_cut_link_is_avoided_through_neighbours(self) -> None:
        wires = machine((level("m", "full_mesh", 4),), faults=Faults(cut=("0-1",)))
        ways, latency = one(wires, 0, 1)
        assert ways == {f"the m link {x}": 0.5 for x in ("0→2", "2→1", "0→3", "3→1")}
        assert latency == pytest.approx(4e-6)

    def test_a_cut_ring_is_a_line(self) -> None:
        ways, _ = one(machine((level("r", "ring", 4),), faults=Faults(cut=("0-1",))), 0, 1)
        assert set(ways) == {f"the r link {x}" for x in ("0→3", "3→2", "2→1")}

    def test_routing_shortest_refuses_a_cut(self) -> None:
        wires = machine((level("m", "full_mesh", 4),), "shortest", Faults(cut=("0-1",)))
        with pytest.raises(
            InvalidValue, match=r"m link 0→1 is cut and routing=shortest knows no way around; take detour"
        ):
            one(wires, 0, 1)

    def test_a_slow_link_and_a_straggler_carry_less(self) -> None:
        wires = regular(machine((level("m", "full_mesh", 4),), faults=Faults(slow=("0-1:0.5",), straggler=("2:4",))))
        rate = {wires.words(i): r for i, r in enumerate(wires.rate.tolist())}
        assert rate["the m link 1→0"] == 0.5e9
        assert rate["the m link 2→3"] == rate["the m link 3→2"] == 0.25e9
        assert rate["the m link 3→1"] == 1e9

    def test_one_of_several_ports_can_be_cut(self) -> None:
        wires = regular(machine((level("s", "switch", 4, ports=4),), faults=Faults(cut=("1@s",))))
        assert wires.rate.tolist() == [4e9, 3e9, 4e9, 4e9] * 2

    def test_one_of_several_planes_can_be_cut(self) -> None:
        healthy, cut = (lay(topology_file.load("cloudmatrix384"), Faults(cut=cut)) for cut in ((), ("@pod",)))
        assert cut.rate[cut.spans[1]] == pytest.approx(healthy.rate[healthy.spans[1]] * 6 / 7)
        assert cut.rate[cut.spans[0]] == pytest.approx(healthy.rate[healthy.spans[0]])

    def test_a_spare_is_a_hop_further_away(self) -> None:
        topology = Topology("t", levels=MESH, spares=Spares("a", 1, 5e-7))
        assert one(lay(topology, Faults(dead=("1",))), 0, 1)[1] == pytest.approx(2.5e-6)
        assert one(lay(topology, Faults(dead=("1",))), 2, 3)[1] == pytest.approx(2e-6)

    @pytest.mark.parametrize(
        ("faults", "message"),
        [
            (Faults(cut=("0-5",)), r"cut '0-5': cards 0 and 5 have no link of their own \(they differ at: a, bb\)"),
            (Faults(cut=("0-99",)), r"cut: card '99' does not exist; cards are 0 to 11"),
            (Faults(cut=("0",)), r"cut '0' must name a link as 0-1, two cards, or as 5@spine"),
            (Faults(cut=("0@bb",)), r"cut '0@bb': 'bb' is no switch level; those are: none"),
            (Faults(cut=("0-1", "0-2", "0-3")), r"the a link 0→1 is cut and no way around it is left; cut less"),
            (Faults(cut=("@a",)), r"cut '@a': 'a' is no level of several planes; those are: none"),
            (Faults(slow=("0-1:2",)), r"slow '0-1:2' must be .* a factor from 1e-06 to 1, such as 0-1:0.5"),
            (Faults(slow=("0-1:1e-300",)), r"slow '0-1:1e-300' must be .* a factor from 1e-06 to 1"),
            (Faults(straggler=("3",)), r"straggler '3' must be .* a factor from 1 to 1000000, such as 7:2"),
            (Faults(straggler=("3:inf",)), r"straggler '3:inf' must be .* a factor from 1 to 1000000, such as 7:2"),
            (Faults(straggler=("3:nan",)), r"straggler '3:nan' must be .* a factor from 1 to 1000000, such as 7:2"),
            (Faults(straggler=("3:1e308",)), r"straggler '3:1e308' must be .* a factor from 1 to 1000000"),
            (Faults(straggler=("3:2", "4:2", "3:3")), r"straggler '3:2' and straggler '3:3' are about the same; leave"),
            (Faults(slow=("0-1:0.5", "1-0:0.2")), r"slow '0-1:0.5' and slow '1-0:0.2' are about the same"),
            (Faults(cut=("0-1", "1-0")), r"cut '0-1' and cut '1-0' are about the same; leave one out"),
            (Faults(dead=("0", "0")), r"dead '0' and dead '0' are about the same; leave one out"),
            (Faults(dead=("0", "1")), r"dead 0, 1: a 0 has 1 spare for 2 dead cards; leave cards out of the job"),
        ],
    )
    def test_impossible_faults_are_refused(self, faults: Faults, message: str) -> None:
        with pytest.raises(InvalidValue, match=message):
            lay(Topology("t", levels=MESH, spares=Spares("a", 1)), faults)

    @pytest.mark.parametrize("text", ["1@s", "@s"])
    def test_a_port_and_a_plane_are_cut_once(self, text: str) -> None:
        with pytest.raises(InvalidValue, match=f"cut '{text}' and cut '{text}' are about the same; leave one out"):
            machine((level("s", "switch", 4, ports=4, planes=4),), faults=Faults(cut=(text, text)))

    def test_the_only_port_cannot_be_cut(self) -> None:
        with pytest.raises(InvalidValue, match=r"cut '1@s': it is the only port there, so the card would be cut off"):
            machine((level("s", "switch", 4),), faults=Faults(cut=("1@s",)))

    def test_without_spares_no_card_may_die(self) -> None:
        with pytest.raises(InvalidValue, match=r"dead '1': torus has no spare cards; leave the card out"):
            lay(topology_file.load("torus"), Faults(dead=("1",)))


def graph(*pairs: tuple[str, str], cards: int = 3) -> Topology:
    return Topology("g", cables=(Cable("wire", 1e9, 1e-6, pairs),), named_cards=cards)


class TestGraphs:
    def test_ways_are_the_shortest(self) -> None:
        wires = lay(graph(("0", "1"), ("1", "2"), ("2", "hub"), ("hub", "0")))
        assert one(wires, 0, 1) == ({"the wire link 0→1": 1.0}, pytest.approx(1e-6))
        assert len(one(wires, 0, 2)[0]) == 2

    def test_a_cut_is_avoided(self) -> None:
        wires = lay(graph(("0", "1"), ("1", "2"), ("0", "2")), Faults(cut=("0-1",)))
        assert set(one(wires, 0, 1)[0]) == {"the wire link 0→2", "the wire link 2→1"}

    @pytest.mark.parametrize(
        ("topology", "message"),
        [
            (graph(("0", "1")), r"card 0 has no way to card 2; add a link to one of them, or cut less"),
            (graph(("0", "7")), r"links 'wire': card 7 does not exist, cards = 3 are 0 to 2"),
            (graph(("0", "0")), r"links 'wire': 0-0 joins a node with itself"),
            (graph(*((str(i), "hub") for i in range(5000)), cards=5000), r"5001 nodes are more than 4096; describe"),
        ],
    )
    def test_impossible_graphs_are_refused(self, topology: Topology, message: str) -> None:
        with pytest.raises(InvalidValue, match=message):
            lay(topology)

    def test_a_cut_that_parts_the_machine_is_refused(self) -> None:
        with pytest.raises(InvalidValue, match=r"card 0 has no way to card 1"):
            lay(graph(("0", "1"), cards=2), Faults(cut=("0-1",)))

    def test_a_link_without_pairs_is_refused(self) -> None:
        with pytest.raises(InvalidValue, match=r"links 'wire' have no pairs; list them"):
            graph()
