"""superpod-bench table: result files of runs with several programs as a table for a page, in Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from superpod.benchmarks.results import Row, read
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import size_text

_DESCRIPTION = """\
Print the results of superpod-bench COLLECTIVE --peers ... -J as a table in Markdown: a row for each place and size, a
column for each program, then how many times as long the others take, and superpod with encryption."""


def main(argv: Sequence[str]) -> int:
    """The subcommand. Raises InvalidValue."""
    parser = argparse.ArgumentParser(
        "superpod-bench table", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="written by superpod-bench ... -J")
    print(table([row for file in parser.parse_args(argv).results for row in read(file)]))
    return 0


def table(rows: Sequence[Row]) -> str:
    """The table. Raises InvalidValue for rows of a run with superpod alone."""
    if any("backend" not in row for row in rows):
        raise InvalidValue("the table is of runs with several programs; run superpod-bench with --peers or --hosts")
    names = list(dict.fromkeys(_name(row) for row in rows))
    others = [name for name in names if not name.startswith("superpod")]
    priced = any("encryption_ratio" in row for row in rows)
    several = len({row["collective"] for row in rows}) > 1
    head = ["collective"] if several else []
    head += [
        "cards",
        "size",
        *names,
        *(f"{name} / ours" for name in others),
        *(["encrypted / clear"] if priced else []),
    ]
    lines = [head, ["---"] * len(head)]
    for (collective, cards, nbytes), some in _by_size(rows).items():
        cells = [collective] if several else []
        cells += [cards, size_text(nbytes), *(_time(some[name]["median_us"]) if name in some else "" for name in names)]
        cells += [_ratio(some.get(name, {}), "ratio") for name in others]
        cells += [_ratio(some.get("superpod", {}), "encryption_ratio")] if priced else []
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" if line[0] != "---" else "|---" * len(line) + "|" for line in lines)


def _by_size(rows: Iterable[Row]) -> dict[tuple[str, str, int], dict[str, Row]]:
    """(collective, cards or hosts, bytes) → the program's name → its row."""
    found: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        where = str(row.get("hosts") or row["world_size"])
        found.setdefault((row["collective"], where, row["nbytes"]), {})[_name(row)] = row
    return found


def _name(row: Row) -> str:
    return str(row.get("player") or row["backend"])


def _time(us: float) -> str:
    """Three figures that matter, or four."""
    if us >= 10_000:
        return f"{us / 1000:,.0f} ms"
    return f"{us:,.{1 if us < 100 else 0}f} µs"


def _ratio(row: Row, field: str) -> str:
    return f"{row[field]:.2f}" if field in row else ""
