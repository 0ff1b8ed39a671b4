"""The modelled clock's closing table, for people."""

from __future__ import annotations

from typing import Any

from superpod.interconnect.units import seconds_text, size_text

_MARKS = {
    "A": "read in primary sources",
    "fitted": "fitted to measured points",
    "B": "B, secondary",
    "D": "D, arithmetic from other figures",
    "V": "V, a vendor's target",
    "assumed": "assumed",
}
_LATE = 0.1  # of the time that was asked for: what shaped links promise
_WIDEST = 20  # characters of a column's title; what is longer gets a number, and is told below
_WORDS = (0, 1, -1)  # columns that stand to the left


def clock_table(numbers: dict[str, Any]) -> str:
    """`books`' numbers as text."""
    lines = [
        f"superpod-run: as if on {numbers['topology']}: {numbers['title']}",
        f"  modelled, not measured; its least sure figure is {_MARKS[numbers['mark']]}; placement "
        f"{_shortened(numbers['placement'])}, faults: {_shortened(numbers['faults'])}",
    ]
    lines += _table(numbers) if numbers["operations"] else ["  no card has communicated"]
    return "\n".join(lines + _notes(numbers)) + "\n"


def _table(numbers: dict[str, Any]) -> list[str]:
    others = [other for other in numbers["what_if"] if "refused" not in other]
    columns = [numbers, *others]
    rows = [("operation", "algorithm", "calls", "bytes", "wall", "modelled", *map(_title, others), "waits for")]
    for index, row in enumerate(numbers["operations"]):
        times = [row["wall"], *(column["operations"][index]["modelled"] for column in columns)]
        amounts = (str(row["calls"]), size_text(row["bytes"]), *map(seconds_text, times))
        rows.append((row["operation"], row["algorithm"], *amounts, _waits_for(row)))
    rows.append(_sum("in all", [c["seconds"] for c in columns], f"rank {numbers['slowest']}, which has most of it"))
    if numbers["virtual"] is not None:
        rows.append(_sum("waiting", [c["virtual"] for c in columns], "in all, with waiting for one another"))
    if (step := numbers["step"]) is not None:
        about = f"median of {step['steps']} steps; the longest {seconds_text(step['longest'])}"
        rows.append(_sum("a step", [c["step"]["median"] for c in columns], about))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_aligned(row, widths) for row in rows]


def _title(other: dict[str, Any]) -> str:
    return other["asked"] if len(other["asked"]) <= _WIDEST else f"what if {other['number']}"


def _sum(what: str, times: list[float], about: str) -> tuple[str, ...]:
    return (what, "", "", "", "", *map(seconds_text, times), about)


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    """Words to the left, numbers to the right."""
    left = {column % len(row) for column in _WORDS}
    cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
    return "  " + "  ".join(cells).rstrip()


def _waits_for(row: dict[str, Any]) -> str:
    busy = f"{row['bottleneck']} busy {100 * row['utilisation']:.0f} %"
    return busy if row["utilisation"] >= 0.5 else f"latency ({busy})"  # as superpod-sim best puts it


def _notes(numbers: dict[str, Any]) -> list[str]:
    notes = []
    for other in numbers["what_if"]:
        if "refused" in other:
            notes.append(f"  --what-if {other['asked']} is left out: {other['refused']}")
        elif _title(other) != other["asked"]:
            notes.append(f"  {_title(other)}: {other['asked']}")
    if numbers["operations"] and numbers["step"] is None:
        notes.append("  no step was marked: a torch optimizer does it, and superpod.clock().step()")
    if numbers["operations"] and numbers["cards_told"] < numbers["cards"]:
        notes.append(f"  {numbers['cards'] - numbers['cards_told']} of {numbers['cards']} cards have told nothing")
    if numbers["uncounted"]:
        notes.append(f"  {numbers['uncounted']} calls of more kinds than a card remembers are left out")
    if "shape" in numbers:
        notes.append(_shape(numbers["shape"]))
    return notes


def _shape(shape: dict[str, Any]) -> str:
    """How well the shaped links kept their times."""
    head = f"  links shaped, {shape['time_scale']:g} times as long"
    if not shape["frames"]:
        return f"{head}: no card has waited for a frame, so nothing can be said of their times"
    late = shape["took"] / shape["asked"] - 1 if shape["asked"] else 0.0
    within = 100 * shape["on_time"] / shape["frames"]
    text = (
        f"{head}: of {shape['frames']:,} frames that were waited for {within:.0f} % came within 10 % of their time, "
        f"all together {100 * late:.1f} % late"
    )
    if late > _LATE:
        return f"{text}; this host does not keep up: take a larger --time-scale, or fewer cards"
    return text


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
