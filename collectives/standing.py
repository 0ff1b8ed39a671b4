"""What the cards of a job are doing, in words: who waits in which call for whom, and where the late ones are.

The same sentences stand in an expired wait's error, in the watchdog's report and in `superpod-run --explain`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from superpod.collectives.places import Frame, frames_from
from superpod.collectives.recorder import Record
from superpod.interconnect.errors import ranks_text

_MOST_STACKS = 4  # late cards whose stack is shown; more of them are mostly in the same place
_MOST_LINES = 24
_MOST_FRAMES = 8  # of a stack in a report


@dataclass(frozen=True, slots=True)
class Standing:
    """One card at one moment.

    Attributes:
        calls: what it has recorded, oldest first: all of it, or what is under way and the last of each group.
        groups: the ranks of each group that it is in, by the group's name.
        awaited: the ranks that it waits for, by group.
        stack: of its main thread, the innermost frame first.
        silent: why it has not answered, in words that continue "rank 3 ..."; "" for a card that has.
    """

    rank: int
    calls: tuple[Record, ...] = ()
    groups: Mapping[str, list[int]] = field(default_factory=dict)
    awaited: Mapping[str, list[int]] = field(default_factory=dict)
    stack: tuple[Frame, ...] = ()
    silent: str = ""

    @property
    def under_way(self) -> list[Record]:
        """The calls that it is in: more than one with several threads or groups."""
        return [call for call in self.calls if call.waits]

    def last(self, group: str | None = None) -> Record | None:
        """Its latest collective, of a group or of all."""
        collectives = (c for c in reversed(self.calls) if c.kind == "collective" and group in (None, c.group))
        return next(collectives, None)

    def has_begun(self, call: Record) -> bool:
        """Whether it has come to this collective, which may have ended for it."""
        last = self.last(call.group)
        return last is not None and last.number >= call.number

    def whereabouts(self) -> str:
        """Continues "rank 3 ...": "is in compute() at train.py:88"."""
        if not self.stack:
            return self.silent or "does not say where it is"
        users = next((frame for frame in self.stack if frame.users), self.stack[0])
        inside = f" (inside {self.stack[0]})" if users.users and not self.stack[0].users else ""
        return f"{self.silent}, in {_at(users)}{inside}" if self.silent else f"is in {_at(users)}{inside}"

    def did_last(self, group: str | None = None) -> str:
        """Continues "it ...": its latest collective that has ended."""
        last = self.last(group)
        if self.silent and not self.calls and not self.groups:
            return "has left no record"
        of = "" if group is None else f" of group {group}"
        if last is None:
            return f"has made no collective{of} yet"
        verb = {"done": "did last", "failed": "failed in"}.get(last.state, "is in")
        return f"{verb} {last.title}{_called(last)}"


class _Crowd(NamedTuple):
    """Cards that wait in the same call."""

    call: Record
    ranks: list[int]


def standing_from(rank: int, answer: Mapping[str, Any]) -> Standing:
    """What a card has answered; what makes no sense in it is left out."""
    calls, groups, awaited = answer.get("calls"), answer.get("groups"), answer.get("awaited")
    return Standing(
        rank,
        tuple(records_from(calls)),
        _ranks_by_group(groups),
        _ranks_by_group(awaited),
        tuple(frames_from(answer.get("stack"))),
        str(answer.get("silent", "")),
    )


def records_from(items: Any) -> list[Record]:
    """Records as another process, or a file, gives them; what is none is left out."""
    records = []
    for item in items if isinstance(items, list) else ():
        match item:
            case {"group": str(), "kind": str(), "number": int(), "call": str(), "nbytes": int(), "state": str()}:
                place, started, ended = item.get("place"), item.get("started"), item.get("ended")
                times = [float(t) if isinstance(t, int | float) else None for t in (started, ended)]
                words = place if isinstance(place, str) else ""
                records.append(
                    Record(
                        item["group"],
                        item["kind"],
                        item["number"],
                        item["call"],
                        item["nbytes"],
                        times[0] or 0.0,
                        times[1],
                        item["state"],
                        words,
                    )
                )
    return records


def _ranks_by_group(item: Any) -> dict[str, list[int]]:
    if not isinstance(item, dict):
        return {}
    return {
        str(name): [r for r in ranks if isinstance(r, int)] for name, ranks in item.items() if isinstance(ranks, list)
    }


# Words


def describe(standings: Mapping[int, Standing], *, states: Collection[str] = ("waiting",)) -> list[str]:
    """The cards in a few lines, those that are in the same state together; the stacks of the late ones below.

    Args:
        states: which records count as calls that a card is in: in a job that has failed, the failed ones too.
    """
    crowds, waiting, late = _crowds(standings, states), set[int](), set[int]()
    lines = []
    for call, ranks in crowds:
        missing = _missing(call, standings)
        waiting.update(ranks)
        late.update(missing)
        lines.append(_crowd_line(call, ranks, missing, standings))
    rest = [s for rank, s in sorted(standings.items()) if rank not in waiting or rank in late]
    lines += _others(rest, late, {c.group for c, _ in crowds if c.kind == "collective"})
    return (
        lines if len(lines) <= _MOST_LINES else [*lines[:_MOST_LINES], f"... and {len(lines) - _MOST_LINES} lines more"]
    )


def _crowds(standings: Mapping[int, Standing], states: Collection[str]) -> list[_Crowd]:
    """The calls that somebody is in, the earliest begun first."""
    found: dict[tuple[str, str, int, str, str], _Crowd] = {}
    for rank, standing in sorted(standings.items()):
        for call in standing.calls:
            if call.state in states:
                key = (call.group, call.kind, call.number if call.kind == "collective" else 0, call.call, call.place)
                found.setdefault(key, _Crowd(call, [])).ranks.append(rank)
    return sorted(found.values(), key=lambda crowd: (crowd.call.kind != "collective", crowd.call.started))


def _missing(call: Record, standings: Mapping[int, Standing]) -> list[int]:
    """The members of the call's group that have not come to it; of a message, its other end."""
    members = next((s.groups[call.group] for s in standings.values() if call.group in s.groups), [])
    if call.kind != "collective":
        other = re.search(r" (?:from|to) rank (\d+)$", call.call)  # its rank in the group
        return [members[int(other[1])]] if other is not None and int(other[1]) < len(members) else []
    return [rank for rank in members if rank in standings and not standings[rank].has_begun(call)]


def _crowd_line(call: Record, ranks: list[int], missing: list[int], standings: Mapping[int, Standing]) -> str:
    awaited = {rank for r in ranks for rank in standings[r].awaited.get(call.group, [])}
    whom, group = "", ""
    if call.kind == "collective":
        whom = f" for {ranks_text(missing or awaited)}" if missing or awaited else ""
        group = f" of group {call.group}"
    n = len(ranks)
    if call.state == "failed":
        return f"{ranks_text(ranks)} {'was' if n == 1 else 'were'} in {call.title}{group}{_called(call)}, which failed"
    return f"{ranks_text(ranks)} {'waits' if n == 1 else 'wait'} in {call.title}{group}{_called(call)}{whom}"


def _others(rest: list[Standing], late: set[int], groups: set[str]) -> list[str]:
    """Those who wait for nobody, or for whom others wait: the latter first, with their stacks."""
    group = next(iter(groups)) if len(groups) == 1 else None
    alike: dict[tuple[bool, str, str], list[Standing]] = defaultdict(list)
    for standing in rest:
        told = group if group is not None and group in standing.groups else None
        alike[standing.rank not in late, standing.whereabouts(), standing.did_last(told)].append(standing)
    lines, stacks = [], 0
    for (_, where, last), members in sorted(alike.items(), key=lambda item: (item[0][0], item[1][0].rank)):
        n, who = len(members), ranks_text(s.rank for s in members)
        lines.append(f"{who} {_plural(where, n)}; {'it' if n == 1 else 'they'} {_plural(last, n)}")
        if members[0].rank in late and members[0].stack and stacks < _MOST_STACKS:
            stacks += 1
            lines += [f"  {frame}" for frame in stack_lines(members[0].stack)]
    return lines


def stack_lines(stack: Iterable[Frame]) -> list[str]:
    """The user's frames first, the innermost on top; then what they have called in libraries."""
    frames = list(stack)
    users = [f for f in frames if f.users][:_MOST_FRAMES]
    inner = frames[: frames.index(users[0])] if users else frames
    lines = [str(frame) for frame in users]
    if inner:
        lines.append("inside: " + " < ".join(str(frame) for frame in inner[:3]))
    return lines


def _called(call: Record) -> str:
    return f", called in {call.place}" if call.place else ""


def _at(frame: Frame) -> str:
    name = "the script" if frame.function == "<module>" else f"{frame.function}()"
    return f"{name} at {frame.file}:{frame.line}"


_PLURALS = {"is": "are", "has": "have", "does": "do", "was": "were", "sleeps": "sleep", "waits": "wait"}


def _plural(words: str, count: int) -> str:
    """ "is in f()" of two: "are in f()"."""
    head, space, rest = words.partition(" ")
    return words if count == 1 else _PLURALS.get(head, head) + space + rest
