"""What must be the same on all hosts of a job before it starts: Python, superpod, torch; and a table of what is not."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping

from superpod import __version__
from superpod.collectives.tuning import machine, machine_text

WHAT = ("python", "superpod", "torch")


def facts() -> dict[str, str]:
    """The versions here, without importing anything for them, and the machine, which may differ."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "none"
    return {"python": platform.python_version(), "superpod": __version__, "torch": torch} | {
        "machine": machine_text(machine())
    }


def differences(hosts: Mapping[str, Mapping[str, str]]) -> str:
    """Hosts' names → their facts; a table of them when they do not agree, else "".

    Python must agree in its first two numbers (bytecode and pickles do), torch but for what its build adds after a "+".
    """
    kinds = {what: {_kind(what, known.get(what, "none")) for known in hosts.values()} for what in WHAT}
    differ = [what for what in WHAT if len(kinds[what]) > 1]
    if not differ:
        return ""
    rows = [("host", *WHAT), *((name, *(known.get(what, "none") for what in WHAT)) for name, known in hosts.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(
        [
            f"the hosts must have the same {' and '.join(differ)}; install it, or name another Python by --python:",
            *(line.rstrip() for line in lines),
        ]
    )


def _kind(what: str, version: str) -> str:
    return ".".join(version.split(".")[:2]) if what == "python" else version.partition("+")[0]
