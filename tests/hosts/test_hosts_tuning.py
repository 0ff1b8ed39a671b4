"""Hosts with different tuned tables in their caches: one table counts, for all cards alike."""

from __future__ import annotations

from test_hosts_nodes import SECRET

from superpod.collectives import tuning
from tuned_tables import everywhere

CHOSEN = """
import os
import numpy as np
import superpod

comm = superpod.init()
host = int(os.environ["GROUP_RANK"])
near = [comm.group(range(2)), comm.group(range(2, 5))][host]
words = []
for group in (comm, near):
    for count in (1, 1000, 100_000):
        data = np.full(count, 1.0)
        group.all_reduce(data)
        assert (data == group.world_size).all()
        words.append(group.last.algorithm)
print(*words)
comm.close()
"""


def test_the_heads_table_counts_within_hosts_and_none_between_them(cluster, monkeypatch, tmp_path):
    script = cluster.script("chosen.py", CHOSEN)
    started = []
    for number, (algorithm, cards, host) in enumerate((("nhr", 2, "a"), ("ring", 3, "b"))):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / host))
        everywhere(tuning.cached(), algorithm)
        env = {"SUPERPOD_SECRET": SECRET, "XDG_CACHE_HOME": str(tmp_path / host), "SUPERPOD_TUNING": ""}
        options = ("--nnodes", 2, "--node-rank", number, "--rdzv-endpoint", "10.77.0.1:29411")
        started.append(cluster.start(*options, "--nproc-per-node", cards, script, on=host, env=env))
    head, other = [cluster.finish(process) for process in started]
    assert (head.code, other.code) == (0, 0), head.err + other.err
    said = {line.partition("] ")[2] for line in head.lines}
    assert said == {"leaders leaders leaders nhr nhr nhr"}
