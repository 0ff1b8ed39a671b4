"""What people build on torch.distributed trains on superpod as on gloo, and as in one process.

client_programs/training.py says how far apart the results may be, and why.
"""

from __future__ import annotations

import shutil

import pytest

DATA_PARALLEL = [
    "ddp",
    "ddp_no_sync",
    "static_graph",
    "find_unused_parameters",
    "fp16_compress_hook",
    "join_with_uneven_inputs",
    "zero_redundancy_optimizer",
    "ddp_buffers",
    "batch_norm_over_ranks",
    "sync_batch_norm_is_refused",
    "data_loader_workers",
    "power_sgd_hook",
]
SHARDED = [
    "fsdp2",
    "fsdp2_keeping_gathered_parameters",
    "fsdp2_clipping_gradients",
    "fsdp2_in_bfloat16",
    "hsdp",
    "tensor_parallel",
    "fsdp2_and_tensor_parallel",
    "sequence_parallel",
    "dtensor_redistributions",
    "dtensor_training",
]
SAVES = ["save", "save_in_background"]
LOADS = ["load", "load_from_background", "load_by_rank_0"]
PIPELINES = ["gpipe", "1f1b", "interleaved_1f1b"]

# With two ranks every sum has two terms, and no bit may differ from gloo's; more ranks compute in double precision.
JOBS = [
    pytest.param(2, "data_parallel.py", "float32", DATA_PARALLEL),
    pytest.param(3, "data_parallel.py", "float64", DATA_PARALLEL, marks=pytest.mark.slow),
    pytest.param(2, "sharded.py", "float32", SHARDED),
    pytest.param(4, "sharded.py", "float64", SHARDED, marks=pytest.mark.slow),
    pytest.param(2, "pipelines.py", "float32", PIPELINES),
    pytest.param(4, "pipelines.py", "float64", PIPELINES, marks=pytest.mark.slow),
]
NO_TRAINING = ["sync_batch_norm_is_refused", "dtensor_redistributions"]


def check(outcome, client):
    """The verdict keeps its bounds, and something was learned."""
    verdict = outcome.verdict(client)
    assert not verdict.get("superpod"), verdict["superpod"]
    assert not verdict.get("gloo"), "on gloo: " + verdict["gloo"]
    assert verdict["from_gloo"] <= verdict["bound_from_gloo"], verdict
    if "from_alone" in verdict:
        assert verdict["from_alone"] <= verdict["bound_from_alone"], verdict
        assert verdict["bound_from_alone"] < 0.05, "a bound that anything would keep says nothing"
    if client not in NO_TRAINING:
        first, last = verdict["losses"]
        assert last < 0.95 * first, verdict


@pytest.mark.parametrize(
    ("n", "program", "dtype", "client"),
    [pytest.param(*job.values[:3], client, marks=job.marks) for job in JOBS for client in job.values[3]],
)
def test_trains_as_on_gloo_and_alone(jobs, n, program, dtype, client):
    check(jobs.run(n, program, dtype), client)


@pytest.mark.parametrize(("n", "program", "dtype", "clients"), JOBS)
def test_the_job_ends_well_and_has_no_other_client(jobs, n, program, dtype, clients):
    outcome = jobs.run(n, program, dtype)
    assert outcome.code == 0, outcome.text[-3000:]
    assert [line["client"] for line in outcome.lines] == clients


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 5])
def test_a_checkpoint_is_loaded_by_another_number_of_ranks(jobs, n):
    folder = str(jobs.folder / "checkpoints")
    saved = jobs.run(3, "checkpoints.py", "float64", folder, *SAVES)
    loaded = jobs.run(n, "checkpoints.py", "float64", folder, *LOADS)
    for outcome, clients in ((saved, SAVES), (loaded, LOADS)):
        for client in clients:
            check(outcome, client)


def test_compiled_ahead_of_time(jobs):
    check(jobs.run(2, "compiled.py", "float32", "compiled_ahead_of_time"), "compiled_ahead_of_time")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile makes C++, and there is no g++ to compile it")
def test_compiled_to_machine_code(jobs):
    check(jobs.run(2, "compiled.py", "float32", "compiled_to_machine_code"), "compiled_to_machine_code")


def test_buckets_travel_while_backward_computes(jobs):
    outcome = jobs.run(3, "overlap.py", "float32")
    assert outcome.code == 0, outcome.text[-3000:]
    assert len(outcome.lines) == 3
    for step in outcome.lines:
        assert len(step["set_out"]) == len(step["home"]) >= 2, "several buckets, or there is nothing to see"
        assert 0 < step["set_out"][0] < step["home"][0] < step["last_layer"] < step["end"]
        assert step["last_layer"] < step["set_out"][-1]


# The tests above can fail


class Said:
    """An outcome with one verdict."""

    def __init__(self, **verdict):
        self.found = {"losses": [2.3, 1.1], "from_gloo": 0.0, "bound_from_gloo": 0.0} | verdict

    def verdict(self, client):
        return self.found


def test_a_good_verdict_passes():
    check(Said(from_alone=1e-7, bound_from_alone=1e-5), "ddp")


@pytest.mark.parametrize(
    "verdict",
    [
        {"superpod": "rank 1: Traceback"},
        {"gloo": "rank 0: Traceback"},
        {"from_gloo": 1e-16},
        {"from_gloo": float("nan")},
        {"from_alone": 2e-5, "bound_from_alone": 1e-5},
        {"from_alone": 0.0, "bound_from_alone": 1.0},
        {"losses": [2.3, 2.3]},
    ],
)
def test_a_bad_verdict_fails(verdict):
    with pytest.raises(AssertionError):
        check(Said(**verdict), "ddp")
