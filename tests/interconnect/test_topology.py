"""Topologies: presets, files as people write them, and what is refused."""

from __future__ import annotations

import pytest

from superpod.interconnect import topology_file
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Level, Protocol, Topology
from superpod.interconnect.topology_faults import Faults
from superpod.interconnect.topology_write import to_toml
from superpod.interconnect.units import parse_rate, rate_text

PRESETS = topology_file.presets()

TEN_LINES = """
title = "two hosts"
[[level]]
name = "host"
kind = "switch"
size = 8
bandwidth = "450GB/s"
latency = "600ns"
[[level]]
name = "network"
kind = "full_mesh"
size = 2
bandwidth = "400Gb/s"
"""

GRAPH = """
cards = 3
[[links]]
name = "cable"
bandwidth = "1GB/s"
pairs = [["0", "1"], ["1", "2"]]
"""


class TestRates:
    @pytest.mark.parametrize(
        ("text", "rate"), [("56GB/s", 56e9), ("112 Gb/s", 14e9), ("3.2 TB/s", 3.2e12), ("1kB/s", 1e3), ("8b/s", 1.0)]
    )
    def test_bytes_and_bits(self, text: str, rate: float) -> None:
        assert parse_rate(text) == rate

    @pytest.mark.parametrize("text", ["56", "56GB", "-1GB/s", "GB/s", "1 GiB/s", "1e400 GB"])
    def test_nonsense_is_refused(self, text: str) -> None:
        with pytest.raises(InvalidValue, match=r"rate '.*' must be a number above 0 with GB/s \(bytes\) or Gb/s"):
            parse_rate(text)

    @pytest.mark.parametrize(
        ("rate", "text"), [(56e9, "56 GB/s"), (1.008e12, "1.008 TB/s"), (16.384e15, "16.38 PB/s"), (5, "5 B/s")]
    )
    def test_words(self, rate: float, text: str) -> None:
        assert rate_text(rate) == text


class TestPresets:
    @pytest.mark.parametrize(
        ("name", "cards"),
        [
            ("atlas-950", 8192),
            ("atlas-960", 15488),
            ("cloudmatrix384", 384),
            ("dgx-h100", 256),
            ("ethernet-hosts", 64),
            ("mi300x", 8),
            ("nvl72", 72),
            ("this-host", 256),
            ("torus", 256),
            ("ub-mesh-rack", 64),
        ],
    )
    def test_has_its_cards(self, name: str, cards: int) -> None:
        assert topology_file.load(name).ncards == cards

    def test_none_is_forgotten_above(self) -> None:
        assert len(PRESETS) == 10

    @pytest.mark.parametrize("name", PRESETS)
    def test_says_where_its_figures_come_from(self, name: str) -> None:
        topology = topology_file.load(name)
        assert topology.assumed or topology.sources
        assert all("bandwidth" in level.marks and "latency" in level.marks for level in topology.levels)

    @pytest.mark.parametrize("name", PRESETS)
    def test_reads_back_what_it_writes(self, name: str) -> None:
        topology = topology_file.load(name)
        assert topology_file.parse(to_toml(topology), name) == topology

    def test_the_lanes_of_ub_mesh(self) -> None:
        """784 GB/s in the rack, 168 to peer racks, 56 to the spine."""
        rates = {level.name: level.rate * level.peers / 1e9 for level in topology_file.load("atlas-950").levels}
        assert rates["board"] + rates["rack"] == 784
        assert rates["pod-row"] + rates["pod"] == 168
        assert rates["spine"] == 56

    def test_what_is_assumed_about_the_atlas_960_is_marked(self) -> None:
        topology = topology_file.load("atlas-960")
        assert topology.weakest_mark() == "assumed"
        assert "wiring assumed" in topology.title


class TestFiles:
    def test_ten_lines_are_enough(self) -> None:
        topology = topology_file.parse(TEN_LINES, "mine")
        assert topology.ncards == 16
        assert [level.rate for level in topology.levels] == [450e9, 50e9]

    def test_a_torus_is_a_ring_a_dimension(self) -> None:
        text = '[[level]]\nname = "t"\nkind = "torus"\nshape = [4, 3]\nbandwidth = "1GB/s"'
        assert [(lv.name, lv.kind, lv.size) for lv in topology_file.parse(text, "x").levels] == [
            ("t.0", "ring", 4),
            ("t.1", "ring", 3),
        ]

    def test_a_graph_reads_back(self) -> None:
        topology = topology_file.parse(GRAPH, "g")
        assert topology.ncards == 3
        assert topology_file.parse(to_toml(topology), "g") == topology

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (('"450GB/s"', '"-450GB/s"'), r"level: bandwidth: rate '-450GB/s' must be a number above 0"),
            (('"450GB/s"', '"0GB/s"'), r"level 'host': bandwidth=0.0 must be above 0, or its cards have no link"),
            (('"450GB/s"', "450"), r'level: bandwidth=450 must be text with a unit, such as "56GB/s"'),
            (('"600ns"', '"600"'), None),
            (("size = 8", "size = 1"), r"level 'host': size=1 must be at least 2"),
            (("size = 8", 'size = "8"'), r"level: size='8' must be a whole number"),
            (("size = 8", ""), r"level 'host': size is missing"),
            (('kind = "switch"', 'kind = "web"'), r"level 'host': kind='web' must be one of full_mesh, ring"),
            (
                ('kind = "switch"', 'kind = "torus"'),
                r"level 'host': a torus has shape = \[4, 4\], integers, and no size",
            ),
            (('latency = "600ns"', "wires = 3"), r"level: 'wires' is unknown; there are name, kind, size"),
            (('latency = "600ns"', 'marks = {latency = "Z"}'), r"level: mark 'Z' must be one of A, fitted, B, D, V"),
            (('latency = "600ns"', "efficiency = 0"), r"level 'host': efficiency=0 must be above 0"),
            (('latency = "600ns"', "oversubscription = 0.5"), r"oversubscription=0.5 must be at least 1"),
            (("size = 8", "size = 9999999999999"), r"level: size=9999999999999 must be a number of at most 1048576"),
            (
                ("size = 8", "size = 1048576"),
                r"topology 'mine': \d+ cards are more than 1048576; take smaller or fewer",
            ),
            (("size = 8", "size = " + "9" * 5000), r"no TOML: "),
            (('latency = "600ns"', "oversubscription = nan"), r"level: oversubscription=nan must be a number of at"),
            (('latency = "600ns"', "efficiency = inf"), r"level: efficiency=inf must be a number of at most 1048576"),
            (('"two hosts"', '"two hosts'), r"no TOML: "),
            (('name = "network"', 'name = "host"'), r"levels host, host must differ in name"),
            (('kind = "full_mesh"', 'kind = "full_mesh"\ntrunk = true'), r"trunk=true is for switches"),
        ],
    )
    def test_what_breaks_a_rule_is_refused(self, change: tuple[str, str], message: str | None) -> None:
        text = TEN_LINES.replace(*change, 1)
        assert text != TEN_LINES
        if message is None:
            topology_file.parse(text, "mine")  # seconds: odd, but nothing forbids them
        else:
            with pytest.raises(InvalidValue, match=message):
                topology_file.parse(text, "mine")

    def test_neither_levels_nor_links_are_refused(self) -> None:
        with pytest.raises(InvalidValue, match=r"topology 'x' must have levels or links, one of the two"):
            topology_file.parse('title = "x"', "x")

    def test_links_without_a_number_of_cards_are_refused(self) -> None:
        with pytest.raises(InvalidValue, match=r"cards is missing: a topology of links says how many"):
            topology_file.parse(GRAPH.replace("cards = 3", ""), "g")

    def test_an_unknown_name_lists_the_presets(self) -> None:
        with pytest.raises(
            InvalidValue, match=r"topology 'atlas-970' is neither a file nor one of atlas-950, atlas-960"
        ):
            topology_file.load("atlas-970")

    def test_a_file_is_named_in_its_errors(self, tmp_path) -> None:
        path = tmp_path / "broken.toml"
        path.write_text("[[level]]\n")
        with pytest.raises(InvalidValue, match=r"^broken.toml: level '': name, kind, size, bandwidth is missing"):
            topology_file.load(str(path))


class TestValues:
    def test_a_trunk_needs_switches_below(self) -> None:
        mesh, trunk = Level("a", "full_mesh", 4, 1e9), Level("b", "switch", 2, 1e9, trunk=True)
        with pytest.raises(
            InvalidValue, match=r"level 'b': trunk=true needs switches below it, and 'a' is a full_mesh"
        ):
            Topology("x", levels=(mesh, trunk))

    def test_a_mesh_of_too_many_links_is_refused(self) -> None:
        with pytest.raises(InvalidValue, match=r"topology 'x': 1073741824 links are more than 16777216; take smaller"):
            Topology("x", levels=(Level("a", "full_mesh", 1 << 15, 1e9),))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"step": -1.0}, "step=-1.0 must not be negative"),
            ({"ramp": 1.0}, "ramp=1.0 must lie between 0 and 1"),
            ({"efficiency": 0.0}, "efficiency=0.0 must be above 0"),
        ],
    )
    def test_impossible_protocols_are_refused(self, values: dict[str, float], message: str) -> None:
        with pytest.raises(InvalidValue, match=message):
            Protocol(**values)

    def test_routing_has_names(self) -> None:
        with pytest.raises(InvalidValue, match=r"routing='fast' must be one of detour, shortest, all_paths"):
            Topology("x", levels=(Level("a", "ring", 4, 1e9),), routing="fast")


def test_faults_are_read_as_they_are_written() -> None:
    faults = Faults(cut=("0-1",), straggler=("7:2", "3:1.5"), dead=("9",))
    assert Faults.parse(str(faults)) == faults
    assert Faults.parse(" straggler 7:2,cut 0-1 ,") == Faults(cut=("0-1",), straggler=("7:2",))
    assert Faults.parse(str(Faults())) == Faults.parse("") == Faults()
    for text in ("broken 3", "cut", "cut0-1"):
        with pytest.raises(InvalidValue, match=f"fault '{text}' must be one of cut, slow, straggler, dead and what"):
            Faults.parse(text)
