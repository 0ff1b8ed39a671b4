"""A topology as a drawing (SVG): a panel a level, with its units, what joins them, and the figures of its links."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import cos, pi, sin
from pathlib import Path

from superpod.benchmarks.results import check_writable
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.topology import Level, Topology
from superpod.interconnect.units import rate_text, seconds_text

_COLOURS = ("#1b6ca8", "#c8553d", "#3a7d44", "#8e5aa8", "#b8860b", "#4a4a4a")
_WIDTH, _HEIGHT, _RADIUS = 240, 330, 80
_SHOWN = 16  # units drawn of a level that has more


def check(path: Path | None) -> None:
    """Raises InvalidValue when `path` is no .svg that can be written."""
    if path is None:
        return
    if path.suffix != ".svg":
        raise InvalidValue(f"--draw {path} must end in .svg")
    check_writable("--draw", path, replaced=False)


def write(topology: Topology, path: Path) -> None:
    """Raises InvalidValue when it cannot be written."""
    try:
        path.write_text(svg(topology))
    except OSError as error:
        raise InvalidValue(f"--draw {path} cannot be written: {error.strerror}") from error


def svg(topology: Topology) -> str:
    """The drawing's text."""
    panels = ["".join(_level(topology, index, level)) for index, level in enumerate(topology.levels)] or [
        "".join(_graph(topology))
    ]
    width = _WIDTH * len(panels)
    title = f"{topology.name}: {topology.title}"
    body = "".join(f'<g transform="translate({i * _WIDTH},34)">{panel}</g>' for i, panel in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT + 34}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="12" y="22" font-size="14">{escape(title)}</text>{body}</svg>\n'
    )


def _circle(count: int) -> list[tuple[float, float]]:
    angles = [2 * pi * i / count - pi / 2 for i in range(count)]
    return [(_WIDTH / 2 + _RADIUS * cos(a), 110 + _RADIUS * sin(a)) for a in angles]


def _line(a: tuple[float, float], b: tuple[float, float], colour: str) -> str:
    return f'<line x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}" stroke="{colour}" opacity="0.6"/>'


def _level(topology: Topology, index: int, level: Level) -> Iterator[str]:
    colour = _COLOURS[index % len(_COLOURS)]
    count = min(level.size, _SHOWN)
    places = _circle(count)
    hub = (_WIDTH / 2, 110.0)
    for i, a in enumerate(places):
        if level.switched:
            yield _line(a, hub, colour)
        elif level.kind == "ring":
            yield _line(a, places[(i + 1) % count], colour)
        else:
            yield from (_line(a, b, colour) for b in places[i + 1 :])
    if level.switched:
        yield f'<rect x="{hub[0] - 16}" y="{hub[1] - 9}" width="32" height="18" fill="{colour}"/>'
    for x, y in places:
        if index == 0:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="#222"/>'
        else:
            yield f'<rect x="{x - 8:.1f}" y="{y - 8:.1f}" width="16" height="16" fill="#222"/>'
    below = "card" if index == 0 else topology.levels[index - 1].name
    more = f" ({count} shown)" if count < level.size else ""
    mark = level.marks.get("bandwidth", "no mark")
    port = "a trunk" if level.trunk else "a card's port" if level.switched else "a link"
    yield from _words(
        f"{level.name}: {level.size} × {below}{more}",
        f"{level.kind.replace('_', ' ')}, {topology.below(index) * level.size:,} cards",
        f"{rate_text(level.bandwidth * level.ports)} each way {port} ({mark})",
        f"{seconds_text(level.latency)} ({level.marks.get('latency', 'no mark')})",
    )


def _words(*lines: str) -> Iterator[str]:
    for i, line in enumerate(lines):
        weight = ' font-weight="bold"' if i == 0 else ""
        yield f'<text x="{_WIDTH / 2}" y="{230 + 18 * i}" text-anchor="middle"{weight}>{escape(line)}</text>'


def _graph(topology: Topology) -> Iterator[str]:
    """A machine of single links: its nodes on a circle, cards round, switches square."""
    names = list(
        dict.fromkeys(
            [
                *map(str, range(topology.named_cards)),
                *(node for cable in topology.cables for pair in cable.pairs for node in pair),
            ]
        )
    )
    place = dict(zip(names, _circle(len(names)), strict=True))
    for index, cable in enumerate(topology.cables):
        yield from (_line(place[a], place[b], _COLOURS[index % len(_COLOURS)]) for a, b in cable.pairs)
    for name, (x, y) in place.items():
        corner = 6 if name.isdigit() else 0
        yield f'<rect x="{x - 6:.1f}" y="{y - 6:.1f}" width="12" height="12" rx="{corner}" fill="#222"/>'
    yield from _words(
        *(f"{cable.name}: {len(cable.pairs)} links, {rate_text(cable.bandwidth)} each way" for cable in topology.cables)
    )
