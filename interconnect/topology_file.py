"""Topologies as TOML files that a person writes in ten lines; the presets are such files, in topologies/.

    title = "two hosts of 8 cards"          routing = "detour"       sources = [...]     assumed = [...]
    [card]                                  # memory, message, cores, published, spares = {level, count, latency}
    memory = "3.2TB/s"
    [[level]]                               # lowest first; keys: those of Level; a torus has shape = [4, 4]
    name = "host"
    kind = "switch"
    size = 8
    bandwidth = "450GB/s"
    latency = "600ns"
    marks = {bandwidth = "A"}
    [[protocol]]                            # none: messages cost nothing beyond latency and bandwidth
    call = "5us"

Instead of levels: `cards = 3` and [[links]] tables with name, bandwidth, latency, pairs = [["0", "1"], ["1", "hub"]].
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import MARKS, MOST_CARDS, Cable, Level, Protocol, Spares, Topology
from superpod.interconnect.units import parse_rate, parse_seconds

FOLDER = Path(__file__).parent / "topologies"

_RATES, _TIMES = ("bandwidth", "memory", "published"), ("latency", "message", "call", "step", "segment")
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "kind", "title", "routing", "mark", "published_mark", "level"), str),
    **dict.fromkeys(("size", "ports", "planes", "tiers", "count", "cards", "cores"), int),
    **dict.fromkeys(("efficiency", "oversubscription", "ramp"), (int, float)),
    **dict.fromkeys(("sources", "assumed", "pairs", "shape"), list),
    "trunk": bool,
    "marks": dict,
}


def presets() -> tuple[str, ...]:
    """The names of the machines that come with superpod."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def load(name: str) -> Topology:
    """A preset by its name, or a file by its path.

    Raises InvalidValue naming the file, the value and the rule: there is no such preset or file, or it breaks a rule.
    """
    path = FOLDER / f"{name}.toml" if name in presets() else Path(name)
    if not path.is_file():
        raise InvalidValue(f"topology {name!r} is neither a file nor one of {', '.join(presets())}")
    try:
        return parse(path.read_text(), name=path.stem)
    except (InvalidValue, OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"{path.name}: {error}") from error


def parse(text: str, name: str) -> Topology:
    """The topology in a TOML text. Raises InvalidValue naming the value and the rule."""
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # also of a number of thousands of digits
        raise InvalidValue(f"no TOML: {error}") from error
    known = ("title", "routing", "sources", "assumed", "card", "level", "links", "cards", "protocol")
    _refuse_unknown("topology", data, known)
    card = _table("card", data.get("card", {}), ("memory", "message", "cores", "published", "published_mark", "spares"))
    spares = card.pop("spares", None)
    levels = tuple(one for table in _tables("level", data) for one in _levels(table))
    cables = tuple(_make(Cable, "links", table, _cable) for table in _tables("links", data))
    if cables and "cards" not in data:
        raise InvalidValue("cards is missing: a topology of links says how many cards it has, such as cards = 4")
    protocols = tuple(_make(Protocol, "protocol", table) for table in _tables("protocol", data))
    top = _table("topology", {k: v for k, v in data.items() if not isinstance(v, dict) and k not in _LISTS}, known)
    return Topology(
        name=name,
        title=top.get("title", ""),
        levels=levels,
        cables=cables,
        named_cards=top.get("cards", 0),
        protocols=protocols or (Protocol(),),
        routing=top.get("routing", "detour"),
        spares=None if spares is None else _make(Spares, "spares", spares),
        sources=tuple(map(str, top.get("sources", ()))),
        assumed=tuple(map(str, top.get("assumed", ()))),
        **card,
    )


_LISTS = ("level", "links", "protocol")


def _tables(name: str, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = data.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise InvalidValue(f"{name} must be a list of tables: write [[{name}]] above each")
    return tables


def _levels(table: dict[str, Any]) -> list[Level]:
    """One level; of a torus, a ring for each of its dimensions."""
    table = dict(table)
    shape = table.pop("shape", None)
    if table.get("kind") != "torus":
        if shape is not None:
            raise InvalidValue(f"level {table.get('name')!r}: shape is for a torus; other kinds have a size")
        return [_make(Level, "level", table)]
    if not isinstance(shape, list) or not shape or not all(isinstance(s, int) for s in shape) or "size" in table:
        raise InvalidValue(f"level {table.get('name')!r}: a torus has shape = [4, 4], integers, and no size")
    rings = [
        {**table, "kind": "ring", "size": size, "name": f"{table.get('name')}.{d}"} for d, size in enumerate(shape)
    ]
    return [_make(Level, "level", ring) for ring in rings]


def _cable(values: dict[str, Any]) -> None:
    pairs = values.get("pairs", [])
    if not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise InvalidValue(f'links {values.get("name")!r}: pairs must be lists of two nodes, such as [["0", "1"]]')
    values["pairs"] = tuple((str(a), str(b)) for a, b in pairs)
    values.setdefault("latency", 0.0)


def _make(
    kind: Callable[..., Any], what: str, table: Any, adapt: Callable[[dict[str, Any]], None] | None = None
) -> Any:
    """An object of `kind` from a table whose keys are its fields."""
    if not isinstance(table, dict):
        raise InvalidValue(f"{what}={table!r} must be a table")
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    values = _table(what, table, names)
    if adapt is not None:
        adapt(values)
    try:
        return kind(**values)
    except TypeError as error:
        missing = [n for n in ("name", "kind", "size", "bandwidth", "pairs", "level", "count") if n in names]
        lacking = ", ".join(n for n in missing if n not in values)
        raise InvalidValue(f"{what} {values.get('name', '')!r}: {lacking} is missing") from error


def _table(what: str, table: Mapping[str, Any], known: Any) -> dict[str, Any]:
    _refuse_unknown(what, table, tuple(known))
    return {key: _value(what, key, value) for key, value in table.items()}


def _refuse_unknown(what: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise InvalidValue(f"{what}: {key!r} is unknown; there are {', '.join(known)}")


def _value(what: str, key: str, value: Any) -> Any:
    if key in _RATES or key in _TIMES:
        if not isinstance(value, str):
            raise InvalidValue(f'{what}: {key}={value!r} must be text with a unit, such as "56GB/s" or "2.1us"')
        try:
            return parse_rate(value) if key in _RATES else parse_seconds(value)
        except InvalidValue as error:
            raise InvalidValue(f"{what}: {key}: {error}") from error
    wanted = _TYPES.get(key)
    if wanted is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
        raise InvalidValue(f"{what}: {key}={value!r} must be a {_words(wanted)}")
    if isinstance(value, int | float) and not value <= MOST_CARDS:
        raise InvalidValue(f"{what}: {key}={value!r} must be a number of at most {MOST_CARDS}")
    if key == "marks" or key.endswith("mark"):
        for mark in value.values() if isinstance(value, dict) else [value]:
            if mark not in MARKS:
                raise InvalidValue(f"{what}: mark {mark!r} must be one of {', '.join(MARKS)}")
    return value


def _words(wanted: type | tuple[type, ...]) -> str:
    names = {str: "text", int: "whole number", list: "list", bool: "true or false", dict: "table"}
    return "number" if isinstance(wanted, tuple) else names[wanted]
