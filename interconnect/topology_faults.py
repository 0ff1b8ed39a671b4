"""What is wrong with a machine: links cut or slow, cards slow or dead; said in words, checked, applied to its links.

    cut        "0-1": the link between two cards, both ways;  "5@spine": one of the ports of card 5 at a level;
               "@spine": one of the planes of a switch level, for everybody
    slow       "0-1:0.5", "5@spine:0.5": it carries half
    straggler  "7:2": card 7 takes twice as long for everything: its links and its memory are half as fast
    dead       "9": the card's place is taken by the spare of its unit, a little further away

A fault of one kind is said once of each card, link, port and plane.

Around a cut link traffic goes through each of its neighbours in the same mesh, evenly; in a ring, the other way around.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Topology
from superpod.interconnect.wires import IntArray, LevelWires
from superpod.interconnect.wires_graph import GraphWires

Wires = LevelWires | GraphWires

MOST_TIMES = 1e6  # how much slower a card or a link may be: far beyond it, times overflow


@dataclass(frozen=True, slots=True)
class Faults:
    """Attributes: each a tuple of texts as at the top of the file."""

    cut: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    straggler: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.cut or self.slow or self.straggler or self.dead)

    def __str__(self) -> str:
        names = ("cut", "slow", "straggler", "dead")
        return ", ".join(f"{name} {text}" for name in names for text in getattr(self, name)) or "none"

    @staticmethod
    def parse(text: str) -> Faults:
        """The reverse of str(): "straggler 7:2, cut 0-1". Raises InvalidValue; what each is about, `lay` checks."""
        found: dict[str, list[str]] = {"cut": [], "slow": [], "straggler": [], "dead": []}
        for part in (part.strip() for part in text.split(",") if part.strip() not in ("", "none")):
            kind, _, what = part.partition(" ")
            if kind not in found or not what.strip():
                raise InvalidValue(
                    f"fault {part!r} must be one of {', '.join(found)} and what it is about, such as "
                    "'straggler 7:2' or 'cut 0-1'"
                )
            found[kind].append(what.strip())
        return Faults(**{kind: tuple(texts) for kind, texts in found.items()})

    def slowdown(self) -> float:
        """How many times longer the slowest card takes for its own work."""
        return max([1.0, *(_straggler(text)[1] for text in self.straggler)])


def lay(topology: Topology, faults: Faults | None = None) -> Wires:
    """The machine's links, with what is wrong with them. Raises InvalidValue naming the fault and the way out."""
    wires = LevelWires(topology) if topology.levels else GraphWires(topology)
    if not faults:
        return wires
    wires.even = False
    slow = [_straggler(text) for text in faults.straggler]
    _refuse_twice("straggler", faults.straggler, [{_card(wires, "straggler", name)} for name, _ in slow])
    for name, factor in slow:
        wires.rate[_links_at(wires, _card(wires, "straggler", name))] /= factor
    carry = [_factor("slow", text, 1 / MOST_TIMES, 1.0, "such as 0-1:0.5") for text in faults.slow]
    links = [_find(wires, "slow", name) for name, _ in carry]
    _refuse_twice("slow", faults.slow, links)
    for (_, factor), there in zip(carry, links, strict=True):
        wires.rate[there] *= factor
    _replace(wires, faults.dead)
    planes = [text for text in faults.cut if text.startswith("@") and isinstance(wires, LevelWires)]
    _refuse_twice("cut", planes, [{text} for text in planes])
    named = [text for text in faults.cut if text not in planes]
    _refuse_twice("cut", named, [_find(wires, "cut", text) for text in named])
    cut = [link for text in faults.cut for link in _cut(wires, text)]
    if isinstance(wires, GraphWires):
        wires.route()
    else:
        for link in cut:
            _detour(wires, link, cut)
    return wires


def _straggler(text: str) -> tuple[str, float]:
    return _factor("straggler", text, 1.0, MOST_TIMES, "such as 7:2")


def _factor(what: str, text: str, least: float, most: float, such: str) -> tuple[str, float]:
    name, colon, number = text.rpartition(":")
    try:
        factor = float(number)
    except ValueError:
        factor = -1.0
    if not colon or not least <= factor <= most:
        raise InvalidValue(
            f"{what} {text!r} must be what it is about, a colon and a factor from {least:.7g} to {most:.7g}, {such}"
        )
    return name, factor


def _refuse_twice(what: str, texts: Sequence[str], about: Sequence[Collection[object]]) -> None:
    """`about`: what each of the texts names; together they would be neither the one nor the other."""
    for i, text in enumerate(texts):
        for before, named in zip(texts, about[:i], strict=False):
            if set(named) & set(about[i]):
                raise InvalidValue(f"{what} {before!r} and {what} {text!r} are about the same; leave one out")


def _card(wires: Wires, what: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) >= wires.ncards:
        raise InvalidValue(f"{what}: card {text!r} does not exist; cards are 0 to {wires.ncards - 1}")
    return int(text)


def _find(wires: Wires, what: str, text: str) -> list[int]:
    """The directed links that "0-1" or "5@spine" names."""
    if "@" in text and isinstance(wires, LevelWires):
        card, _, name = text.partition("@")
        switches = [i for i, level in enumerate(wires.levels) if level.switched]
        named = [i for i in switches if wires.levels[i].name == name]
        if not named:
            known = ", ".join(wires.levels[i].name for i in switches) or "none"
            raise InvalidValue(f"{what} {text!r}: {name!r} is no switch level; those are: {known}")
        place = np.array([_card(wires, what, card)])
        return [int(wires.port(named[0], place, down=down)[0]) for down in (False, True)]
    ends = text.split("-")
    if len(ends) != 2:
        raise InvalidValue(
            f"{what} {text!r} must name a link as 0-1, two cards, or as 5@spine, a card's port to a switch"
        )
    if isinstance(wires, GraphWires):
        number = {name: node for node, name in wires.names.items()}
        a, b = (number.get(end.strip(), -1) for end in ends)
        found = [i for i, (x, y) in enumerate(wires.ends.tolist()) if {x, y} == {a, b}]
        if not found:
            raise InvalidValue(f"{what} {text!r}: no link joins these two; name two ends of one in the topology's file")
        return found
    a, b = (_card(wires, what, end) for end in ends)
    differ = [i for i in range(len(wires.levels)) if (a // wires.unit[i] - b // wires.unit[i]) % wires.levels[i].size]
    if len(differ) != 1 or wires.levels[differ[0]].switched or not _adjacent(wires, differ[0], a, b):
        names = ", ".join(wires.levels[i].name for i in differ) or "none"
        raise InvalidValue(
            f"{what} {text!r}: cards {a} and {b} have no link of their own (they differ at: {names}); "
            "name neighbours, or a port to a switch, such as 5@spine"
        )
    there, back = np.array([a]), np.array([b])
    return [int(wires.link(differ[0], x, y)[0]) for x, y in ((there, back), (back, there))]


def _adjacent(wires: LevelWires, index: int, a: int, b: int) -> bool:
    size = wires.levels[index].size
    apart = (a // wires.unit[index] - b // wires.unit[index]) % size
    return wires.levels[index].kind == "full_mesh" or apart in (1, size - 1)


def _links_at(wires: Wires, card: int) -> IntArray:
    """All directed links of a card's own, from it and to it; of a switch level with trunks, none."""
    if isinstance(wires, GraphWires):
        return np.flatnonzero((wires.ends == card).any(axis=1))
    found: list[IntArray] = []
    here = np.array([card])
    for index, level in enumerate(wires.levels):
        if level.switched:
            if not level.trunk:
                found += [wires.port(index, here, down=down) for down in (False, True)]
            continue
        steps = range(1, level.size) if level.kind == "full_mesh" else (1, level.size - 1)
        x = wires.coordinate(index, here)
        for step in steps:
            other = here + ((x + step) % level.size - x) * wires.unit[index]
            found += [wires.link(index, here, other), wires.link(index, other, here)]
    return np.unique(np.concatenate(found))


def _replace(wires: Wires, dead: Sequence[str]) -> None:
    """Spares take over: what was a link of the card is a hop longer."""
    spares = wires.topology.spares
    if not dead:
        return
    if spares is None or isinstance(wires, GraphWires):
        raise InvalidValue(
            f"dead {dead[0]!r}: {wires.topology.name} has no spare cards; leave the card out of the job, "
            "or give the topology spares = {level = ..., count = 1}"
        )
    level = wires.classes.index(spares.level)
    unit = wires.unit[level] * wires.levels[level].size
    _refuse_twice("dead", dead, [{_card(wires, "dead", text)} for text in dead])
    taken: dict[int, set[int]] = {}
    extra = np.zeros(wires.nlinks) if wires.extra is None else wires.extra
    for text in dead:
        card = _card(wires, "dead", text)
        taken.setdefault(card // unit, set()).add(card)
        extra[_links_at(wires, card)] += spares.latency
    for number, cards in taken.items():
        if len(cards) > spares.count:
            raise InvalidValue(
                f"dead {', '.join(map(str, sorted(cards)))}: {spares.level} {number} has {spares.count} spare for "
                f"{len(cards)} dead cards; leave cards out of the job"
            )
    wires.extra = extra


def _cut(wires: Wires, text: str) -> list[int]:
    """Take a link away, a plane, or one of the ports of a card's way to a switch. Returns the links that are gone."""
    if text.startswith("@") and isinstance(wires, LevelWires):
        _cut_plane(wires, text)
        return []
    links = _find(wires, "cut", text)
    if "@" in text and isinstance(wires, LevelWires):
        level = wires.levels[wires.classes.index(text.partition("@")[2])]
        if level.ports == 1:
            raise InvalidValue(
                f"cut {text!r}: it is the only port there, so the card would be cut off; say --dead, or slow"
            )
        wires.rate[links] *= 1 - 1 / level.ports
        return []
    wires.rate[links] = 0.0
    return links


def _cut_plane(wires: LevelWires, text: str) -> None:
    name = text[1:]
    planes = [level.planes if level.name == name else 1 for level in wires.levels]
    if max(planes) == 1:
        known = ", ".join(level.name for level in wires.levels if level.planes > 1) or "none"
        raise InvalidValue(f"cut {text!r}: {name!r} is no level of several planes; those are: {known}")
    wires.rate[wires.spans[wires.classes.index(name)]] *= 1 - 1 / max(planes)


def _detour(wires: LevelWires, link: int, cut: Sequence[int]) -> None:
    """Hand on what a cut link should carry."""
    index = next(i for i, span in enumerate(wires.spans) if link < span.stop)
    level, unit, start = wires.levels[index], wires.unit[index], wires.spans[index].start
    extra = np.zeros(wires.nlinks) if wires.extra is None else wires.extra
    if level.kind == "ring":
        card, back = divmod(link - start, 2)
        line = card - card // unit % level.size * unit + np.arange(level.size) * unit
        around = start + 2 * line + (not back)
        instead = around[np.arange(level.size) != _other(wires, index, card, back)]
        ways = [instead] if not set(instead.tolist()) & set(cut) else []
        extra[link] += (level.size - 2) * wires.latency[index]
    else:
        card, x = divmod(link - start, level.size)
        here = card // unit % level.size
        line = [card + (k - here) * unit for k in range(level.size)]
        ways = [
            np.array([start + card * level.size + k, start + line[k] * level.size + x])
            for k in range(level.size)
            if k not in (here, x)
        ]
        ways = [way for way in ways if not set(way.tolist()) & set(cut)]
        extra[link] += wires.latency[index]
    if not ways:
        raise InvalidValue(f"{wires.words(link)} is cut and no way around it is left; cut less")
    wires.detours[link] = (np.concatenate(ways), 1 / len(ways))
    wires.extra = extra


def _other(wires: LevelWires, index: int, card: int, back: int) -> int:
    """The ring coordinate of the link that goes the other way between the same two cards as the cut one."""
    size = wires.levels[index].size
    return int((card // wires.unit[index] + (-1 if back else 1)) % size)
