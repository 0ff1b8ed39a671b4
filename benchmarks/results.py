"""Results as JSON: rows, and a header that says which machine, versions and commit they come from."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from superpod.interconnect.cores import cores
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.host import cpu_name

Row = dict[str, Any]

_PACKAGES = ("superpod", "numpy", "pyzmq", "msgpack", "torch")


def describe(command: list[str]) -> dict[str, Any]:
    """Everything that a figure needs beside it to be understood later. Imports nothing, so torch costs no time."""
    return {
        "command": " ".join(command),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(Path(__file__).resolve()),
        "machine": {
            "cpu": cpu_name(),
            "cores": cores(),
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


@dataclass(frozen=True, slots=True)
class Output:
    """Where rows go beside the terminal: the files of -J and --csv, and the command line for the former's header."""

    json: Path | None
    csv: Path | None
    command: list[str]

    def check(self) -> None:
        """Raises InvalidValue when a file cannot be written: before minutes of measuring, not after."""
        files = [target(path) for path in (self.json, self.csv) if path is not None]
        if len(set(files)) < len(files):
            raise InvalidValue(f"-J {self.json} and --csv {self.csv} are the same file; name two, or leave one out")
        if self.json is not None:
            check_writable("-J", self.json)
        if self.csv is not None:
            check_writable("--csv", self.csv, replaced=False)

    def write(self, header: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        """Replace what the files hold: all rows so far. An interrupted run keeps in them what it has measured."""
        if self.json is not None:
            _write_json(self.json, header, rows)
        if self.csv is not None:
            _write_csv(self.csv, rows)


def read(path: Path) -> list[Row]:
    """The rows of a result file. Raises InvalidValue."""
    try:
        rows: list[Row] = json.loads(path.read_text())["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidValue(
            f"{path} is no result file ({error}); write one with superpod-bench ... -J {path}"
        ) from error
    if not rows:
        raise InvalidValue(f"{path} has no rows: its run was ended before the first result")
    return rows


def check_writable(option: str, path: Path, *, replaced: bool = True) -> None:
    """Raises InvalidValue when no file can be written there. Leaves no file that was not there before.

    `replaced`: in one piece, by a draft beside it, which no folder and no device survives.
    """
    try:
        if replaced and path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no file")
        for file in (target(path), _draft(target(path))) if replaced else (path,):
            new = not os.path.lexists(file)
            open(file, "ab").close()
            if new:
                file.unlink()
    except OSError as error:
        raise InvalidValue(
            f"{option} {path} cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from error


def target(path: Path) -> Path:
    """What is to be replaced: a link stays one, and is not itself replaced, be it /dev/stdout."""
    return Path(os.path.realpath(path))


def _draft(path: Path) -> Path:
    return path.with_name(path.name + ".draft")


def _write_json(path: Path, header: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Replace the file in one piece: it is complete at any time, one row in a line."""
    file = target(path)
    draft = _draft(file)
    lines = ",\n".join(json.dumps(row) for row in rows)
    try:
        draft.write_text(f'{{"header": {json.dumps(header, indent=1)},\n"rows": [\n{lines}\n]}}\n')
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as CSV: one column a field, in the order of the first row that has it; nested ones are left out."""
    flat = [{name: value for name, value in row.items() if not isinstance(value, dict)} for row in rows]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in flat for name in row)))
        writer.writeheader()
        writer.writerows(flat)


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
