"""Predictions as pictures: time and bus bandwidth over size, and how busy the links of each level are."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from superpod.benchmarks.results import check_writable
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Topology
from superpod.interconnect.units import size_text
from superpod.simulator.predict import Row, mark_text

_KINDS = (".svg", ".png", ".pdf")
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def check(option: str, path: Path | None) -> None:
    """Raises InvalidValue when no picture could be written there: before minutes of predicting, not after."""
    if path is None:
        return
    if path.suffix not in _KINDS:
        raise InvalidValue(f"{option} {path} must end in one of {', '.join(_KINDS)}")
    check_writable(option, path, replaced=False)
    _pyplot()


def _pyplot() -> Any:
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise InvalidValue("plots need matplotlib, which is not installed; pip install 'superpod[bench]'") from error
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def curves(rows: Sequence[Row], topology: Topology, path: Path) -> None:
    """Time and busbw over size, one line an algorithm; written to `path`."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5))
    by_name = sorted(rows, key=lambda row: str(row["algorithm"]))
    for name, group in groupby(by_name, lambda row: str(row["algorithm"])):
        line = sorted(group, key=lambda row: int(row["nbytes"]))
        sizes = [row["nbytes"] for row in line]
        left.loglog(sizes, [row["seconds"] * 1e6 for row in line], label=name)
        right.loglog(sizes, [row["busbw_gbps"] for row in line], label=name)
    for axes, text in ((left, "predicted time [µs]"), (right, "predicted busbw [GB/s]")):
        axes.set_xlabel("size")
        axes.set_ylabel(text)
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter(lambda value, _: size_text(int(value)))
        axes.tick_params(axis="x", rotation=30)
    right.legend(fontsize="small")
    first = rows[0]
    figure.suptitle(
        f"{first['collective']} on {first['cards']:,} cards of {topology.name}, predicted ({mark_text(first['mark'])})",
        fontsize="medium",
    )
    _save(figure, path)


def heat(rows: Sequence[Row], topology: Topology, path: Path) -> None:
    """How busy the busiest and the mean link of each class are, for each algorithm at the largest size."""
    pyplot = _pyplot()
    largest = max(row["nbytes"] for row in rows)
    shown = [row for row in rows if row["nbytes"] == largest]
    classes = list(shown[0]["links"])
    figure, both = pyplot.subplots(1, 2, figsize=(11, 1.6 + 0.35 * len(shown)), sharey=True)
    for axes, which in zip(both, ("busiest", "mean"), strict=True):
        cells = [[100 * row["links"][name][which] for name in classes] for row in shown]
        axes.imshow(cells, vmin=0, vmax=100, cmap="inferno", aspect="auto")
        axes.set_xticks(range(len(classes)), classes)
        axes.set_yticks(range(len(shown)), [row["algorithm"] for row in shown])
        axes.set_title(f"{which} link, % of the time at work", fontsize="small")
        for y, line in enumerate(cells):
            for x, value in enumerate(line):
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black")
    first = shown[0]
    figure.suptitle(
        f"{first['collective']}, {size_text(largest)}, {first['cards']:,} cards of {topology.name}, predicted",
        fontsize="medium",
    )
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """The same rows give the same file: no date in it."""
    figure.tight_layout()
    pyplot = _pyplot()
    with pyplot.rc_context({"svg.hashsalt": "superpod", "svg.fonttype": "none"}):
        figure.savefig(path, metadata=None if path.suffix == ".png" else _UNDATED[path.suffix])
    pyplot.close(figure)
