"""A real Slurm: srun starts superpod-run in every task, and the step's own variables say the rest."""

from __future__ import annotations

import re

import pytest
import slurm_cluster
from host_jobs import COMMAND, wait_for_lines

WHO = """
import os, socket
import numpy as np
import superpod

comm = superpod.init()
total = np.full(100, comm.rank, np.float32)
comm.all_reduce(total)
print(socket.gethostname(), total[0], os.environ["LOCAL_RANK"], os.environ["GROUP_RANK"])
comm.close()
"""


@pytest.fixture(scope="module")
def services(hosts):
    if reason := slurm_cluster.why_not():
        pytest.skip(f"no Slurm here: {reason}")
    slurm = slurm_cluster.Slurm(hosts.hosts[:2])
    hosts.belongs("slurmctld", "slurmd", "slurmscriptd", "slurmstepd")
    yield slurm
    slurm.close()


@pytest.fixture
def srun(cluster, services):
    def start(*args, command=("srun",), env=None):
        return cluster.start(
            *args, command=command, enter=services.command, env={**services.environment, **(env or {})}
        )

    return start


def test_srun_starts_one_agent_a_task_and_munge_hands_out_the_secret(cluster, srun):
    script = cluster.script("who.py", WHO)
    job = cluster.finish(srun("-N", 2, COMMAND, "-n", 5, script))
    lines = ["[0@a] a 10.0 0 0", "[1@a] a 10.0 1 0", "[2@a] a 10.0 2 0", "[3@b] b 10.0 0 1", "[4@b] b 10.0 1 1"]
    assert (job.code, job.lines) == (0, lines), job.err


def test_a_secret_of_the_users_own(cluster, srun):
    script = cluster.script("who.py", WHO)
    job = cluster.finish(srun("-N", 2, COMMAND, "--nproc-per-node", 1, script, env={"SUPERPOD_SECRET": "ab" * 32}))
    assert (job.code, len(job.lines)) == (0, 2), job.err


def test_a_batch_script_is_no_step_and_its_srun_is(cluster, srun):
    script = cluster.script("who.py", WHO)
    batch = cluster.script("job.sbatch", f"""\
        #!/bin/sh
        {COMMAND} -n 2 {script}
        srun {COMMAND} -n 2 {script}
    """)  # fmt: skip
    out = cluster.folder / "out"
    submitted = cluster.finish(srun("-N", 2, "--wait", f"--output={out}", batch, command=("sbatch",)))
    assert submitted.code == 0, out.read_text() + submitted.err
    lines = sorted(out.read_text().splitlines())
    alone = ["[0] a 1.0 0 0", "[1] a 1.0 1 0"]
    assert lines == sorted([*alone, "[0@a] a 1.0 0 0", "[1@b] b 1.0 0 1"])


def test_scancel_ends_everything_on_all_nodes(cluster, srun, services):
    script = cluster.script("waits.py", """
        import time
        import superpod
        superpod.init()
        print("here", flush=True)
        time.sleep(60)
    """)  # fmt: skip
    job = srun("-N", 2, "-J", "waits", COMMAND, "-n", 4, script)
    wait_for_lines(job.stdout, ["[0@a] here", "[3@b] here"])
    assert cluster.finish(srun("--name=waits", command=("scancel",))).code == 0
    ended = cluster.finish(job)
    assert ended.code != 0
    assert cluster.hosts.wait_until_nothing_is_left(10) == {}


def test_the_examples_sbatch_file_works(cluster, srun):
    from namespaces import ROOT

    cluster.script("train_digits.py", WHO)
    text = (ROOT / "examples/slurm.sbatch").read_text()
    (cluster.folder / "slurm.sbatch").write_text(text.replace("superpod-run", str(COMMAND)))
    out = cluster.folder / "out"
    job = cluster.finish(srun("--wait", f"--output={out}", "-N", 2, "slurm.sbatch", command=("sbatch",)))
    assert job.code == 0, out.read_text() + job.err
    said = re.findall(r"^\[(\d+)@([ab])\] \2 ", out.read_text(), re.MULTILINE)  # others may have a word, too
    assert sorted((int(rank), host) for rank, host in said) == [(rank, "ab"[rank // 8]) for rank in range(16)]
