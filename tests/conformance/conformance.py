"""How much of torch's own distributed tests superpod passes: `make conformance`, or with options of its own.

    python tests/conformance/conformance.py [--world 2 --world 3] [--match REGEX] [--quiet]

Runs torch_suite.py for every world size, and the all-to-all tests, which torch keeps for MPI. Prints a line a test,
what does not apply and why, and counts. The exit code is 1 when a test failed or none ran.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch_suite import BY_METHOD, FAILED, NOT_APPLICABLE, PASSED

SUITE = Path(__file__).with_name("torch_suite.py")
ALL_TO_ALL = "all_to_all"  # torch runs these on CPU tensors only as mpi
REASONS = (  # why a test does not apply, in few words; the first that fits
    (r"CUDA|GPU", "needs CUDA devices"),
    (r"(?i)\bnccl\b", "is about NCCL"),
    (r"world size", "needs another world size"),
    (r"Only MPI", "is run in the guise of mpi"),
    (r"(?i)flak|fail|issues/|internally", "torch has switched it off"),
    (r"torchvision|import", "needs a package that is not here"),
)


def results(guise: str, world: int, match: str, backend: str) -> Iterator[dict[str, Any]]:
    """What torch_suite.py says of each test, as it comes. Raises CalledProcessError when it breaks off."""
    command = [sys.executable, str(SUITE), "--as", guise, "--world", str(world), "--match", match, "--backend", backend]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def reason(why: str) -> str:
    """Why a test does not apply, as one of few classes."""
    return next((words for pattern, words in REASONS if re.search(pattern, why)), why)


def report(guise: str, world: int, match: str, backend: str, *, quiet: bool) -> tuple[Counter[str], list[str]]:
    """Run one suite and print it; returns counts of outcomes and the names of those that failed."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    failed, by_method = [], []
    for test in results(guise, world, match, backend):
        outcome, name, why = test["outcome"], test["test"], test["why"]
        counts[outcome] += 1
        if outcome == NOT_APPLICABLE:
            reasons[reason(why)] += 1
            continue
        if outcome == FAILED:
            failed.append(f"{name} (world {world}): {why}")
        elif BY_METHOD.search(name) and backend != "gloo":
            by_method.append(name)
        if not quiet or outcome == FAILED:
            print(f"{outcome:6} {test['seconds']:6.1f} s  {name} {why}".rstrip(), flush=True)
    print(f"as {guise}, {world} ranks: {counts[PASSED]} passed, {counts[FAILED]} failed, ", end="")
    print(f"{counts[NOT_APPLICABLE]} not applicable", flush=True)
    if by_method:
        print(f"    {len(by_method)} passed through the group's method, as torch's function refuses the name: ", end="")
        print(", ".join(by_method))
    for words, count in reasons.most_common():
        print(f"    {count:4} not applicable: {words}", flush=True)
    return counts, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--world", type=int, action="append", help="ranks; may be repeated (default: 2 3 4)")
    parser.add_argument("--match", default="", help="only tests whose name contains this regular expression")
    parser.add_argument("--backend", default="superpod", help="whose groups (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no line for a test that passed")
    args = parser.parse_args()
    worlds = args.world or [2, 3, 4]
    suites = [("gloo", world, args.match) for world in worlds]
    if not args.match:
        suites.append(("mpi", worlds[-1], ALL_TO_ALL))
    total: Counter[str] = Counter()
    failed: list[str] = []
    for guise, world, match in suites:
        counts, names = report(guise, world, match, args.backend, quiet=args.quiet)
        total += counts
        failed += names
    for line in failed:
        print(f"failed: {line}")
    print(f"torch's tests on {args.backend}: {total[PASSED]} passed, {total[FAILED]} failed")
    return 1 if failed or not total[PASSED] else 0


if __name__ == "__main__":
    sys.exit(main())
