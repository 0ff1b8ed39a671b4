"""Tuning: what noise may not split, who leaves the race, what the file keeps, and what --explain says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from superpod.benchmarks import cli
from superpod.benchmarks.tune_measure import WrongResults, measure
from superpod.benchmarks.tune_rules import Times, for_any_size, rules, winners
from superpod.collectives import algorithms, tuning
from superpod.collectives.select import MAX
from tuned_tables import write

CASE = {"collective": "all_reduce", "count": 4, "dtype": "float32", "op": "sum", "root": 0}


def quiet(**seconds: float) -> dict[str, Times]:
    """Times without noise."""
    return {name: Times.of([time] * 3) for name, time in seconds.items()}


class TestTimes:
    def test_quartiles(self) -> None:
        assert Times.of([5.0, 1.0, 2.0, 9.0, 3.0]) == (3.0, 2.0, 5.0)
        assert Times.of([7.0]) == (7.0, 7.0, 7.0)

    def test_what_noise_explains_is_no_loss(self) -> None:
        best, noisy = Times.of([1.0] * 5), Times.of([0.8, 1.0, 1.2, 1.4, 1.6])
        assert Times.of([1.04] * 5).loss(best) == 0.0
        assert noisy.loss(best) == pytest.approx(0.0157, abs=1e-3)
        assert Times.of([2.0] * 5).loss(best) == pytest.approx(0.693 - 0.05, abs=1e-3)
        assert best.loss(best) == 0.0


class TestWinners:
    def test_a_difference_within_noise_splits_nothing(self) -> None:
        sizes = [quiet(a=1.0, b=1.04), quiet(a=1.04, b=1.0), quiet(a=1.0, b=1.04), quiet(a=1.08, b=1.0)]
        assert winners(sizes, ["a"] * 4) == ["a"] * 4
        assert winners(sizes, ["b"] * 4) == ["b"] * 4
        wide = [{"a": Times(1.0, 0.7, 1.3), "b": Times(1.3, 1.0, 1.6)} for _ in range(3)]
        assert winners(wide, ["b"] * 3) == ["b"] * 3

    def test_a_real_one_does(self) -> None:
        sizes = [quiet(a=1.0, b=3.0), quiet(a=1.0, b=1.5), quiet(a=2.0, b=1.0), quiet(a=4.0, b=1.0)]
        for usual in "ab":
            assert winners(sizes, [usual] * 4) == ["a", "a", "b", "b"]

    def test_one_size_alone_must_pay_for_two_changes(self) -> None:
        def sizes(odd: float) -> list[dict[str, Times]]:
            return [quiet(a=1.0, b=2.0), quiet(a=odd, b=1.0), quiet(a=1.0, b=2.0)]

        assert winners(sizes(1.15), ["a"] * 3) == ["a"] * 3
        assert winners(sizes(1.6), ["a"] * 3) == ["a", "b", "a"]

    def test_small_gains_at_many_sizes_pay_for_one(self) -> None:
        sizes = [quiet(a=1.0, b=2.0)] + [quiet(a=1.1, b=1.0)] * 8
        assert winners(sizes, ["a"] * 9) == ["a"] + ["b"] * 8

    def test_what_is_chosen_anyway_stays(self) -> None:
        sizes = [quiet(a=1.0, b=1.0, c=1.0)] * 4
        assert winners(sizes, ["c", "c", "b", "b"]) in (["c"] * 4, ["b"] * 4, ["c", "c", "b", "b"])
        assert winners(sizes, ["b"] * 4) == ["b"] * 4

    def test_what_was_not_measured_is_not_chosen(self) -> None:
        assert winners([quiet(a=1.0, b=9.0), quiet(b=9.0)], ["a", "a"]) == ["a", "b"]


class TestRules:
    def test_a_range_ends_half_way_and_the_last_one_where_measuring_did(self) -> None:
        measured = {1 << 10: quiet(a=1.0, b=3.0), 1 << 12: quiet(a=1.0, b=2.0), 1 << 14: quiet(a=9.0, b=4.0)}
        assert rules(measured, ("a", "b"), lambda nbytes: "a") == [
            {"nbytes": 1 << 13, "algorithm": "a", "at": 1 << 12, "us": 1e6, "runner_up": "b", "runner_up_us": 2e6},
            {"nbytes": 1 << 14, "algorithm": "b", "at": 1 << 14, "us": 4e6, "runner_up": "a", "runner_up_us": 9e6},
        ]

    def test_only_those_that_may_be_chosen(self) -> None:
        measured = {8: quiet(a=1.0, b=2.0, c=3.0)}
        found = rules(measured, ("b", "c"), lambda nbytes: "c")
        assert [(rule["algorithm"], rule["runner_up"]) for rule in found] == [("b", "c")]
        assert rules(measured, ("a",), lambda nbytes: "a") == [{"nbytes": 8, "algorithm": "a", "at": 8, "us": 1e6}]
        assert rules({}, ("a",), lambda nbytes: "a") == []
        assert rules(measured, ("d",), lambda nbytes: "d") == []

    def test_a_collective_without_a_size(self) -> None:
        assert for_any_size([{"nbytes": 1, "algorithm": "a"}]) == [{"nbytes": MAX, "algorithm": "a"}]
        assert for_any_size([]) == []


class FakeStage:
    """Algorithms that take a given time, of which one is wrong."""

    def __init__(self, wrong: str = "", **seconds: float) -> None:
        self._seconds, self._wrong = seconds, wrong
        self.asked: list[tuple[str, int, bool]] = []

    def turn(self, player: str, order: Any) -> tuple[float, int]:
        self.asked.append((player, order["calls"], order["check"]))
        return self._seconds[player], 3 if player == self._wrong and order["check"] else 0


class TestMeasure:
    def test_the_slow_leave_and_the_others_take_turns(self) -> None:
        stage = FakeStage(fast=0.1, second=0.15, third=0.3, last=0.6)
        found = measure(stage, ("fast", "second", "third", "last"), CASE, 4, budget=6.1)
        assert {name: times.median for name, times in found.items()} == stage._seconds
        turns = [name for name, _, check in stage.asked if not check]
        assert turns == ["fast", "second", "third"] * 2 + ["fast", "second"] * 2
        assert [check for _, _, check in stage.asked[:4]] == [True] * 4
        assert [calls for name, calls, check in stage.asked if name == "fast" and not check] == [5, 5, 7, 7]

    def test_who_was_slower_for_less_than_others_are_now_is_left_out(self) -> None:
        stage = FakeStage(a=1.0, b=0.02, c=0.03)
        found = measure(stage, "abc", CASE, 1, budget=1.0, at_least={"a": 0.09, "b": 0.01, "c": 0.07})
        assert set(found) == {"b", "c"}
        assert [name for name, _, check in stage.asked if check] == ["b", "c"]
        assert set(measure(stage, "abc", CASE, 1, budget=1.0, at_least={"a": 0.08})) == {"a", "b", "c"}

    def test_a_short_call_gets_a_second_chance(self) -> None:
        stage = FakeStage(a=0.001, b=0.004)
        measure(stage, ("a", "b"), CASE, 1, budget=0.001)
        assert stage.asked == [("a", 1, True), ("a", 4, False), ("b", 1, True), ("b", 4, False), ("a", 1, False),
                               ("b", 1, False)]  # fmt: skip

    def test_wrong_results_make_no_table(self) -> None:
        with pytest.raises(WrongResults, match="all_reduce of 4 elements by b: 3 elements are wrong"):
            measure(FakeStage("b", a=1.0, b=1.0), ("a", "b"), CASE, 1, budget=1.0)


def bench(*arguments: str, cache: Path, **env: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "SUPERPOD_TUNING": "", **env}
    command = [sys.executable, "-m", "superpod.benchmarks.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


SHORT = ("-n", "2", "-b", "1K", "-e", "1K", "--turns", "2", "--budget", "2s")


def test_processes_are_tuned_and_then_choose_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = bench("tune", "all_reduce,barrier", *SHORT, "--link", "zmq", cache=tmp_path, SUPERPOD_DETERMINISTIC="1")
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tuning.cached()
    assert path is not None
    assert f"# written to {path}; superpod-run takes it from there" in done.stdout
    known = tuning.read(path)
    assert known.unfit() == ""
    assert set(known.tuning.rules) == {
        ("zmq", "all_reduce", False), ("zmq", "all_reduce", True), ("zmq", "barrier", False)
    }  # fmt: skip
    by_size = {row["nbytes"]: row["us"] for row in known.measured if row["collective"] == "all_reduce"}
    assert set(by_size) == {1024}
    assert all(set(us) == set(algorithms.names("all_reduce")) for us in by_size.values())
    assert [rule.nbytes for rule in known.tuning.rules["zmq", "barrier", False]] == [MAX]

    again = bench("tune", "broadcast", *SHORT, "--link", "zmq", cache=tmp_path)
    assert again.returncode == 0, again.stderr
    assert ("zmq", "broadcast", False) in tuning.read(path).tuning.rules
    assert known.tuning.rules.keys() < tuning.read(path).tuning.rules.keys()

    why = bench("all_reduce", "-n", "2", "-b", "1K", "-e", "1K", "--link", "zmq", "--explain", cache=tmp_path)
    line = next(line for line in why.stdout.splitlines() if not line.startswith("#"))
    assert line.split()[:2] == ["1", "KiB"]
    assert f"tuned, up to 2 ranks, up to 1 KiB ({path}:" in line


class TestExplain:
    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        us = {"ring": [70.0, 69.0, 71.0], "star": [50.0, 49.0, 51.0], "tree": [60.0, 59.0, 61.0]}
        row = {"collective": "all_reduce", "link": "zmq", "ranks": 8, "nbytes": 1024, "us": us}
        path = write(tmp_path / "t.json", {"link": "zmq", "ranks": 8, "algorithm": "star"}, measured=[row])
        monkeypatch.setenv("SUPERPOD_TUNING", str(path))
        return path

    def explain(self, capsys: pytest.CaptureFixture[str], *more: str) -> str:
        options = ["all_reduce", "--link", "zmq", "-b", "1K", "-e", "1K", "--explain", *more]
        assert cli.main(options) == 0
        _, _, line = capsys.readouterr().out.splitlines()
        return " ".join(line.split())

    def test_a_tuned_choice_and_its_runner_up(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        why = f"tuned, up to 8 ranks, up to 1 MiB ({path}:5)"
        assert self.explain(capsys, "-n", "8") == f"1 KiB star messages 50 µs tree 60 µs {why}"
        assert self.explain(capsys, "-n", "5") == f"1 KiB star messages 50 µs (1 KiB, n=8) tree 60 µs {why}"

    @pytest.mark.usefixtures("path")
    def test_what_the_user_asked_for_costs(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUPERPOD_ALL_REDUCE", "ring")
        why = "SUPERPOD_ALL_REDUCE says so for any size"
        assert self.explain(capsys, "-n", "8") == f"1 KiB ring messages 70 µs star 50 µs {why}"

    def test_without_a_table(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SUPERPOD_TUNING", "off")
        assert self.explain(capsys, "-n", "2").startswith("1 KiB recursive_doubling messages - - built-in table")

    def test_with_an_algorithm_there_is_nothing_to_explain(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["all_reduce", "--algorithm", "ring", "--explain"]) == 2
        assert "--algorithm leaves nothing to choose and so nothing to explain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("allreduce",), "collective 'allreduce' is unknown; choose from all_reduce"),
        (("-n", "1"), "-n 1 must be at least 2: one card has nobody to talk to"),
        (("-n", "x"), "-n 'x' must be a number of cards"),
        (("--link", "tcp"), "--link 'tcp' is unknown; choose from shm, zmq"),
        (("--link", ""), "--link '' is unknown; choose from shm, zmq"),
        (("--turns", "0"), "--turns 0 and --budget 600 must be above 0"),
        (("-b", "2M", "-e", "1M"), "-e 1 MiB must not be below -b 2 MiB"),
        (("all_gather", "-n", "64", "-b", "8", "-e", "8"), "-e 8 is less than one float32 for each card"),
        (("-o", "/proc/nowhere/t.json"), "-o /proc/nowhere/t.json cannot be written (No such file or directory)"),
        (("-o", "/proc"), "-o /proc cannot be written (it is no file); name a file in a folder that exists"),
        (("-o", ""), "-o . cannot be written (it is no file)"),
    ],
)
def test_arguments_that_break_a_rule(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_home_no_cache(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tuning, "cache_directory", lambda: None)
    assert cli.main(["tune"]) == 2
    assert "say where the table is to go: -o FILE" in capsys.readouterr().err


def test_a_place_that_is_refused_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (folder, tmp_path / "new" / "t.json"):
        assert cli.main(["tune", *SHORT, "-o", str(place)]) == 2
    assert (capsys.readouterr().out, [path.name for path in tmp_path.rglob("*")]) == ("", ["folder"])


@pytest.mark.parametrize("before", [None, "what was there"])
def test_a_run_that_is_ended_before_its_first_result_writes_nothing(
    tmp_path: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def __init__(self, world_size: int) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("superpod.benchmarks.tune.Stage", Interrupted)
    monkeypatch.setattr(tuning, "cache_directory", lambda: tmp_path / "cache")
    path = tuning.cached()
    assert path is not None
    if before is not None:
        path.parent.mkdir()
        path.write_text(before)
    assert cli.main(["tune", *SHORT]) == 130
    assert [file.read_text() for file in path.parent.iterdir()] == ([] if before is None else [before])


def test_a_run_that_was_ended_early_keeps_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from superpod.benchmarks import tune

    path = write(tmp_path / "t.json", {"algorithm": "ring"}, {"algorithm": "ring", "ranks": 2})
    found = {("shm", "all_reduce", 2): {4096: quiet(one_shot=1.0, ring=2.0, star=3.0)}}
    link = tmp_path / "link.json"
    link.symlink_to(path)
    tune._write(link, found, ["superpod-bench", "tune"])
    assert link.is_symlink()
    rows = json.loads(path.read_text())["rules"]
    assert [(row["ranks"], row["fixed_order"], row["algorithm"]) for row in rows] == [
        (2, False, "one_shot"), (64, False, "ring"), (2, True, "one_shot")
    ]  # fmt: skip
    write(path, {"algorithm": "ring"}, superpod="0.0.1")
    tune._write(path, found, ["superpod-bench", "tune"])
    assert {row["ranks"] for row in json.loads(path.read_text())["rules"]} == {2}
