"""Measured points from files: a CSV, what nccl-tests, rccl-tests or hccl_test printed, or superpod-bench's JSON.

CSV columns: cards, nbytes, time_us are needed; machine, algorithm, collective, source may be there, others are ignored.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superpod.interconnect.env import COLLECTIVES
from superpod.interconnect.errors import InvalidValue

_NEEDED = ("cards", "nbytes", "time_us")
_SOURCES = "a CSV with cards, nbytes, time_us, output of nccl-tests, rccl-tests or hccl_test, or superpod-bench's JSON"


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: `seconds` for a call on S = `nbytes`; `algorithm` as its source calls it, or "unstated"."""

    cards: int
    nbytes: int
    seconds: float
    collective: str = "all_reduce"
    algorithm: str = "unstated"
    machine: str = ""


def read(path: Path, *, cards: int | None = None, machine: str | None = None) -> list[Point]:
    """The points of a file, by size.

    Args:
        cards: how many cards it was, where the file does not say so.
        machine: of a CSV of several machines, the one that is meant.
    Raises:
        InvalidValue: no such file, no points in it, a hole or a value that makes no sense: line and column are named.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{path} cannot be read ({error}); name {_SOURCES}") from error
    try:
        found = list(_points(text, cards))
    except InvalidValue as error:
        raise InvalidValue(f"{path.name}: {error}") from error
    machines = sorted({point.machine for point in found})
    if machine is not None:
        found = [point for point in found if point.machine == machine]
    elif len(machines) > 1:
        raise InvalidValue(f"{path.name} has points of {', '.join(machines)}; say which with --machine")
    if not found:
        of = (
            f" of machine {machine!r}; "
            + (f"there are {', '.join(machines)}" if any(machines) else "it names none: leave --machine out")
            if machine is not None
            else f"; it must be {_SOURCES}"
        )
        raise InvalidValue(f"{path.name} has no points{of}")
    return sorted(found, key=lambda point: (point.cards, point.nbytes))


def _points(text: str, cards: int | None) -> Iterator[Point]:
    if text.lstrip().startswith("{"):
        return _from_json(text)
    first = text.lstrip().partition("\n")[0]
    if "data_size(Bytes)" in text:
        return _from_hccl(text, cards)
    if "," in first and not first.startswith("#"):
        return _from_csv(text)
    return _from_nccl(text, cards)


def _from_csv(text: str) -> Iterator[Point]:
    reader = csv.DictReader(text.splitlines())
    missing = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise InvalidValue(f"column {', '.join(missing)} is missing; needed are {', '.join(_NEEDED)}")
    for row in reader:
        where = f"line {reader.line_num}"
        cards, nbytes, microseconds = (_number(where, name, row.get(name)) for name in _NEEDED)
        collective = row.get("collective") or "all_reduce"
        if collective not in COLLECTIVES:
            raise InvalidValue(f"{where}: collective {collective!r} must be one of {', '.join(COLLECTIVES)}")
        names = (collective, row.get("algorithm") or "unstated", row.get("machine") or "")
        yield _point(where, cards, nbytes, microseconds, *names)


def _number(where: str, name: str, text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        what = "is empty" if not (text or "").strip() else f"{text!r} is no number"
        raise InvalidValue(f"{where}: {name} {what}; fill it in, or remove the line") from None


def _point(
    where: str, cards: float, nbytes: float, microseconds: float, collective: str, algorithm: str, machine: str = ""
) -> Point:
    for name, value, least in (("cards", cards, 2), ("nbytes", nbytes, 1)):
        if value < least or value != int(value):
            raise InvalidValue(f"{where}: {name}={value:g} must be a whole number, at least {least}")
    if not 0 < microseconds < float("inf"):
        raise InvalidValue(f"{where}: time_us={microseconds:g} must be above 0; remove the line")
    return Point(int(cards), int(nbytes), microseconds * 1e-6, collective, algorithm, machine)


def _from_json(text: str) -> Iterator[Point]:
    try:
        rows: list[dict[str, Any]] = json.loads(text)["rows"]
        for i, row in enumerate(rows):
            if row["collective"] in COLLECTIVES and row["collective"] != "barrier":
                values = (row["world_size"], row["nbytes"], row["time_us"])
                yield _point(f"row {i}", *values, row["collective"], row["algorithm"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue(f"no results of superpod-bench ({error!r}); write them with superpod-bench -J") from error


def _from_nccl(text: str, cards: int | None) -> Iterator[Point]:
    """Rows "size count type redop root time algbw busbw …"; ranks are listed in the comments above."""
    ranks = len(re.findall(r"^#\s+Rank\s+\d+", text, re.MULTILINE))
    named = re.search(r"nranks (\d+)", text)
    number = cards or ranks or (int(named[1]) if named else 0)
    called = re.search(r"(\w+?)_perf", text)
    collective = {"alltoall": "all_to_all"}.get(called[1], called[1]) if called else "all_reduce"
    if collective not in COLLECTIVES:
        raise InvalidValue(f"{collective} must be one of {', '.join(COLLECTIVES)}")
    for i, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if len(fields) >= 8 and fields[0].isdigit() and fields[1].isdigit() and int(fields[0]) > 0:
            if number == 0:
                raise InvalidValue("it does not say how many cards took part; say it with --cards")
            yield _point(
                f"line {i}", number, int(fields[0]), _number(f"line {i}", "time", fields[5]), collective, "unstated"
            )


def _from_hccl(text: str, cards: int | None) -> Iterator[Point]:
    """Rows "data_size | aveg_time | alg_bandwidth | check_result", with or without bars."""
    if cards is None:
        raise InvalidValue("hccl_test does not say how many cards took part; say it with --cards")
    for i, line in enumerate(text.splitlines(), 1):
        fields = [field.strip() for field in line.split("|") if field.strip()] if "|" in line else line.split()
        if len(fields) >= 3 and fields[0].isdigit():
            yield _point(
                f"line {i}",
                cards,
                int(fields[0]),
                _number(f"line {i}", "aveg_time", fields[1]),
                "all_reduce",
                "unstated",
            )
