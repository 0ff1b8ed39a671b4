"""A job's outcome as text and as JSON: the first failure in one block, and the closing summary."""

from __future__ import annotations

import json
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

from superpod.interconnect.errors import ranks_text
from superpod.interconnect.units import seconds_text, size_text
from superpod.launcher.outcome import Card, Outcome, in_common
from superpod.launcher.processes import signal_name

_MOST_GROUPS = 6  # of cards that did the same; the report must fit on a screen
_WIDTH = 200  # characters of what one group was doing
_LINE = 1000  # characters of a line of a traceback


def failure_report(outcome: Outcome, here: str, started: float, last_lines: str) -> str:
    """The block that ends the output of a job that failed; "" for one that did not.

    Args:
        here: the name of the host of cards that have none.
        started: when the job was started, seconds since the epoch.
        last_lines: what the card that failed first printed last on stderr.
    """
    if outcome.own_failure is not None:
        return "\n".join([f"superpod-run: the job failed: {outcome.own_failure}", *_others(outcome, None)]) + "\n"
    if outcome.interrupted == signal.SIGPIPE:
        return ""  # nobody reads any more
    if outcome.interrupted is not None:
        return f"superpod-run: {_interruption(outcome.interrupted)}; all cards have been ended\n"
    first = outcome.first_failure()
    if first is None:
        return ""
    who = f"rank {first.rank} (host {first.host or here}, pid {first.pid})"
    lines = [f"superpod-run: the first failure: {who} {first.cause}"]
    after = seconds_text(max(0.0, (first.failed_at or started) - started))
    lines.append(f"  {after} after the start; the job's exit code is {first.exit_code}")
    if first.error is not None and first.error.traceback:
        lines += _quoted(first.error.traceback)
    elif last_lines:
        lines += ["  its last lines on stderr:", *_quoted(last_lines)]
    return "\n".join([*lines, *_others(outcome, first)]) + "\n"


def _interruption(signum: int) -> str:
    return "interrupted (Ctrl-C)" if signum == signal.SIGINT else f"ended by {signal_name(signum)}"


def _quoted(text: str) -> list[str]:
    return [f"  | {_shortened(line, _LINE)}" for line in text.rstrip().splitlines()]


def _others(outcome: Outcome, first: Card | None) -> list[str]:
    groups: dict[str, list[int]] = defaultdict(list)
    for card in outcome.cards:
        if card is not first:
            groups[_shortened(in_common(card.doing))].append(card.rank)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    lines = [f"  {ranks_text(ranks)}: {doing}" for doing, ranks in ordered[:_MOST_GROUPS]]
    if rest := [rank for _, ranks in ordered[_MOST_GROUPS:] for rank in ranks]:
        lines.append(f"  {ranks_text(rest)}: other endings, each in its own words above")
    return lines


def _shortened(text: str, width: int = _WIDTH) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def summary(outcome: Outcome, started: float, ended: float) -> dict[str, Any]:
    """The job in numbers. Times in seconds from the launcher's start; calls, bytes and seconds see Outcome.operations.

    Keys: world_size, exit_code, seconds, seconds_to_first_collective (the last card's first finished one; null when
    there was none), first_failure (rank, pid, cause; null), operations.
    """
    collective, first = outcome.first_collective(), outcome.first_failure()
    return {
        "world_size": len(outcome.cards),
        "exit_code": outcome.exit_code,
        "seconds": round(ended - started, 3),
        "seconds_to_first_collective": None if collective is None else round(collective - started, 3),
        "first_failure": None if first is None else {"rank": first.rank, "pid": first.pid, "cause": first.cause},
        "operations": outcome.operations,
    }


def summary_table(numbers: dict[str, Any]) -> str:
    """`summary`'s numbers for people."""
    to_first = numbers["seconds_to_first_collective"]
    first = "no collective" if to_first is None else f"first collective after {seconds_text(to_first)}"
    head = f"superpod-run: {numbers['world_size']} cards, {first}, {seconds_text(numbers['seconds'])} in all"
    rows = [("operation", "algorithm", "calls", "bytes", "seconds")]
    for entry in numbers["operations"]:
        amounts = (str(entry["calls"]), size_text(int(entry["bytes"])), seconds_text(entry["seconds"]))
        rows.append((entry["operation"], entry["algorithm"], *amounts))
    if len(rows) == 1:
        return head + "\n"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join([head, *(_aligned(row, widths) for row in rows)]) + "\n"


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    """Words to the left, numbers to the right."""
    words = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
    return "  " + "  ".join([*words, *numbers])


def write_summary(path: Path, numbers: dict[str, Any]) -> None:
    """Raises OSError when the file cannot be written."""
    path.write_text(json.dumps(numbers, indent=2) + "\n")
