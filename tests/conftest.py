"""For all tests: Ctrl-C means what it means at a terminal, also when a shell started them in its background; and what
superpod-bench tune has found on this machine changes nothing.

`doc(table, row, cells)` says what a test has seen and docs/ must show, see doc_tables.py.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from doc_tables import Cells, DocTable, Say, note

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited, and handed on to every process that a test starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["SUPERPOD_TUNING"] = "off"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--note-tables", type=Path, metavar="FILE", help="note there what the tables in docs/ are to show")


@pytest.fixture
def doc(request: pytest.FixtureRequest) -> Say:
    file: Path | None = request.config.getoption("--note-tables")

    def say(table: DocTable, row: str, cells: Cells) -> None:
        if file is None:
            table.check(row, cells)
        else:
            note(file, table, row, cells)

    return say
