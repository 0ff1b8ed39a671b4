"""superpod-bench plot: pictures of result files. Needs matplotlib, from the extra `bench`."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import size_text

Row = dict[str, Any]

_DESCRIPTION = """\
Draw the results of superpod-bench: median time over size, one panel for each number of cards, one line for each
backend, or for each algorithm where several were measured."""
_COLOURS = ("#c8102e", "#3b6ea5", "#e08e0b", "#4f8a5b", "#7d5ba6", "#6b6b6b", "#a0522d", "#1f9e9e", "#b03a84")


def main(argv: Sequence[str]) -> int:
    """The subcommand. Raises InvalidValue for a file that has no results."""
    parser = argparse.ArgumentParser(
        "superpod-bench plot", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="a file written by superpod-bench ... -J")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture: .png, .svg or .pdf")
    parser.add_argument("--title", default="", help="what stands above it")
    args = parser.parse_args(argv)
    draw(read(args.results), args.output, args.title)
    return 0


def read(path: Path) -> list[Row]:
    """The rows of a result file. Raises InvalidValue."""
    try:
        rows: list[Row] = json.loads(path.read_text())["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidValue(
            f"{path} is no result file ({error}); write one with superpod-bench ... -J {path}"
        ) from error
    if not rows:
        raise InvalidValue(f"{path} has no rows: its run was ended before the first result")
    return rows


def lines(rows: Sequence[Row]) -> dict[int, dict[str, list[tuple[int, float]]]]:
    """Cards → name of the line → (bytes, median time in µs), by size."""
    panels: dict[int, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        panels[row["world_size"]][_name(row, rows)].append((row["nbytes"], row["median_us"]))
    return {cards: {name: sorted(points) for name, points in panel.items()} for cards, panel in sorted(panels.items())}


def _name(row: Row, rows: Sequence[Row]) -> str:
    """What tells a row's line from the others."""
    if "backend" in row:
        return str(row["backend"])
    fields = [f for f in ("collective", "requested_algorithm", "dtype", "op") if len({r.get(f) for r in rows}) > 1]
    return " ".join(str(row[f]) for f in fields) or str(row["collective"])


def draw(rows: Sequence[Row], output: Path, title: str) -> None:
    """Write the picture. Raises InvalidValue without matplotlib, or for a name that it does not know."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidValue("superpod-bench plot needs matplotlib; install superpod[bench]") from error
    mpl.rcParams["svg.hashsalt"] = "superpod"  # the same results, the same file
    panels = lines(rows)
    figure = Figure(figsize=(1.2 + 3.6 * len(panels), 3.8), layout="constrained")
    names = sorted({name for panel in panels.values() for name in panel}, key=lambda n: (n != "superpod", n))
    colours = dict(zip(names, _COLOURS * (1 + len(names) // len(_COLOURS)), strict=False))
    for axes, (cards, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in sorted(panel, key=names.index):
            sizes, times = zip(*panel[name], strict=True)
            axes.plot(sizes, times, "o-", color=colours[name], label=name, linewidth=1.6, markersize=3.5)
        axes.set(xscale="log", yscale="log", title=f"{cards} cards", xlabel="size")
        ticks = sorted({nbytes for points in panel.values() for nbytes, _ in points})
        ticks = ticks[:: -(-len(ticks) // 6)]
        axes.set_xticks(ticks, [size_text(t) for t in ticks], fontsize=7)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    first = figure.axes[0]
    first.set_ylabel("median time of a call [µs]")
    first.legend(frameon=False)
    figure.suptitle(title)
    try:
        figure.savefig(output, dpi=150, metadata={"Date": None} if output.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise InvalidValue(f"--output {output} cannot be written ({error}); name a .png, .svg or .pdf") from error
