"""The flight record of a job as a file: JSON that people can load, and that `superpod-run --explain` reads.

    {"format": "superpod flight record 1",
     "written": seconds since the epoch, "host": name, "world_size": n, "reason": why it was written, in words,
     "failure": {"rank": r, "pid": p, "cause": words} or null,
     "columns": the names of what stands in a call: see Record,
     "cards": [{"rank": r, "pid": p, "ended": how, in words that continue "rank r ...",
                "groups": {name: ranks}, "awaited": {name: ranks},
                "stack": [[file, line, function, whether it is the user's code], ...],
                "silent": why it did not answer, "calls": [[a value a column], ...]}, ...]}

Calls stand oldest first, stacks innermost frame first. "stack" and "awaited" are those of the moment of the failure.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from superpod.collectives.recorder import Record
from superpod.collectives.standing import Standing, standing_from
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.outcome import Outcome

FORMAT = "superpod flight record 1"
COLUMNS = [field.name for field in fields(Record)]
FILE_NAME = "flight.json"  # in a log directory


@dataclass(frozen=True, slots=True)
class FlightRecord:
    """A file's contents: see the top of this file. `ended`: by rank."""

    written: float
    host: str
    world_size: int
    reason: str
    failure: dict[str, Any] | None
    cards: Mapping[int, Standing]
    ended: Mapping[int, str]


def flight_record(outcome: Outcome, cards: Mapping[int, Standing], host: str, reason: str) -> dict[str, Any]:
    """The record as JSON has it."""
    first = outcome.first_failure()
    return {
        "format": FORMAT,
        "written": round(time.time(), 3),
        "host": host,
        "world_size": len(outcome.cards),
        "reason": reason,
        "failure": None if first is None else {"rank": first.rank, "pid": first.pid, "cause": first.cause},
        "columns": COLUMNS,
        "cards": [
            {
                "rank": card.rank,
                "pid": card.pid,
                "ended": card.doing,
                "groups": dict(cards[card.rank].groups),
                "awaited": dict(cards[card.rank].awaited),
                "stack": [list(frame) for frame in cards[card.rank].stack],
                "silent": cards[card.rank].silent,
                "calls": [[getattr(call, column) for column in COLUMNS] for call in cards[card.rank].calls],
            }
            for card in outcome.cards
        ],
    }


def write_record(path: Path | None, record: dict[str, Any]) -> Path:
    """Write it to `path`, or to a new file in the temporary directory; returns where. Raises OSError."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    if path is None:
        fd, name = tempfile.mkstemp(prefix="superpod-flight-", suffix=".json")  # mode 0600
        with os.fdopen(fd, "w") as file:
            file.write(text)
        return Path(name)
    path.write_text(text)
    return path


def read_flight_record(path: Path) -> FlightRecord:
    """Raises InvalidValue when the file cannot be read, is no flight record, or a damaged one."""
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise InvalidValue(f"flight record {path} must be a file that can be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"flight record {path} is not JSON ({error}); was it written in full?") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise InvalidValue(f"flight record {path} must have the format {FORMAT!r}, not {found!r}")
    try:
        cards = {_rank(card): _card(card, data["columns"]) for card in data["cards"]}
        ended = {_rank(card): str(card["ended"]) for card in data["cards"]}
        written, size, failure = float(data["written"]), int(data["world_size"]), _failure(data["failure"])
        time.localtime(written)
        return FlightRecord(written, str(data["host"]), size, str(data["reason"]), failure, cards, ended)
    except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
        raise InvalidValue(f"flight record {path} is damaged: {type(error).__name__} {error}") from error


def _rank(told: Any) -> int:
    """The rank in a card or in the failure. Raises TypeError, KeyError, ValueError."""
    if type(rank := told["rank"]) is not int:
        raise ValueError(f"rank={rank!r} must be a number")
    return rank


def _failure(failure: Any) -> dict[str, Any] | None:
    return None if failure is None else {"rank": _rank(failure), "cause": str(failure["cause"])}


def _card(card: dict[str, Any], columns: list[str]) -> Standing:
    calls = [dict(zip(columns, call, strict=True)) for call in card["calls"]]
    return standing_from(card["rank"], {**card, "calls": calls})
