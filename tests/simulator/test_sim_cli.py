"""superpod-sim as a user meets it: columns, JSON, figures, pictures, and refusals with a way out."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

from superpod.collectives.select import parse_override
from superpod.interconnect import topology_file
from superpod.simulator.cli import main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" or captured.out.startswith("#")
    return captured.err


def refused_at_once(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


class TestPredict:
    def test_the_table_has_nccl_tests_columns_and_the_models(self, capsys) -> None:
        out = run(capsys, "all_reduce", "-t", "mi300x", "-b", "1K", "-e", "4K", "--algorithm", "ring,two_shot")
        lines = out.splitlines()
        titles = lines[3].lstrip("#").split()
        assert titles[:6] == ["size", "type", "redop", "time", "algbw", "busbw"]
        assert [line.split()[0] for line in lines[5:]] == ["1024"] * 2 + ["2048"] * 2 + ["4096"] * 2
        assert "predicted, not measured; least sure figure in it is marked assumed" in lines[2]

    def test_json_has_the_promised_keys(self, capsys) -> None:
        rows = json.loads(run(capsys, "all_reduce", "-t", "nvl72", "-b", "1M", "-e", "1M", "--json"))
        keys = {"nbytes", "algorithm", "seconds", "algbw_gbps", "busbw_gbps", "bottleneck", "mark"}
        assert all(keys <= set(row) for row in rows)
        row = next(row for row in rows if row["algorithm"] == "ring")
        assert row["algbw_gbps"] == pytest.approx((1 << 20) / row["seconds"] / 1e9)
        assert row["busbw_gbps"] == pytest.approx(row["algbw_gbps"] * 2 * 71 / 72)

    def test_part_of_a_machine_and_a_root(self, capsys) -> None:
        argv = ("broadcast", "-t", "atlas-950", "-n", "100", "-b", "1M", "-e", "1M", "-r", "7", "--json")
        assert {row["cards"] for row in json.loads(run(capsys, *argv))} == {100}

    def test_a_barrier_has_no_sizes(self, capsys) -> None:
        rows = json.loads(run(capsys, "barrier", "-t", "ub-mesh-rack", "--json"))
        assert {row["nbytes"] for row in rows} == {0}

    def test_faults_are_named_and_cost(self, capsys) -> None:
        argv = ("all_reduce", "-t", "ub-mesh-rack", "-b", "64M", "-e", "64M", "--algorithm", "per_dimension")
        healthy = run(capsys, *argv)
        faults = ("--cut", "0-1", "--slow", "8-9:0.5", "--straggler", "7:2", "--dead", "3")
        faulty = run(capsys, *argv, *faults)
        assert "faults: cut 0-1, slow 8-9:0.5, straggler 7:2, dead 3" in faulty
        assert float(faulty.splitlines()[-1].split()[3]) > float(healthy.splitlines()[-1].split()[3])

    def test_twenty_sizes_of_six_algorithms_on_15488_cards(self, capsys) -> None:
        start = time.process_time()
        names = "ring,tree,hierarchical,per_dimension,halving_doubling,two_shot"
        out = run(capsys, "all_reduce", "-t", "atlas-960", "-b", "1K", "-e", "512M", "--algorithm", names, "--json")
        assert len(json.loads(out)) == 20 * 6
        assert time.process_time() - start < 30

    def test_pictures(self, capsys, tmp_path) -> None:
        pytest.importorskip("matplotlib")
        plot, heat = tmp_path / "plot.svg", tmp_path / "heat.png"
        argv = (
            "all_reduce",
            "-t",
            "torus",
            "-b",
            "1K",
            "-e",
            "1M",
            "-f",
            "32",
            "--plot",
            str(plot),
            "--heat",
            str(heat),
        )
        run(capsys, *argv)
        assert plot.read_text().startswith("<?xml")
        assert heat.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (
                ["-n", "9"],
                "--cards 9 must be 1 to 8, all that mi300x has; take fewer, or a topology with larger levels",
            ),
            (["-n", "0"], "--cards 0 must be 1 to 8"),
            (["-t", "mi400"], "topology 'mi400' is neither a file nor one of atlas-950"),
            (["--algorithm", "rign"], "algorithm='rign' does not exist for all_reduce; there are ring, tree"),
            (["-b", "2M", "-e", "1M"], "-e 1 MiB must not be below -b 2 MiB"),
            (["-b", "1", "-e", "1T", "-i", "1"], "-i 1 B makes more than 10000 sizes up to 1 TiB; take a larger one"),
            (["-r", "3"], "-r 3 means nothing for all_reduce, which has no root; leave it out"),
            (["--cut", "0-8"], "cut: card '8' does not exist; cards are 0 to 7"),
            (["--straggler", "0:inf"], "straggler '0:inf' must be what it is about, a colon and a factor from 1 to"),
            (["--straggler", "0:2", "--straggler", "0:3"], "'0:2' and straggler '0:3' are about the same; leave one"),
            (["--dead", "1"], "dead '1': mi300x has no spare cards"),
            (["--cut", "0-1", "--routing", "shortest"], "routing=shortest knows no way around"),
            (["--plot", "x.jpeg"], "x.jpeg must end in one of .svg, .png, .pdf"),
            (["--plot", "no/such/x.svg"], "cannot be written (No such file or directory)"),
        ],
    )
    def test_what_cannot_be_is_refused(self, capsys, argv: Sequence[str], message: str) -> None:
        assert message in refused(capsys, "all_reduce", "-t", "mi300x", "-b", "1M", "-e", "1M", *argv)

    def test_a_root_that_is_no_rank_is_refused(self, capsys) -> None:
        for root in ("8", "-1"):
            assert f"-r {root} must be a rank: 0 to 7" in refused_at_once(
                capsys, "broadcast", "-t", "mi300x", "-r", root
            )

    def test_a_size_for_what_has_none_is_refused(self, capsys) -> None:
        for option in ("-b", "-e", "-f", "-i"):
            message = f"{option} 64 means nothing for barrier, which has no size; leave it out"
            assert message in refused_at_once(capsys, "barrier", "-t", "mi300x", option, "64")


@pytest.mark.parametrize("argv", [("topology", "dgx-h100"), ("all_reduce", "-t", "dgx-h100", "-b", "1K", "-e", "2K")])
def test_what_cannot_be_written_is_told_in_one_line(argv: Sequence[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "superpod.simulator.cli", *argv]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "superpod-sim: cannot write: No space left on device\n")


class TestTopology:
    def test_the_atlas_950_in_figures(self, capsys, tmp_path) -> None:
        drawing = tmp_path / "atlas.svg"
        out = run(capsys, "topology", "atlas-950", "--draw", str(drawing))
        assert "total bandwidth    16.4 PB/s both ways: 8,192 x 2 TB/s, as published (A)" in out
        assert "56 GB/s each way (D)" in out
        assert "wiring (assumed)" in out
        assert "bisection          229 TB/s" in out
        text = drawing.read_text()
        assert text.startswith("<svg")
        assert "spine: 8 × pod" in text
        assert text.count("<line") == 28 + 28 + 6 + 6 + 8

    def test_the_others_that_are_published(self, capsys) -> None:
        assert "34.1 PB/s both ways: 15,488 x 2.2 TB/s, as published (D)" in run(capsys, "topology", "atlas-960")
        assert "301 TB/s both ways: 384 x 784 GB/s" in run(capsys, "topology", "cloudmatrix384")
        assert json.loads(run(capsys, "topology", "nvl72", "--json"))["bisection"] == pytest.approx(36 * 739.8e9)

    def test_what_processes_of_a_host_share_is_told(self, capsys) -> None:
        assert "2, shared by all cards, like one memory of 14 GB/s" in run(capsys, "topology", "this-host")

    def test_a_graph_is_described_and_drawn(self, capsys, tmp_path) -> None:
        file = tmp_path / "mine.toml"
        file.write_text('cards = 2\n[[links]]\nname = "c"\nbandwidth = "1GB/s"\npairs = [["0", "s"], ["s", "1"]]\n')
        drawing = tmp_path / "mine.svg"
        out = run(capsys, "topology", str(file), "--draw", str(drawing))
        assert "links: 4 links of 1 GB/s each way" in out
        assert drawing.read_text().count("<line") == 2

    @pytest.mark.parametrize("shape", ["[100000, 100000]", "[99999999999]"])
    @pytest.mark.parametrize("argv", [("topology",), ("all_reduce", "-t")])
    def test_a_machine_beyond_all_bounds_is_refused(self, capsys, tmp_path, shape: str, argv: Sequence[str]) -> None:
        file = tmp_path / "mine.toml"
        text = (topology_file.FOLDER / "torus.toml").read_text()
        file.write_text(text.replace("[16, 16]", shape))
        assert "1048576" in refused(capsys, *argv, str(file))

    def test_without_a_name_it_lists_them(self, capsys) -> None:
        assert len(run(capsys, "topology").splitlines()) == 10

    def test_a_drawing_that_cannot_be_written_is_refused(self, capsys) -> None:
        assert "--draw x.jpg must end in .svg" in refused_at_once(capsys, "topology", "torus", "--draw", "x.jpg")
        path = "no/such/folder/x.svg"
        message = f"--draw {path} cannot be written (No such file or directory); name a file in a folder that exists"
        assert message in refused_at_once(capsys, "topology", "torus", "--draw", path)

    @pytest.mark.parametrize("argv", [("--json",), ("--draw", "x.svg")])
    def test_figures_are_of_a_machine(self, capsys, argv: Sequence[str]) -> None:
        assert "--json and --draw must go with a machine" in refused_at_once(capsys, "topology", *argv)


class TestBest:
    def test_it_says_which_wins_and_why(self, capsys) -> None:
        out = run(capsys, "best", "-t", "atlas-960", "--collective", "all_reduce", "--size", "64M")
        assert "per_dimension wins at 64 MiB: bandwidth decides; its busiest board link works" in out
        assert "takes 8.24 times as long" in out or "times as long: " in out

    def test_its_table_is_what_superpod_run_reads(self, capsys) -> None:
        out = run(capsys, "best", "-t", "nvl72", "--table").strip()
        variable, _, value = out.partition("=")
        assert variable == "SUPERPOD_ALL_REDUCE"
        ranges = parse_override("all_reduce", value.strip('"'))
        assert ranges[0][0] == 0
        assert all(high + 1 == low for (_, high, _), (low, _, _) in pairwise(ranges))

    def test_a_table_is_of_all_sizes(self, capsys) -> None:
        argv = ("best", "-t", "nvl72", "--table", "--size", "1K")
        assert "--size 1 KiB must not go with --table, which is of all sizes" in refused_at_once(capsys, *argv)

    def test_the_fastest_is_first(self, capsys) -> None:
        rows = json.loads(run(capsys, "best", "-t", "torus", "--size", "1M", "--json"))
        assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
