"""The distributed tests that come with torch, run on superpod: one world size, one line of JSON a test.

    python torch_suite.py --as gloo --world 4 [--match REGEX] [--backend gloo]

Nobody here wrote those tests: they are DistributedTest._DistTestBase in torch.testing._internal. They decide by a
backend's name what applies to it, and know torch's own names only; so they are loaded in the guise of gloo, or of mpi,
and then run on groups of ours. Each rank is a process, forked from this one, which has imported torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"

# Their bodies branch on the backend's name where they mean its device: they see the guise, the groups are ours.
BRANCHES_ON_NAME = re.compile("accumulate_gradients")
# torch.distributed.monitored_barrier serves groups of that name only, though the group has the method.
BY_METHOD = re.compile("monitored_barrier_gloo(_subgroup)?$")


def load(guise: str, world: int, backend: str) -> Any:
    """torch's module of tests, for `world` ranks; it reads all of this from the environment when it is imported."""
    folder = tempfile.mkdtemp()
    os.environ |= {
        "BACKEND": guise,
        "WORLD_SIZE": str(world),
        "TEMP_DIR": folder,
        "INIT_METHOD": f"file://{folder}/again",  # where a test that destroys its group makes the next one
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "DISTRIBUTED_TESTS_DEFAULT_TIMEOUT": "100",  # seconds
    }
    torch.set_num_threads(1)
    from torch.testing._internal import common_distributed as common

    for feature in ("ddp", "subgroup", "plugin"):
        common.DistTestCases.backend_feature[feature] = {*common.DistTestCases.backend_feature[feature], backend}
    from torch.testing._internal.distributed import distributed_test

    return distributed_test


def suite_of(module: Any) -> type[unittest.TestCase]:
    """torch's tests with ranks that are forked, not spawned: importing torch takes seconds, forking milliseconds."""

    class Suite(module.TestDistBackend, module.DistributedTest._DistTestBase):  # type: ignore[misc, name-defined]
        ranks_started = 0

        def setUp(self) -> None:
            super().setUp()
            self._start_processes(torch.multiprocessing.get_context("fork").Process)
            self.ranks_started = len(self.processes)

    return Suite


@contextmanager
def silenced() -> Iterator[Callable[[], str]]:
    """What this process and its children write goes to a file; yields a function that reads it."""
    with tempfile.TemporaryFile() as log:
        saved = [(fd, os.dup(fd)) for fd in (1, 2)]
        for fd, _ in saved:
            os.dup2(log.fileno(), fd)
        try:
            yield lambda: os.pread(log.fileno(), 1 << 24, 0).decode(errors="replace")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in saved:
                os.dup2(copy, fd)
                os.close(copy)


@contextmanager
def disguised(module: Any, name: str, guise: str, backend: str) -> Iterator[None]:
    """For one test: which backend it names, and what torch's functions do with that."""
    init, barrier = dist.init_process_group, dist.monitored_barrier
    by_name = bool(BRANCHES_ON_NAME.search(name)) and guise != backend
    module.BACKEND = guise if by_name else backend
    if by_name:
        dist.init_process_group = lambda *args, **options: init(*args, **{**options, "backend": backend})
    if BY_METHOD.search(name) and backend != "gloo":
        dist.monitored_barrier = monitored_barrier
    try:
        yield
    finally:
        dist.init_process_group, dist.monitored_barrier = init, barrier


def monitored_barrier(group: Any = None, timeout: Any = None, wait_all_ranks: bool = False) -> None:
    """torch's function without its question for the backend's name."""
    if group is not dist.GroupMember.NON_GROUP_MEMBER:
        limit = timedelta(seconds=timeout) if isinstance(timeout, float) else timeout
        (group or dist.distributed_c10d._get_default_group()).monitored_barrier(limit, wait_all_ranks=wait_all_ranks)


def run(suite: type[Any], name: str, world: int) -> tuple[str, str]:
    """Run one test; returns how it went and, unless it passed, why."""
    case, result = suite(name), unittest.TestResult()
    with silenced() as written:
        case.run(result)
        text = written()
    if result.skipped:
        return NOT_APPLICABLE, str(result.skipped[0][1])
    if result.wasSuccessful() and case.ranks_started == world:
        return PASSED, ""
    return FAILED, first_error(text + "".join(words for _, words in result.errors + result.failures))


def first_error(text: str) -> str:
    """The line of a log that says best what went wrong."""
    lines = re.findall(r"^[\w.]*(?:Error|Exception|Mismatch|Lost|Exceeded|Closed)\b.*$", text, re.MULTILINE)
    telling = [line for line in lines if "exited with error code" not in line]
    return (telling or text.strip().splitlines()[-1:] or ["no rank was started"])[0][:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--as", dest="guise", default="gloo", choices=("gloo", "mpi"), help="default: %(default)s")
    parser.add_argument("--world", type=int, default=4, help="ranks (default: %(default)s)")
    parser.add_argument("--match", default="", help="only tests whose name contains this regular expression")
    parser.add_argument("--backend", default="superpod", help="whose groups (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder  # the tests leave files
        module = load(args.guise, args.world, args.backend)
        suite = suite_of(module)
        for name in sorted(n for n in dir(suite) if n.startswith("test_") and re.search(args.match, n)):
            start = time.monotonic()
            with disguised(module, name, args.guise, args.backend):
                outcome, why = run(suite, name, args.world)
            seconds = round(time.monotonic() - start, 2)
            print(json.dumps({"test": name, "outcome": outcome, "seconds": seconds, "why": why}), flush=True)


if __name__ == "__main__":
    main()
