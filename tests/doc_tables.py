"""Tables in docs/ that tests make: a test says what it has seen, and that must be what stands there.

    LOSSES = DocTable("hosts.md", "losses", "what happens", ("who is told", "seconds"), volatile=("seconds",))
    doc(LOSSES, "its link is taken down", {"who is told": "everybody", "seconds": "4.3"})

Volatile columns change from run to run, and are not compared. `make tables` runs the tests with --note-tables=FILE:
what they have seen goes there, and from there into the pages (make_tables.py).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"

Cells = Mapping[str, str]
Noted = dict[str, dict[str, str]]  # row → column → cell
Say = Callable[["DocTable", str, Cells], None]


@dataclass(frozen=True)
class DocTable:
    """Attributes:
    page: a file in docs/; name: the table's, in the page's markers.
    head: what the rows are called by; columns: the others; volatile: those of them that are not compared.
    """

    page: str
    name: str
    head: str
    columns: tuple[str, ...]
    volatile: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return DOCS / self.page

    @property
    def _markers(self) -> tuple[str, str]:
        return f"<!-- table {self.name}: made by `make tables` -->\n", f"<!-- end of {self.name} -->\n"

    def rows(self) -> Noted:
        """What stands in the page."""
        begin, end = self._markers
        _, _, rest = self.path.read_text().partition(begin)
        lines = rest.partition(end)[0].splitlines()[2:]
        cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
        return {head: dict(zip(self.columns, others, strict=True)) for head, *others in cells}

    def write(self, noted: Noted, order: Iterable[str]) -> None:
        """Put rows into the page, in this order. Raises KeyError for what no test has said."""
        rows = [(row, *(noted[row][column] for column in self.columns)) for row in order]
        text = "".join(f"| {' | '.join(row)} |\n" for row in ((self.head, *self.columns), *rows))
        heading, _, body = text.partition("\n")
        begin, end = self._markers
        before, found, rest = self.path.read_text().partition(begin)
        assert found, f"{self.path} must have a line {begin!r}"
        rule = "|---" * (1 + len(self.columns)) + "|"
        self.path.write_text(f"{before}{begin}{heading}\n{rule}\n{body}{end}{rest.partition(end)[2]}")

    def check(self, row: str, cells: Cells) -> None:
        """Raises AssertionError unless the page says so."""
        stands = self.rows().get(row, {})
        for column, cell in cells.items():
            if column not in self.volatile:
                assert stands.get(column) == cell, f"docs/{self.page}, {row!r}, {column!r} is out of date: make tables"


def note(file: Path, table: DocTable, row: str, cells: Cells) -> None:
    """Add a line to the file; several processes may do so at once."""
    assert cells.keys() <= set(table.columns), cells
    line = json.dumps([table.name, row, dict(cells)]) + "\n"
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def noted(file: Path, table: DocTable) -> Noted:
    """What tests have said of a table. Of a volatile cell that came several times the last one counts.

    Raises AssertionError when two tests say different things of another cell.
    """
    found: Noted = {}
    for name, row, cells in map(json.loads, file.read_text().splitlines()):
        if name != table.name:
            continue
        known = found.setdefault(row, {})
        for column, cell in cells.items():
            assert column in table.volatile or known.get(column, cell) == cell, (row, column, known[column], cell)
            known[column] = cell
    return found


def without_numbers(text: str) -> str:
    """Words of a program without what differs from run to run: seconds and process ids."""
    return re.sub(r" for [\d.]+ s|, pid \d+| \(pid \d+\)", "", text)
