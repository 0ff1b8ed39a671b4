"""superpod-run as tests start it, and what is known of a job when it has ended."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

COMMAND = Path(sys.executable).with_name("superpod-run")


@dataclass
class Ended:
    """A job that has ended: exit code, what it wrote, how long it took [s]."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def lines(self):
        return sorted(self.out.splitlines())
