"""superpod-bench compare: what became faster or slower between two result files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import inf
from pathlib import Path

from superpod.benchmarks.results import Row, read
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import size_text

_DESCRIPTION = """\
Compare two result files of superpod-bench, row by row: new median time / old one. Exit code 1 when a row of superpod's
became slower by more than the noise, 2 when the files have no row in common."""
_KEYS = ("collective", "requested_algorithm", "world_size", "hosts", "nbytes", "dtype", "op", "link")

Key = tuple[object, ...]


def main(argv: Sequence[str]) -> int:
    """The subcommand. Raises InvalidValue."""
    args = _parser().parse_args(argv)
    if not 0 <= args.noise < inf:
        raise InvalidValue(f"--noise {args.noise} must be a number, 0 or more: the part by which equal runs may differ")
    old, new = (_by_key(read(path)) for path in (args.old, args.new))
    common = [key for key in new if key in old]
    if not common:
        raise InvalidValue(f"{args.old} and {args.new} have no row in common; compare runs of the same command")
    slower = 0
    for key in common:
        ratio = new[key]["median_us"] / old[key]["median_us"]
        verdict = _verdict(ratio, args.noise)
        slower += verdict == "slower" and _is_ours(new[key])
        print(_line(old[key], new[key], ratio, verdict))
    for what, some in (("only in the old file", old.keys() - new), ("only in the new file", new.keys() - old)):
        if some:
            print(f"# {len(some)} rows {what}")
    print(f"# {slower} of {len(common)} rows of superpod's slower by more than {args.noise:.0%}")
    return 1 if slower else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "superpod-bench compare", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="a file written by superpod-bench ... -J")
    parser.add_argument("new", type=Path, help="another, of the same command")
    parser.add_argument("--noise", type=float, default=0.3, help="how much slower is no news yet (default 0.3: 30 %%)")
    return parser


def _by_key(rows: Sequence[Row]) -> dict[Key, Row]:
    return {(_name(row), *(row.get(name) for name in _KEYS)): row for row in rows}


def _name(row: Row) -> str | None:
    """Of the program in a run with several, with all that tells it from the others."""
    return row.get("player") or row.get("backend")


def _is_ours(row: Row) -> bool:
    """Peers are measured beside superpod; that they became slower is no fault of ours."""
    return str(row.get("backend", "superpod")).startswith("superpod")


def _verdict(ratio: float, noise: float) -> str:
    if ratio > 1 + noise:
        return "slower"
    return "faster" if ratio < 1 / (1 + noise) else ""


def _line(old: Row, new: Row, ratio: float, verdict: str) -> str:
    name = _name(new) or new.get("requested_algorithm", "")
    what = f"{new['collective']:<16} {name:<16} n={new['world_size']:<5} {size_text(new['nbytes']):>8}"
    return f"{what}  {old['median_us']:>12,.1f} → {new['median_us']:>12,.1f} us  {ratio:6.2f}  {verdict}".rstrip()
