"""Pictures of result files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from superpod.benchmarks import cli, plots, results
from superpod.interconnect.errors import InvalidValue


def row(**fields: Any) -> dict[str, Any]:
    return {"collective": "all_reduce", "world_size": 2, "nbytes": 8, "median_us": 1.0, "dtype": "float32"} | fields


def test_a_panel_for_each_number_of_cards_and_a_line_for_each_backend() -> None:
    rows = [
        row(backend=backend, world_size=cards, nbytes=nbytes, median_us=time)
        for backend, time in (("superpod", 2.0), ("gloo", 5.0))
        for cards in (8, 2)
        for nbytes in (1024, 8)
    ]
    panels = plots.lines(rows)
    assert sorted(panels) == [("all_reduce", 2), ("all_reduce", 8)]
    assert panels["all_reduce", 8] == {"superpod": [(8, 2.0), (1024, 2.0)], "gloo": [(8, 5.0), (1024, 5.0)]}


def test_lines_are_named_by_what_differs() -> None:
    rows = [row(requested_algorithm=name) for name in ("ring", "tree")]
    assert set(plots.lines(rows)["all_reduce", 2]) == {"ring", "tree"}
    assert set(plots.lines([row()])["all_reduce", 2]) == {"all_reduce"}


RACE = [  # of one collective on 2 cards and another on 4
    row(
        backend=backend,
        through="numpy",
        busbw_gbps=1.0,
        memory_share=0.5,
        collective=collective,
        world_size=cards,
        nbytes=nbytes,
    )
    | ({"best_peer_ratio": ratio} if backend == "superpod" else {})
    for backend in ("superpod", "mpich")
    for collective, cards, nbytes, ratio in (
        ("all_reduce", 2, 8, 0.5),
        ("all_reduce", 2, 64, 4.0),
        ("gather", 4, 8, 1.0),
    )
]


def test_ratios_are_those_of_superpod_called_in_one_way() -> None:
    assert plots.ratios(RACE, "numpy") == {
        2: {("all_reduce", 8): 0.5, ("all_reduce", 64): 4.0},
        4: {("gather", 8): 1.0},
    }
    assert plots.ratios(RACE, "torch") == {}
    series = [row | {"player": f"{row['backend']} clear", "best_peer_ratio": 9.0} for row in RACE]
    assert plots.ratios([*RACE, *series], "numpy") == plots.ratios(RACE, "numpy")
    assert len(plots.lines([*RACE, *series])["all_reduce", RACE[0]["world_size"]]) > len({r["backend"] for r in RACE})


@pytest.mark.parametrize("kind", ["time", "busbw", "memory", "ratio"])
def test_every_kind_of_picture_of_several_files(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    files = [tmp_path / f"{i}.json" for i in range(2)]
    for i, file in enumerate(files):
        file.write_text(json.dumps({"header": {}, "rows": RACE[i::2]}))
    picture = tmp_path / "p.svg"
    assert cli.main(["plot", *map(str, files), "-o", str(picture), "--kind", kind, "--title", "X"]) == 0
    assert len(picture.read_bytes()) > 5000


def test_no_ratios_without_peers(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"no row has a peer's ratio to superpod through torch; run .* with --peers"):
        plots.draw_ratios(RACE, tmp_path / "p.svg", "", "torch")


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_results_make_the_same_picture(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    source = tmp_path / "r.json"
    source.write_text(
        json.dumps({"header": {}, "rows": [row(backend="superpod"), row(backend="gloo", nbytes=1 << 20)]})
    )
    pictures = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for picture in pictures:
        assert cli.main(["plot", str(source), "-o", str(picture), "--title", "all_reduce"]) == 0
    one, other = (picture.read_bytes() for picture in pictures)
    assert one == other
    assert len(one) > 5000


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "is no result file"), ("[]", "is no result file"), ('{"rows": []}', "has no rows: its run was ended")],
)
def test_a_file_without_results(tmp_path: Path, text: str, why: str) -> None:
    source = tmp_path / "r.json"
    source.write_text(text)
    with pytest.raises(InvalidValue, match=why):
        results.read(source)
    assert cli.main(["plot", str(source), "-o", "x.svg"]) == 2


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere/p.svg", "No such file or directory"),
        ("folder.svg", "Is a directory"),
        ("folder", "no suffix says what kind of picture"),
        ("", "no suffix"),
        ("p.", "no suffix|not supported"),  # which of them depends on Python's version
        (".png", "no suffix"),
        ("p.doc", "'doc' is not supported"),
        *((f"full.{kind}", "No space left on device") for kind in ("svg", "png", "pdf")),
    ],
)
def test_a_picture_that_cannot_be_written(
    tmp_path: Path, name: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.svg"):
        Path(folder).mkdir()
    if name.startswith("full."):
        Path(name).symlink_to("/dev/full")
    Path("r.json").write_text(json.dumps({"header": {}, "rows": [row()]}))
    assert cli.main(["plot", "r.json", "-o", name]) == 2
    shown = capsys.readouterr().err
    assert re.search(rf"--output .* cannot be written \(.*({why}).*\); name a .png, .svg or .pdf", shown)
    assert {path.name for path in tmp_path.iterdir()} - {name} == {"folder", "folder.svg", "r.json"} - {name}
