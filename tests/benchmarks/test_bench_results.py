"""A result file says where its figures come from and is complete at any time."""

import json
import os
import subprocess
import sys

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
    file = results.ResultFile(path, {"command": "x"})
    assert json.loads(path.read_text()) == {"header": {"command": "x"}, "rows": []}
    for rows in ([{"a": 1}], [{"a": 1}, {"a": 2}]):
        file.write(rows)
        assert json.loads(path.read_text())["rows"] == rows
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path):
    with pytest.raises(InvalidValue, match=r"-J .*/missing/r.json cannot be written \(No such file or directory\)"):
        results.ResultFile(tmp_path / "missing" / "r.json", {})


def test_csv_has_a_column_for_every_plain_field(tmp_path):
    output = results.Output(tmp_path / "r.json", tmp_path / "r.csv", [])
    output.check()
    output.write({}, [{"a": 1, "in_place": {"x": 1}}, {"a": 2, "b": "y"}])
    assert (tmp_path / "r.csv").read_text().splitlines() == ["a,b", "1,", "2,y"]
    assert results.read(tmp_path / "r.json")[1] == {"a": 2, "b": "y"}


def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(InvalidValue, match=r"--csv .*/missing/r.csv cannot be written \(No such file or directory\)"):
        results.Output(None, tmp_path / "missing" / "r.csv", []).check()


def test_describing_the_machine_imports_no_torch():
    code = "import sys; from superpod.benchmarks import results; results.describe([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
