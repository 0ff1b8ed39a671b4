"""The table on the terminal, in nccl-tests' layout, so that eyes and scripts find what they know where they know it.

Behind its columns stand two of ours: how many calls were timed, and the algorithm that ran.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_NUMBERS = "{:>7}  {:>6}  {:>6} {:>6}"
_LINE = "{:>12}  {:>12}  {:>8}  {:>6}  {:>6}  {}  {}  {:>5}  {}"


def header() -> str:
    """The three lines above the rows."""
    titles = _NUMBERS.format("time", "algbw", "busbw", "#wrong")
    units = _NUMBERS.format("(us)", "(GB/s)", "(GB/s)", "")
    width = len(titles)
    lines = (
        ("", "", "", "", "", "out-of-place".center(width), "in-place".center(width), "", ""),
        ("size", "count", "type", "redop", "root", titles, titles, "iters", "algorithm"),
        ("(B)", "(elements)", "", "", "", units, units, "", ""),
    )
    return "\n".join("#" + _LINE.format(*line)[1:].rstrip() for line in lines)


def line(row: dict[str, Any]) -> str:
    """One row of results."""
    return _LINE.format(
        *(row[column] for column in ("nbytes", "count", "dtype", "op", "root")),
        _numbers(row["out_of_place"]),
        _numbers(row["in_place"]),
        row["iters"],
        row["algorithm"],
    )


def _numbers(place: dict[str, Any] | None) -> str:
    if place is None:
        return _NUMBERS.format(*["N/A"] * 4)
    wrong = "N/A" if place["wrong"] is None else place["wrong"]
    return _NUMBERS.format(_time(place["time_us"]), f"{place['algbw_gbps']:.2f}", f"{place['busbw_gbps']:.2f}", wrong)


def _time(microseconds: float) -> str:
    """Seven characters hold four digits that matter, up to ten seconds."""
    return f"{microseconds:.{2 if microseconds < 100 else 1 if microseconds < 10_000 else 0}f}"


def footer(rows: Iterable[dict[str, Any]]) -> str:
    """Wrong elements and the mean bus bandwidth of all columns of all rows."""
    places = [row[place] for row in rows for place in ("out_of_place", "in_place") if row[place] is not None]
    wrong = [place["wrong"] for place in places if place["wrong"] is not None]
    checked = f"{sum(wrong)} {'OK' if not any(wrong) else 'FAILED'}" if wrong else "not checked"
    average = sum(place["busbw_gbps"] for place in places) / len(places) if places else 0.0
    return f"# Out of bounds values : {checked}\n# Avg bus bandwidth    : {average:.6g}\n#"
