"""A result file says where its figures come from and is complete at any time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from superpod.benchmarks import results
from superpod.interconnect.errors import InvalidValue


def test_the_header_names_machine_versions_commit_and_command():
    header = results.describe(["superpod-bench", "all_reduce", "-n", "2"])
    assert header["command"] == "superpod-bench all_reduce -n 2"
    assert header["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert header["machine"]["memory_bytes"] > 1 << 28
    assert header["machine"]["cpu"]
    assert set(header["versions"]) == {"python", "superpod", "numpy", "pyzmq", "msgpack", "torch"}
    assert header["date"].startswith("20")
    assert "commit" in header


def test_the_commit_is_that_of_the_checkout_the_file_belongs_to(tmp_path):
    file, stranger = tmp_path / "mine.py", tmp_path / "stranger.py"
    file.write_text("1")
    stranger.write_text("1")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "mine.py"], [*identity, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = results._commit(file)
    assert len(commit) == 12
    file.write_text("2")
    assert results._commit(file) == commit + "+"
    assert results._commit(stranger) is None


def test_the_file_is_complete_after_every_write(tmp_path):
    path = tmp_path / "results.json"
    for rows in ([], [{"a": 1}], [{"a": 1}, {"a": 2}]):
        results.Output(path, None, []).write({"command": "x"}, rows)
        assert json.loads(path.read_text()) == {"header": {"command": "x"}, "rows": rows}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_file_that_cannot_be_replaced_leaves_no_draft(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(IsADirectoryError):
        results.Output(tmp_path / "d", None, []).write({}, [{"a": 1}])
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "link.json", tmp_path / "elsewhere" / "r.json"
    link.symlink_to(file)
    output = results.Output(link, None, [])
    output.check()
    assert not file.exists()
    output.write({}, [{"a": 1}])
    assert link.is_symlink()
    assert json.loads(file.read_text())["rows"] == [{"a": 1}]
    assert [p.name for p in file.parent.iterdir()] == ["r.json"]


def test_csv_has_a_column_for_every_plain_field(tmp_path):
    output = results.Output(tmp_path / "r.json", tmp_path / "r.csv", [])
    output.check()
    output.write({}, [{"a": 1, "in_place": {"x": 1}}, {"a": 2, "b": "y"}])
    assert (tmp_path / "r.csv").read_text().splitlines() == ["a,b", "1,", "2,y"]
    assert results.read(tmp_path / "r.json")[1] == {"a": 2, "b": "y"}


@pytest.mark.parametrize(
    ("option", "name", "why"),
    [
        ("-J", "missing/r.json", "No such file or directory"),
        ("-J", "folder", "it is no file"),
        ("-J", "/dev/null", "it is no file"),
        ("-J", "r" * 251, "File name too long"),  # with .draft behind it
        ("-J", "", "it is no file"),
        ("--csv", "missing/r.csv", "No such file or directory"),
        ("--csv", "folder", "Is a directory"),
        ("--csv", "", "Is a directory"),
    ],
)
def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(tmp_path, monkeypatch, option, name, why):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    output = results.Output(*((Path(name), None) if option == "-J" else (None, Path(name))), [])
    with pytest.raises(InvalidValue, match=rf"{option} .* cannot be written \({why}\); name a file in a folder"):
        output.check()
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_two_outputs_to_one_file_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "r")
    for other in ("r", "link"):
        with pytest.raises(InvalidValue, match=r"-J .*/r and --csv .*/(r|link) are the same file; name two"):
            results.Output(tmp_path / "r", tmp_path / other, []).check()
    results.Output(tmp_path / "r", tmp_path / "s", []).check()


def test_what_a_file_holds_stays_until_there_are_results(tmp_path):
    kept, other = tmp_path / "kept.json", tmp_path / "other.csv"
    kept.write_text("before")
    results.Output(kept, other, []).check()
    assert (kept.read_text(), [p.name for p in tmp_path.iterdir()]) == ("before", ["kept.json"])


def test_describing_the_machine_imports_no_torch():
    code = "import sys; from superpod.benchmarks import results; results.describe([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
