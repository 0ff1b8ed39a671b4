"""superpod-bench torch: both backends in one job, on the same data, with the ratio."""

import json
import subprocess
import sys

import pytest

from superpod.benchmarks import torch_peers
from superpod.benchmarks.torch_peers import TorchPlan


@pytest.mark.slow
def test_superpod_and_gloo_take_turns_in_one_job(tmp_path):
    path = tmp_path / "r.json"
    command = [sys.executable, "-m", "superpod.benchmarks.cli", "torch", "-n", "2,3", "--sizes", "4K,8"]
    done = subprocess.run(
        [*command, "--turns", "2", "--budget", "100ms", "-J", path], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [(r["world_size"], r["nbytes"], r["backend"]) for r in rows] == [
        (n, nbytes, backend) for n in (2, 3) for nbytes in (8, 4096) for backend in ("superpod", "gloo")
    ]
    for row in rows:
        assert row["wrong"] == 0
        assert row["calls"] >= 2
        assert 0 < row["min_us"] <= row["median_us"] == row["time_us"] <= row["max_us"]
    assert done.stdout.count("ratio gloo") == 2


def test_the_ratio_is_the_peers_time_over_ours():
    def result(median_us):
        return {"median_us": median_us, "min_us": 1.0, "max_us": 9999.0, "calls": 4, "wrong": 0}

    backends = {"superpod": result(200.0), "gloo": result(500.0)}
    rows = torch_peers._rows({"world_size": 2, "nbytes": 1000, "dtype": "float32", "backends": backends}, "zmq")
    assert [row["link"] for row in rows] == ["zmq", "gloo"]
    assert [row["ratio"] for row in rows] == [1.0, 2.5]
    assert rows[0]["busbw_gbps"] == pytest.approx(0.005)
    line = torch_peers._table_line({"nbytes": 4096, "backends": backends})
    assert line.split() == ["4", "KiB", "200.0", "500.0", "2.50", "0"]


def test_the_plan_reaches_the_cards_unchanged():
    plan = TorchPlan(("superpod", "gloo"), (8, 4096), "float32", 5, 2.0)
    assert TorchPlan.from_json(plan.to_json()) == plan
