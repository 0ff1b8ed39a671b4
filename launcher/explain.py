"""superpod-run --explain: what a flight record says went wrong, in words."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from superpod.collectives.recorder import Record
from superpod.collectives.standing import Standing, describe
from superpod.interconnect.errors import ranks_text
from superpod.launcher.flight import FlightRecord, read_flight_record
from superpod.launcher.outcome import in_common

_MOST_GROUPS = 4  # of which differences are shown


def explain(path: Path) -> str:
    """The file's story: the failure, the first difference between ranks, who waited for whom, where each was.

    Raises InvalidValue when the file is no flight record.
    """
    record = read_flight_record(path)
    lines = [_headline(record), *_failure(record)]
    if not any(card.calls for card in record.cards.values()):
        lines.append("no card has recorded a call: superpod was not used, or SUPERPOD_RECORD=0")
    else:
        lines += _differences(record.cards)
        lines.append("where the cards were:")
        lines += [f"  {line}" for line in describe(record.cards, states=("waiting", "failed"))]
    return "\n".join(lines) + "\n"


def _headline(record: FlightRecord) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.written))
    return f"flight record of {record.world_size} cards on {record.host}, {when}: {record.reason}"


def _failure(record: FlightRecord) -> list[str]:
    if record.failure is None:
        return ["no card has failed"]
    lines = [f"the first failure: rank {record.failure['rank']} {record.failure['cause']}"]
    others: dict[str, list[int]] = defaultdict(list)
    for rank, how in record.ended.items():
        if rank != record.failure["rank"]:
            others[in_common(how)].append(rank)
    return lines + [f"  {ranks_text(ranks)}: {how}" for how, ranks in sorted(others.items(), key=lambda o: o[1])]


def _differences(cards: Mapping[int, Standing]) -> list[str]:
    """Of each group, the first collective in which its ranks called different things, or which some have not called."""
    names = sorted({name for card in cards.values() for name in card.groups})
    found = [lines for name in names if (lines := _first_difference(name, cards))]
    if not found:
        return ["the ranks of every group have called the same, and equally often"]
    rest = len(found) - _MOST_GROUPS
    lines = [line for lines in found[:_MOST_GROUPS] for line in lines]
    return lines + ([f"and {rest} groups more differ"] if rest > 0 else [])


def _first_difference(name: str, cards: Mapping[int, Standing]) -> list[str]:
    members = next(card.groups[name] for card in cards.values() if name in card.groups)
    by_number: dict[int, dict[int, Record]] = defaultdict(dict)
    for rank in members:
        for call in cards[rank].calls if rank in cards else ():
            if call.kind == "collective" and call.group == name:
                by_number[call.number][rank] = call
    for number, calls in sorted(by_number.items()):
        if len({call.call for call in calls.values()}) > 1:
            return [f"the first difference in group {name}: collective #{number}", *_callers(calls)]
        missing = [rank for rank in members if rank not in calls and _was_before(number, name, cards.get(rank))]
        if missing:
            head = f"the first difference in group {name}: {ranks_text(missing)} did not call collective #{number}"
            return [head, *_callers(calls), *_last(name, missing, cards)]
    return []


def _was_before(number: int, name: str, card: Standing | None) -> bool:
    """Whether a card has not come to this collective, rather than forgotten it."""
    last = None if card is None else card.last(name)
    return last is None or last.number < number


def _callers(calls: Mapping[int, Record]) -> Iterator[str]:
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, call in calls.items():
        alike[call.call, call.place].append(rank)
    for (text, place), ranks in sorted(alike.items(), key=lambda item: item[1]):
        yield f"  {ranks_text(ranks)} called {text}" + (f" in {place}" if place else "")


def _last(name: str, ranks: list[int], cards: Mapping[int, Standing]) -> Iterator[str]:
    alike: dict[str, list[int]] = defaultdict(list)
    for rank in ranks:
        alike[cards[rank].did_last(name) if rank in cards else "is not in the record"].append(rank)
    for words, those in sorted(alike.items(), key=lambda item: item[1]):
        yield f"  {ranks_text(those)}: {words}"
