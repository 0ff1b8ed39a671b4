"""Results as JSON: rows, and a header that says which machine, versions and commit they come from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from superpod.interconnect.errors import InvalidValue

_PACKAGES = ("superpod", "numpy", "pyzmq", "msgpack", "torch")


def describe(command: list[str]) -> dict[str, Any]:
    """Everything that a figure needs beside it to be understood later. Imports nothing, so torch costs no time."""
    return {
        "command": " ".join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(Path(__file__).resolve()),
        "machine": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": memory("MemTotal"),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def memory(field: str) -> int:
    """A field of /proc/meminfo [B]: "MemTotal", "MemAvailable"."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


class ResultFile:
    """The file of -J: complete JSON at any time, so that an interrupted run keeps what it has measured."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        """Raises InvalidValue when nothing can be written there: before minutes of measuring, not after."""
        self._path, self._header = path, header
        try:
            self.write([])
        except OSError as error:
            raise InvalidValue(
                f"-J {path} cannot be written ({error.strerror}); name a file in a folder that exists"
            ) from error

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Replace the file's content: all rows so far, one in a line."""
        draft = self._path.with_name(self._path.name + ".draft")
        lines = ",\n".join(json.dumps(row) for row in rows)
        draft.write_text(f'{{"header": {json.dumps(self._header, indent=1)},\n"rows": [\n{lines}\n]}}\n')
        draft.replace(self._path)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(file: Path) -> str | None:
    """The commit of the checkout that `file` belongs to, "+" behind it if something there was changed since."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=file.parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", file.name) is None:
        return None  # installed, perhaps inside somebody else's checkout
    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", "--untracked-files=no") else commit
