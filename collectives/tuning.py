"""A tuned table: which algorithm superpod-bench tune found fastest on this machine, for which worlds and sizes.

The file is JSON, a rule a line. Its rules are those of select.py, "up to so many ranks and bytes", by link and
collective; beyond what was measured it says nothing. It counts only on the machine that it was measured on. Whether
its algorithms exist, the Selector looks: superpod-run, which reads the file, does not load them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from superpod import __version__
from superpod.interconnect.cores import cores
from superpod.interconnect.env import COLLECTIVES, cache_directory
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.host import cpu_name

FORMAT = 1
LINKS = ("shm", "zmq")
_FIELDS = ("link", "collective", "fixed_order", "ranks", "nbytes", "algorithm")
_RULE = '{"link":'  # how the line of a rule begins

Row = Mapping[str, Any]


class TunedRule(NamedTuple):
    """For worlds of up to `ranks` and arrays of up to `nbytes`; `line`: where in the file it stands, 0 if unknown."""

    ranks: int
    nbytes: int
    algorithm: str
    line: int = 0


Key = tuple[str, str, bool]
"""Link, collective, and whether only algorithms with the fixed order will do."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """A table. Attributes: file: where it was read; rules: in any order."""

    file: str
    rules: Mapping[Key, tuple[TunedRule, ...]]

    def find(self, key: Key, nbytes: int, world_size: int) -> TunedRule | None:
        """The rule of the next larger world that was measured, and in it of the next larger size; None beyond them."""
        rules = self.rules.get(key, ())
        ranks = min((rule.ranks for rule in rules if world_size <= rule.ranks), default=0)
        fitting = (rule for rule in rules if rule.ranks == ranks and nbytes <= rule.nbytes)
        return min(fitting, key=lambda rule: rule.nbytes, default=None)

    def packed(self) -> list[Any]:
        """The table in few characters, for the environment."""
        return [self.file, [[*key, [list(rule) for rule in rules]] for key, rules in self.rules.items()]]

    @staticmethod
    def unpacked(packed: Any) -> Tuning:
        """The reverse of `packed`. Raises ValueError or TypeError for anything else."""
        file, rules = packed
        tables = {(link, name, fixed): tuple(TunedRule(*rule) for rule in some) for link, name, fixed, some in rules}
        return Tuning(str(file), tables)


@dataclass(frozen=True, slots=True)
class TuningFile:
    """What a file says.

    Attributes:
        tuning: its rules.
        machine, version: where it was measured, and by which superpod.
        rows: its rules as they stand there, with microseconds.
        measured: the figures that they follow from, a row for each case.
    """

    tuning: Tuning
    machine: Mapping[str, Any]
    version: str
    rows: Sequence[Row] = ()
    measured: Sequence[Row] = ()

    def unfit(self) -> str:
        """Why it does not count here; "" if it does."""
        here = machine()
        if self.version != __version__:
            return f"it was made by superpod {self.version}, and this is {__version__}"
        if self.machine != here:
            return f"it was made on {machine_text(self.machine)}, and this is {machine_text(here)}"
        return ""


def machine() -> dict[str, Any]:
    """What tells this machine from others as far as algorithms are concerned, with the processors given to us."""
    return {"cpu": cpu_name(), "cores": cores(), "architecture": platform.machine()}


def machine_text(known: Mapping[str, Any]) -> str:
    """A machine in words."""
    return f"{known.get('cores')} cores of {known.get('cpu')} ({known.get('architecture')})"


def cached() -> Path | None:
    """Where this machine's table is kept, whether there is one or not; None where there is no cache."""
    folder = cache_directory()
    if folder is None:
        return None
    fingerprint = hashlib.blake2b(json.dumps(machine(), sort_keys=True).encode(), digest_size=6).hexdigest()
    return folder / f"tuning-{fingerprint}.json"


def write(path: Path, content: Mapping[str, Any], rules: Sequence[Row], measured: Sequence[Row]) -> None:
    """Make or replace a file, in one piece, so that nobody reads half of it.

    Args:
        content: more to be written down: when and how it was made.
        rules: with the fields link, collective, fixed_order, ranks, nbytes, algorithm and any others.
        measured: what they follow from.
    """
    head = {"format": FORMAT, "superpod": __version__, "machine": machine(), **content}
    lists = {"rules": rules, "measured": measured}
    parts = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    parts += [f"{json.dumps(n)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for n, rows in lists.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        draft.write_text("{" + ",\n".join(parts) + "}\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read(path: Path) -> TuningFile:
    """The table in a file. Raises InvalidValue, naming the file and the way out, if it is none."""
    way_out = f"make it anew with superpod-bench tune -o {path}, or set SUPERPOD_TUNING=off"
    try:
        text = path.read_text()
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise InvalidValue(f"its format is {data['format']!r}, and {FORMAT} is wanted")
        rows = data["rules"]
        lines = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith(_RULE)]
        numbers = lines if len(lines) == len(rows) else [0] * len(rows)  # somebody has laid the file out anew
        rules: dict[Key, tuple[TunedRule, ...]] = {}
        for row, line in zip(rows, numbers, strict=True):
            key, rule = _checked(row, line)
            rules[key] = (*rules.get(key, ()), rule)
        measured = [_checked_figures(row) for row in data["measured"]]
        return TuningFile(Tuning(str(path), rules), dict(data["machine"]), str(data["superpod"]), rows, measured)
    except OSError as error:
        raise InvalidValue(f"{path} cannot be read ({error.strerror}); {way_out}") from error
    except KeyError as error:
        raise InvalidValue(f"{path} is no tuned table (it lacks {error}); {way_out}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidValue(f"{path} is no tuned table ({error}); {way_out}") from error


def _checked(row: Row, line: int) -> tuple[Key, TunedRule]:
    """A rule of a file. Raises ValueError, KeyError or TypeError for what cannot be one."""
    link, collective, fixed_order, ranks, nbytes, name = (row[field] for field in _FIELDS)
    where = f"rule {collective} {name} in line {line}"
    if link not in LINKS or not isinstance(fixed_order, bool):
        raise InvalidValue(f"{where}: link={link!r}, fixed_order={fixed_order!r}")
    if not (isinstance(ranks, int) and ranks > 0 and isinstance(nbytes, int) and nbytes >= 0):
        raise InvalidValue(f"{where}: ranks={ranks!r} and nbytes={nbytes!r} must be whole numbers above 0")
    if not isinstance(name, str) or collective not in COLLECTIVES:
        raise InvalidValue(f"{where}: there is no such collective or algorithm")
    return (link, collective, fixed_order), TunedRule(ranks, nbytes, name, line)


def _checked_figures(row: Row) -> Row:
    """A row of what was measured. Raises ValueError, KeyError or TypeError for what cannot be one."""
    figures = [float(part) for times in row["us"].values() for part in times]
    if row["link"] not in LINKS or row["collective"] not in COLLECTIVES or not figures or min(figures) <= 0:
        raise InvalidValue(f"what was measured is none of {row['collective']} over {row['link']}")
    if not (isinstance(row["ranks"], int) and isinstance(row["nbytes"], int) and min(row["ranks"], row["nbytes"]) > 0):
        raise InvalidValue(f"ranks={row['ranks']!r} and nbytes={row['nbytes']!r} must be whole numbers above 0")
    return row
