"""Measured points in, fitted topology out; and the published machines are met as promised."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from superpod.collectives import algorithms
from superpod.collectives.simulate import Machine
from superpod.interconnect import topology_file
from superpod.interconnect.errors import InvalidValue
from superpod.simulator import calibrate, fit, points, validate
from superpod.simulator.cli import main
from superpod.simulator.points import Point

NCCL = """# nThread 1 nGpus 8 minBytes 1024 maxBytes 4096 step: 2(factor)
# Collective test starting: all_reduce_perf
#  Rank  0 Group  0 Pid 1 on host device  0
#  Rank  1 Group  0 Pid 1 on host device  1
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
        1024           256     float     sum      -1    12.50    0.08    0.08      0    12.40    0.08    0.08      0
        4096          1024     float     sum      -1    14.50    0.28    0.28      0    14.30    0.28    0.28      0
# Out of bounds values : 0 OK
"""
HCCL = """data_size(Bytes):  | aveg_time(us): | alg_bandwidth(GB/s): | check_result:
1024 | 12.5 | 0.08 | success
4096 | 14.5 | 0.28 | success
"""
CSV = "machine,cards,algorithm,nbytes,time_us\na,2,ring,1024,12.5\na,2,ring,4096,14.5\n"
BENCH = json.dumps(
    {
        "rows": [
            {"collective": "all_reduce", "world_size": 2, "nbytes": b, "time_us": t, "algorithm": "ring"}
            for b, t in ((1024, 12.5), (4096, 14.5))
        ]
    }
)


def written(folder: Path, text: str) -> Path:
    path = folder / "points.txt"
    path.write_text(text)
    return path


class TestPoints:
    @pytest.mark.parametrize("text", [NCCL, HCCL, CSV, BENCH], ids=["nccl", "hccl", "csv", "bench"])
    def test_all_kinds_of_files_are_read(self, tmp_path: Path, text: str) -> None:
        found = points.read(written(tmp_path, text), cards=2)
        assert [(p.cards, p.nbytes, p.seconds) for p in found] == [
            (2, 1024, pytest.approx(12.5e-6)),
            (2, 4096, pytest.approx(14.5e-6)),
        ]

    def test_nccl_tests_say_how_many_cards_took_part(self, tmp_path: Path) -> None:
        assert {p.cards for p in points.read(written(tmp_path, NCCL))} == {2}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (CSV.replace("12.5", ""), r"points.txt: line 2: time_us is empty; fill it in, or remove the line"),
            (CSV.replace("1024", "many"), r"line 2: nbytes 'many' is no number"),
            (CSV.replace("14.5", "-3"), r"line 3: time_us=-3 must be above 0; remove the line"),
            (CSV.replace("a,2,ring,4096", "a,1.5,ring,4096"), r"line 3: cards=1.5 must be a whole number, at least 2"),
            (CSV.replace("time_us", "time"), r"column time_us is missing; needed are cards, nbytes, time_us"),
            (CSV.replace("a,2,ring,4096", "b,2,ring,4096"), r"has points of a, b; say which with --machine"),
            ("machine,cards,nbytes,time_us\n", r"points.txt has no points; it must be a CSV with cards, nbytes"),
            (NCCL.replace("#  Rank", "#  Row"), r"does not say how many cards took part; say it with --cards"),
            (HCCL, r"hccl_test does not say how many cards took part"),
            ('{"rows": 3}', r"no results of superpod-bench"),
        ],
    )
    def test_holes_and_nonsense_are_refused(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(InvalidValue, match=message):
            points.read(written(tmp_path, text))

    def test_an_unknown_machine_lists_those_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidValue, match=r"has no points of machine 'c'; there are a"):
            points.read(written(tmp_path, CSV), machine="c")
        with pytest.raises(InvalidValue, match=r"has no points of machine 'c'; it names none: leave --machine out"):
            points.read(written(tmp_path, NCCL), machine="c")

    def test_no_such_file(self) -> None:
        with pytest.raises(InvalidValue, match=r"no.csv cannot be read .*; name a CSV with cards"):
            points.read(Path("no.csv"))


class TestFit:
    def test_it_finds_the_parameters_that_made_the_points(self) -> None:
        truth = topology_file.load("mi300x")
        start = fit.scaled(truth, np.array([0.9, -0.7, 1.1, 0.4]))
        machine, ring = Machine(truth), algorithms.build("all_reduce", "ring", 8)
        sizes = [8, 1 << 16, 1 << 20, 1 << 24, 1 << 30]
        found = [Point(8, size, machine.predict(ring, size).seconds, algorithm="ring") for size in sizes]
        met = fit.fit(start, found, [0, 2, 4])
        assert met.nparameters == 3
        assert met.predicted == pytest.approx([p.seconds for p in found], rel=1e-3)
        assert met.topology.protocols[0].call == pytest.approx(truth.protocols[0].call, rel=1e-2)

    def test_what_it_writes_predicts_what_it_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file, fitted = written(tmp_path, CSV), tmp_path / "fitted.toml"
        assert main(["calibrate", str(file), "-t", "mi300x", "-o", str(fitted)]) == 0
        assert "+0.0 %  fitted" in capsys.readouterr().out
        machine = Machine(topology_file.load(str(fitted)))
        ring = algorithms.build("all_reduce", "ring", 2)
        assert machine.predict(ring, 1024).seconds == pytest.approx(12.5e-6, rel=1e-2)
        assert machine.topology.levels[0].marks["latency"] == "fitted"

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--fit", "1,9"], "--fit '1,9' must list different points, 1 to 2, such as 1,2"),
            (["--fit", "hosts=2"], "--fit 'hosts=2': 'hosts' must be one of cards, algorithm, collective, nbytes"),
            (["--fit", "cards=9"], "--fit 'cards=9' matches none of the 2 points; loosen it"),
            (
                ["-o", "/no/such/folder/x.toml"],
                "-o /no/such/folder/x.toml cannot be written (No such file or directory)",
            ),
            (["-o", "/"], "-o / cannot be written (Is a directory); name a file in a folder that exists"),
            (["-n", "0"], "-n 0 must be at least 1 card"),
            (["-t", "nowhere"], "topology 'nowhere' is neither a file"),
        ],
    )
    def test_what_cannot_be_is_refused(self, tmp_path: Path, capsys, argv: list[str], message: str) -> None:
        assert main(["calibrate", str(written(tmp_path, CSV)), "-t", "mi300x", *argv]) == 2
        captured = capsys.readouterr()
        assert (captured.out, message in captured.err) == ("", True)

    def test_for_an_algorithm_of_others_one_of_ours_stands(self, tmp_path: Path, capsys) -> None:
        file, fitted = written(tmp_path, CSV.replace("ring", "nvls")), tmp_path / "fitted.toml"
        found = points.read(file)
        assert {p.algorithm for p in calibrate.stated(found, "two_shot")} == {"two_shot"}
        with pytest.raises(InvalidValue, match=r"algorithm='nvls' does not exist for all_reduce"):
            calibrate.stated(found, "nvls")
        assert main(["calibrate", str(file), "-t", "mi300x", "-o", str(fitted)]) == 0
        assert "# best: the file names no algorithm of ours" in capsys.readouterr().out
        argv = ["all_reduce", "-t", str(fitted), "-n", "2", "-b", "1K", "-e", "1K", "--algorithm", "best", "--json"]
        assert main(argv) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["seconds"] == pytest.approx(12.5e-6, rel=1e-2)

    def test_a_bare_topology_can_be_fitted(self, tmp_path: Path) -> None:
        bare = topology_file.parse('[[level]]\nname = "s"\nkind = "switch"\nsize = 2\nbandwidth = "1GB/s"', "bare")
        met = fit.fit(bare, points.read(written(tmp_path, CSV)), [0, 1])
        assert met.predicted == pytest.approx([12.5e-6, 14.5e-6], rel=1e-2)


class TestValidation:
    def test_promises_are_kept_and_written_down(self, tmp_path: Path, monkeypatch, capsys) -> None:
        source = Path(validate.__file__).resolve().parent.parent / validate.FOLDER
        copy = tmp_path / validate.FOLDER
        copy.mkdir(parents=True)
        for file in source.iterdir():
            if file.is_file():
                (copy / file.name).write_bytes(file.read_bytes())
        monkeypatch.chdir(tmp_path)
        assert validate.main() == 0
        assert (copy / "README.md").read_text() == (source / "README.md").read_text()
        assert "PROMISE BROKEN" not in capsys.readouterr().out

    def test_a_broken_promise_is_told(self, tmp_path: Path, monkeypatch, capsys) -> None:
        monkeypatch.setattr(validate, "_LARGEST", 0.001)
        self_test = TestValidation.test_promises_are_kept_and_written_down
        with pytest.raises(AssertionError):
            self_test(self, tmp_path, monkeypatch, capsys)

    def test_identities(self) -> None:
        for what, theory, says in validate.identities():
            assert says == pytest.approx(theory, rel=1e-12), what
