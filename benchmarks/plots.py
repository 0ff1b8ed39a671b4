"""superpod-bench plot: pictures of result files. Needs matplotlib, from the extra `bench`."""

from __future__ import annotations

import argparse
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superpod.benchmarks.results import Row, read
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import size_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DESCRIPTION = """\
Draw the results of superpod-bench, one column of panels for each number of cards.

  time, busbw, memory   median time, bus bandwidth or share of what memory carries, over size; one row of panels for
                        each collective, one line for each program, or each algorithm where several were measured
  ratio                 a heat map of collectives and sizes: the best peer's time / ours, of a run with --peers"""
_COLOURS = ("#c8102e", "#3b6ea5", "#e08e0b", "#4f8a5b", "#7d5ba6", "#6b6b6b", "#a0522d", "#1f9e9e", "#b03a84")
_FIELDS = {
    "time": ("median_us", "median time of a call [µs]"),
    "busbw": ("busbw_gbps", "bus bandwidth [GB/s]"),
    "memory": ("memory_share", "share of the memory limit"),
}
_PALE = 3.0  # log2 of the ratio at which a colour is full: 8 times

Panels = dict[tuple[str, int], dict[str, list[tuple[int, float]]]]


def main(argv: Sequence[str]) -> int:
    """The subcommand. Raises InvalidValue for a file that has no results."""
    parser = argparse.ArgumentParser(
        "superpod-bench plot", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="written by superpod-bench ... -J")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the picture: .png, .svg or .pdf")
    parser.add_argument("--kind", choices=(*_FIELDS, "ratio"), default="time", help="what to draw (default time)")
    parser.add_argument("--through", choices=("numpy", "torch"), default="numpy", help="whose ratios (default numpy)")
    parser.add_argument("--title", default="", help="what stands above it")
    args = parser.parse_args(argv)
    rows = [row for file in args.results for row in read(file)]
    if args.kind == "ratio":
        draw_ratios(rows, args.output, args.title, args.through)
    else:
        draw(rows, args.output, args.title, args.kind)
    return 0


def lines(rows: Sequence[Row], field: str = "median_us") -> Panels:
    """(collective, cards) → name of the line → (bytes, the field), by size."""
    panels: Panels = defaultdict(lambda: defaultdict(list))
    for row in rows:
        panels[row["collective"], row["world_size"]][_name(row, rows)].append((row["nbytes"], row[field]))
    return {panel: {name: sorted(points) for name, points in some.items()} for panel, some in panels.items()}


def ratios(rows: Sequence[Row], through: str) -> dict[int, dict[tuple[str, int], float]]:
    """Cards → (collective, bytes) → the best peer's time / superpod's, called through numpy or torch."""
    found: dict[int, dict[tuple[str, int], float]] = defaultdict(dict)
    for row in rows:
        by_itself = row.get("player") in (None, row.get("backend"))  # and not one of several series of superpod's
        if row.get("through") == through and by_itself and "best_peer_ratio" in row:
            found[row["world_size"]][row["collective"], row["nbytes"]] = row["best_peer_ratio"]
    return dict(sorted(found.items()))


def _name(row: Row, rows: Sequence[Row]) -> str:
    """What tells a row's line from the others."""
    if "backend" in row:
        return str(row.get("player") or row["backend"])
    fields = [f for f in ("requested_algorithm", "dtype", "op") if len({r.get(f) for r in rows}) > 1]
    return " ".join(str(row[f]) for f in fields) or str(row["collective"])


def draw(rows: Sequence[Row], output: Path, title: str, kind: str = "time") -> None:
    """Write the picture of times or bandwidths over sizes. Raises InvalidValue as `_figure` and `_save` do."""
    field, label = _FIELDS[kind]
    panels = lines([row for row in rows if row["nbytes"]], field)
    collectives, worlds = list(dict.fromkeys(c for c, _ in panels)), sorted({n for _, n in panels})
    figure = _figure(1.2 + 3.6 * len(worlds), 0.6 + 3.2 * len(collectives))
    names = sorted({name for some in panels.values() for name in some}, key=lambda n: (not n.startswith("superpod"), n))
    colours = dict(zip(names, _COLOURS * (1 + len(names) // len(_COLOURS)), strict=False))
    grid = figure.subplots(len(collectives), len(worlds), squeeze=False)
    for (collective, cards), some in panels.items():
        axes = grid[collectives.index(collective)][worlds.index(cards)]
        _lines(axes, some, colours)
        if kind == "memory":
            axes.set(yscale="linear", ylim=(0, 1))
        axes.set_title(f"{collective}, {cards} cards" if len(collectives) > 1 else f"{cards} cards")
    grid[0][0].set_ylabel(label)
    grid[0][0].legend(frameon=False)
    _save(figure, output, title)


def _lines(axes: Axes, some: dict[str, list[tuple[int, float]]], colours: dict[str, str]) -> None:
    for name in sorted(some, key=list(colours).index):
        sizes, values = zip(*some[name], strict=True)
        axes.plot(sizes, values, "o-", color=colours[name], label=name, linewidth=1.6, markersize=3.5)
    axes.set(xscale="log", yscale="log", xlabel="size")
    ticks = sorted({nbytes for points in some.values() for nbytes, _ in points})
    ticks = ticks[:: -(-len(ticks) // 6)]
    axes.set_xticks(ticks, [size_text(t) for t in ticks], fontsize=7, rotation=45)
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def draw_ratios(rows: Sequence[Row], output: Path, title: str, through: str) -> None:
    """Write the heat map. Raises InvalidValue when the rows are of a run without peers, and as `draw` does."""
    panels = ratios(rows, through)
    if not panels:
        raise InvalidValue(f"no row has a peer's ratio to superpod through {through}; run superpod-bench with --peers")
    collectives = list(dict.fromkeys(c for cells in panels.values() for c, _ in cells))
    sizes = sorted({nbytes for cells in panels.values() for _, nbytes in cells})
    figure = _figure(2.2 + (0.8 + 0.62 * len(sizes)) * len(panels), 1.4 + 0.42 * len(collectives))
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (cards, cells) in zip(grid, panels.items(), strict=True):
        table = [[cells.get((c, nbytes), math.nan) for nbytes in sizes] for c in collectives]
        shades = [[math.log2(value) if value > 0 else math.nan for value in row] for row in table]
        axes.imshow(shades, cmap="RdYlGn", vmin=-_PALE, vmax=_PALE, aspect="auto")
        for y, row in enumerate(table):
            for x, value in enumerate(row):
                if not math.isnan(value):
                    axes.text(x, y, f"{value:.3g}", color=_ink(value), ha="center", va="center", fontsize=7)
        axes.set_xticks(range(len(sizes)), [size_text(nbytes) for nbytes in sizes], fontsize=7, rotation=45)
        axes.set_yticks(range(len(collectives)), collectives if axes is grid[0] else [""] * len(collectives))
        axes.set_title(f"{cards} cards")
    _save(figure, output, title or f"the best peer's time / superpod's, through {through}")


def _ink(value: float) -> str:
    """White where the shade is dark."""
    return "white" if value <= 0 or abs(math.log2(value)) > 0.7 * _PALE else "black"


def _figure(width: float, height: float) -> Any:
    """An empty figure. Raises InvalidValue without matplotlib."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidValue("superpod-bench plot needs matplotlib; install superpod[bench]") from error
    mpl.rcParams["svg.hashsalt"] = "superpod"  # the same results, the same file
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, output: Path, title: str) -> None:
    """Raises InvalidValue for a name that matplotlib does not know, or where nothing can be written."""
    figure.suptitle(title)
    picture = io.BytesIO()
    undated = {"Date": None} if output.suffix == ".svg" else None
    try:
        if not output.suffix:
            raise ValueError("no suffix says what kind of picture")
        figure.savefig(picture, format=output.suffix[1:], dpi=150, metadata=undated)
        output.write_bytes(picture.getvalue())
    except (OSError, ValueError) as error:
        raise InvalidValue(f"--output {output} cannot be written ({error}); name a .png, .svg or .pdf") from error
