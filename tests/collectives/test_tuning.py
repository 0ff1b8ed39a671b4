"""Tuned tables: what a file says, when it counts, what goes before and after it, and that cards are told one."""

from __future__ import annotations

import json
import timeit
from pathlib import Path

import pytest

from superpod.collectives import tuning
from superpod.collectives.hosts import Layout
from superpod.collectives.select import Selector
from superpod.collectives.selection import Selection, tuned_link
from superpod.collectives.tuning import TunedRule, Tuning
from superpod.interconnect.env import Settings
from superpod.interconnect.errors import InvalidValue
from tuned_tables import write

RULES = (
    {"ranks": 8, "nbytes": 100, "algorithm": "ring"},
    {"ranks": 2, "nbytes": 1000, "algorithm": "tree"},
    {"ranks": 8, "nbytes": 5000, "algorithm": "circulant"},
    {"ranks": 8, "nbytes": 5000, "algorithm": "star", "fixed_order": True},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "table.json", *RULES)


def selector(file: Path, overrides: dict[str, str] | None = None, **how: object) -> Selector:
    selection = Selection(tuning=tuning.read(file).tuning)
    return Selector(overrides or {}, link="shm", selection=selection, **how)  # type: ignore[arg-type]


class TestFile:
    def test_rules_know_their_lines(self, file: Path) -> None:
        known = tuning.read(file)
        assert known.tuning.file == str(file)
        assert known.unfit() == ""
        lines = file.read_text().splitlines()
        for rule in known.tuning.rules["shm", "all_reduce", False]:
            assert f'"{rule.algorithm}"' in lines[rule.line - 1]
        assert [rule.algorithm for rule in known.tuning.rules["shm", "all_reduce", True]] == ["star"]

    def test_one_that_was_laid_out_anew_has_no_lines_but_counts(self, file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()), indent=2))
        rules = tuning.read(file).tuning.rules["shm", "all_reduce", False]
        assert {rule.line for rule in rules} == {0}
        assert selector(file).choose("all_reduce", 8, 8).reason == f"tuned, up to 8 ranks, up to 100 B ({file})"

    def test_it_is_replaced_in_one_piece(self, file: Path) -> None:
        write(file, RULES[0])
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        assert len(tuning.read(file).rows) == 1

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "Expecting value"),
            ("[1]", "list indices must be integers"),
            ("{}", "it lacks 'format'"),
            ('{"format": 7}', "its format is 7, and 1 is wanted"),
            ('{"format": 1}', "it lacks 'rules'"),
            ('{"format": 1, "rules": [{}]}', "it lacks 'link'"),
        ],
    )
    def test_what_is_none_is_refused_with_the_way_out(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "t.json"
        path.write_text(text)
        with pytest.raises(
            InvalidValue, match=rf"^{path} is no tuned table \({message}.*superpod-bench tune -o {path}"
        ):
            tuning.read(path)

    @pytest.mark.parametrize(
        "wrong",
        [
            *({"ranks": value} for value in (0, -1, "8", 2.5, None)),
            *({"nbytes": value} for value in (-1, "8", None)),
            {"link": "auto"}, {"collective": "allreduce"}, {"fixed_order": "no"}, {"algorithm": None},
        ],
    )  # fmt: skip
    def test_a_rule_that_makes_no_sense_is_refused(self, tmp_path: Path, wrong: dict[str, object]) -> None:
        path = write(tmp_path / "t.json", {"algorithm": "ring", **wrong})
        with pytest.raises(InvalidValue, match=rf"{path} is no tuned table \(rule .* in line 5"):
            tuning.read(path)

    @pytest.mark.parametrize(
        "wrong",
        [
            *({"us": value} for value in (None, {}, {"ring": 7}, {"ring": ["x"]}, {"ring": [0.0]})),
            {"link": "auto"}, {"collective": "x"}, {"ranks": "8"}, {"nbytes": 0},
        ],
    )  # fmt: skip
    def test_figures_that_make_no_sense_are_refused(self, tmp_path: Path, wrong: dict[str, object]) -> None:
        row = {"collective": "all_reduce", "link": "shm", "ranks": 2, "nbytes": 8, "us": {"ring": [1.0, 1.0, 1.0]}}
        assert tuning.read(write(tmp_path / "t.json", RULES[0], measured=[row])).measured == [row]
        with pytest.raises(InvalidValue, match=r"t.json is no tuned table \("):
            tuning.read(write(tmp_path / "t.json", RULES[0], measured=[row | wrong]))

    def test_no_file_and_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidValue, match=r"none.json cannot be read \(No such file or directory\); make it anew"):
            tuning.read(tmp_path / "none.json")
        (tmp_path / "bytes").write_bytes(b"\xff\xfe")
        with pytest.raises(InvalidValue, match="bytes is no tuned table"):
            tuning.read(tmp_path / "bytes")

    def test_another_machine_or_version(self, file: Path) -> None:
        here = tuning.machine()
        other = write(file, RULES[0], machine={**here, "cores": here["cores"] + 1})
        assert tuning.read(other).unfit().startswith(f"it was made on {here['cores'] + 1} cores of ")
        old = write(file, RULES[0], superpod="0.0.1")
        assert tuning.read(old).unfit().startswith("it was made by superpod 0.0.1, and this is ")

    def test_the_cache_is_the_machines(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        here = tuning.cached()
        assert here is not None
        assert here.parent == tmp_path / "superpod"
        monkeypatch.setattr(tuning, "cores", lambda: 4096)
        assert tuning.cached() != here
        monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
        assert tuning.cached() is None


class TestRules:
    @pytest.mark.parametrize(
        ("n", "nbytes", "algorithm"),
        [
            (2, 1000, "tree"),
            (1, 0, "tree"),
            (3, 100, "ring"),
            (8, 101, "circulant"),
            (8, 5000, "circulant"),
        ],
    )
    def test_the_next_larger_world_and_size_count(self, file: Path, n: int, nbytes: int, algorithm: str) -> None:
        assert selector(file).choose("all_reduce", nbytes, n).algorithm == algorithm

    @pytest.mark.parametrize(("n", "nbytes"), [(2, 1001), (9, 8), (8, 5001)])
    def test_beyond_what_was_measured_the_built_in_table_counts(self, file: Path, n: int, nbytes: int) -> None:
        choice = selector(file).choose("all_reduce", nbytes, n)
        assert choice == Selector({}).choose("all_reduce", nbytes, n)

    def test_another_collective_or_link(self, file: Path) -> None:
        assert selector(file).choose("barrier", 1, 8) == Selector({}).choose("barrier", 1, 8)
        known = Selection(tuning=tuning.read(file).tuning)
        for link in ("zmq", "memory", ""):
            choice = Selector({}, link=link, selection=known).choose("all_reduce", 8, 8)
            assert choice.reason.startswith("built-in")

    def test_the_reason_names_file_and_line(self, file: Path) -> None:
        reason = selector(file).choose("all_reduce", 8, 8).reason
        assert reason == f"tuned, up to 8 ranks, up to 100 B ({file}:5)"

    def test_what_the_user_asks_for_goes_before(self, file: Path) -> None:
        chosen = selector(file, {"all_reduce": "nhr:0-50"})
        assert [chosen.choose("all_reduce", size, 8).algorithm for size in (50, 51)] == ["nhr", "ring"]

    def test_only_algorithms_with_the_fixed_order_if_it_is_wanted(self, file: Path) -> None:
        choice = selector(file, deterministic=True).choose("all_reduce", 8, 8)
        assert choice.algorithm == "star"
        assert choice.reason.endswith(":8); SUPERPOD_DETERMINISTIC=1")

    def test_unequal_blocks_and_several_hosts_were_not_measured(self, tmp_path: Path) -> None:
        file = write(tmp_path / "t.json", {"collective": "all_gather", "algorithm": "nhr"})
        tuned, plain = selector(file), Selector({})
        assert tuned.choose("all_gather", 64, 8).algorithm == "nhr"
        unequal = [one.choose("all_gather", 64, 8, equal_blocks=False) for one in (tuned, plain)]
        assert unequal[0] == unequal[1]
        two, one = Layout([0] * 4 + [1] * 4), Layout([0] * 8)
        assert tuned.choose("all_gather", 64, 8, layout=two) == plain.choose("all_gather", 64, 8, layout=two)
        assert tuned.choose("all_gather", 64, 8, layout=one).algorithm == "nhr"

    def test_an_algorithm_that_does_not_exist_is_refused_by_line(self, tmp_path: Path) -> None:
        file = write(tmp_path / "t.json", {"algorithm": "rong"})
        with pytest.raises(
            InvalidValue, match=rf"^{file}, line 5: algorithm='rong' must be one of ring, .*make the table"
        ):
            selector(file)
        file = write(tmp_path / "t.json", {"algorithm": "ring", "fixed_order": True})
        with pytest.raises(InvalidValue, match=r"algorithm='ring' must be one of .*star"):
            selector(file)


class TestSelection:
    def test_what_is_told_to_cards_is_what_they_understand(self, file: Path) -> None:
        told = Selection(True, tuning.read(file).tuning)
        assert Selection.of_card(Settings(selection=told.text())) == told
        assert Selection.of_card(Settings(selection=Selection().text())) == Selection()
        off = Selection.of_card(Settings(selection=told.text(), tuning="off"))
        assert off == Selection(own_cores=True)

    def test_the_launchers_word_goes_before_a_file(self, file: Path) -> None:
        assert Selection.of_card(Settings(selection=Selection().text(), tuning=str(file))) == Selection()

    def test_without_a_launcher_the_user_may_name_a_file(self, file: Path) -> None:
        assert Selection.of_card(Settings()) == Selection()
        assert Selection.of_card(Settings(tuning=str(file))).tuning == tuning.read(file).tuning
        write(file, RULES[0], superpod="0.0.1")
        with pytest.raises(
            InvalidValue, match=r"^SUPERPOD_TUNING=.*: it was made by superpod 0.0.1, .* or unset SUPERP"
        ):
            Selection.of_card(Settings(tuning=str(file)))

    def test_without_a_launcher_several_hosts_might_disagree(self, file: Path) -> None:
        environ = {"SUPERPOD_TUNING": str(file), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}
        with pytest.raises(
            InvalidValue, match="in a job of several hosts must come from superpod-run, which gives all"
        ):
            Selection.of_card(Settings.read(environ))

    @pytest.mark.parametrize("text", ["x", "[]", "[1,2,3]", "[true,[1]]", "7", '[false,["f",[["shm"]]]]'])
    def test_what_superpod_run_never_said(self, text: str) -> None:
        with pytest.raises(InvalidValue, match=r"SUPERPOD_SELECTION=.* is superpod-run's to set .* unset it"):
            Selection.of_card(Settings(selection=text))

    def test_a_table_that_fits_into_no_message_is_refused(self) -> None:
        rules = tuple(TunedRule(n, 8, "ring", n) for n in range(1, 4000))
        with pytest.raises(
            InvalidValue, match=r"^f has too many rules: \d+ characters, of which cards take 32768; tune"
        ):
            Selection(tuning=Tuning("f", {("shm", "all_reduce", False): rules})).text()

    def test_rules_hold_for_links_that_carry_as_they_did(self) -> None:
        assert [tuned_link(link, Settings()) for link in ("shm", "zmq", "memory")] == ["shm", "zmq", "memory"]
        assert tuned_link("zmq", Settings(transport="tcp")) == ""
        assert tuned_link("shm", Settings(time_scale=10.0)) == ""


def test_selection_costs_less_than_a_microsecond_a_call(file: Path) -> None:
    tuned = selector(file)
    calls = 2000
    taken = timeit.repeat(lambda: tuned.choose("all_reduce", 64, 8, equal_blocks=True), number=calls, repeat=20)
    assert min(taken) / calls < 1e-6
