"""64 cards, one of which fails: all others hear of it at once, and of its cause."""

from __future__ import annotations

import re

import pytest

SCRIPT = """
import os
import sys
import time

import numpy as np

import superpod

comm = superpod.init()
try:
    for step in range(10**9):
        if step == 20 and comm.rank == 17:
            with open("when", "w") as file:
                file.write(str(time.time()))
            {fail}
        comm.all_reduce(np.ones(1000))
except superpod.SuperpodError as error:
    now = time.time()
    print("heard", now, type(error).__name__, str(error).replace(chr(10), " "), flush=True)
    raise
"""
NOTICED = (
    1.0  # seconds; each card needs processor time to hear of it, so it is three when others use the two processors
)
BUSY = 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "code", "kind", "cause"),
    [
        ("os.kill(os.getpid(), 9)", 137, "PeerLost", r"rank 17 .*(was killed by SIGKILL|needs it in all_reduce)"),
        ("os._exit(3)", 3, "PeerLost", r"rank 17 .*(exited with code 3|needs it in all_reduce)"),
        ("raise ValueError('bad batch')", 1, "PeerLost", r"rank 17 .*raised ValueError: bad batch"),
        (
            "comm.all_reduce(np.ones(3), op='min', algorithm='ring')",
            1,
            "CollectiveMismatch",
            r"rank 17 called all_reduce\(3 × float64, min\) by ring \(#20\) in the script at fails\.py:15",
        ),
    ],
    ids=["killed", "exits", "raises", "differs"],
)
def test_all_others_hear_of_it_within_a_second(launch, fail, code, kind, cause):
    launch.script("fails.py", SCRIPT.format(fail=fail).lstrip())
    ended = launch("-n", "64", "fails.py")
    assert ended.code == code
    failed = float((launch.folder / "when").read_text())
    heard = dict(re.findall(r"^\[(\d+)\] heard (.*)$", ended.out, re.MULTILINE))
    missing = {str(rank) for rank in range(64)} - {"17"} - heard.keys()
    assert not missing
    late = {rank: line for rank, line in heard.items() if float(line.split()[0]) - failed > NOTICED * BUSY}
    assert not late
    others = {rank: line for rank, line in heard.items() if rank != "17"}
    strange = {rank: line for rank, line in others.items() if not re.search(rf"{kind} .*{cause}", line)}
    assert not strange
    assert "rank 17 " in ended.err.partition("superpod-run: the first failure: ")[2].partition("\n")[0]
