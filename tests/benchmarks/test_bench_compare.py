"""superpod-bench compare: ratios, and when it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from superpod.benchmarks import cli


def written(path: Path, *medians: tuple[str, int, float], **more: Any) -> str:
    rows = [
        {"collective": "all_reduce", "backend": name, "world_size": 2, "nbytes": nbytes, "median_us": us} | more
        for name, nbytes, us in medians
    ]
    path.write_text(json.dumps({"header": {}, "rows": rows}))
    return str(path)


@pytest.mark.parametrize(
    ("now", "noise", "code"),
    [
        ([("superpod", 8, 12.0), ("gloo", 8, 900.0)], "0.3", 0),  # a peer's slowness is no fault of ours
        ([("superpod", 8, 14.0), ("gloo", 8, 90.0)], "0.3", 1),
        ([("superpod", 8, 14.0), ("gloo", 8, 90.0)], "0.5", 0),
        ([("superpod", 8, 1.0), ("superpod", 64, 1.0)], "0.3", 0),
    ],
)
def test_it_fails_beyond_the_noise(
    tmp_path: Path, now: list[tuple[str, int, float]], noise: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(tmp_path / "old.json", ("superpod", 8, 10.0), ("gloo", 8, 100.0))
    new = written(tmp_path / "new.json", *now)
    assert cli.main(["compare", old, new, "--noise", noise]) == code
    shown = capsys.readouterr().out
    assert f"# {code} of " in shown
    assert ("slower" in shown.splitlines()[0]) == (code == 1)
    assert ("only in the new file" in shown) == (len({nbytes for _, nbytes, _ in now}) > 1)


def test_ratios_are_new_over_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (written(tmp_path / f"{us}.json", ("superpod", 4096, us)) for us in (1000.0, 250.0))
    assert cli.main(["compare", old, new]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == [
        *("all_reduce", "superpod", "n=2", "4", "KiB"),
        *("1,000.0", "→", "250.0", "us", "0.25", "faster"),
    ]


def test_series_of_one_program_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Series have names of their own since superpod is compared with itself; older files have the program's."""
    old = written(tmp_path / "old.json", ("superpod", 8, 10.0))
    new = written(tmp_path / "new.json", ("superpod", 8, 10.0), player="superpod")
    assert cli.main(["compare", old, new]) == 0
    clear = written(tmp_path / "clear.json", ("superpod", 8, 90.0), player="superpod clear")
    rows = [row for file in (new, clear) for row in json.loads(Path(file).read_text())["rows"]]
    Path(new).write_text(json.dumps({"header": {}, "rows": rows}))
    capsys.readouterr()
    assert cli.main(["compare", new, new]) == 0
    assert [line.split()[:4] for line in capsys.readouterr().out.splitlines()[:2]] == [
        ["all_reduce", "superpod", "n=2", "8"],
        ["all_reduce", "superpod", "clear", "n=2"],
    ]


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ({"dtype": "int8"}, [], "have no row in common; compare runs of the same command"),
        ({}, ["--noise", "-1"], "--noise -1.0 must be a number, 0 or more"),
        ({}, ["--noise", "nan"], "--noise nan must be a number, 0 or more"),
        ({}, ["--noise", "inf"], "--noise inf must be a number, 0 or more"),
    ],
)
def test_what_cannot_be_compared(
    tmp_path: Path, more: dict[str, Any], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(tmp_path / "old.json", ("superpod", 8, 10.0))
    new = written(tmp_path / "new.json", ("superpod", 8, 10.0), **more)
    assert cli.main(["compare", old, new, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "is no result file" in capsys.readouterr().err
