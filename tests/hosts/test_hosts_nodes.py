"""superpod-run started on every host by somebody else: torchrun's options and variables, a secret, who may join."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from host_jobs import wait_for_lines

SECRET = "ab" * 32
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


def start_all(cluster, script, *, sizes, options=(), env=None, endpoint="10.77.0.1:29400"):
    """Node i on the i-th host; the head last, as it may happen."""
    started = []
    for number, (host, size) in reversed(list(enumerate(sizes))):
        args = ("--nnodes", len(sizes), "--node-rank", number, "--rdzv-endpoint", endpoint, "--nproc-per-node", size)
        env_of_node = {"SUPERPOD_SECRET": SECRET} if env is None else env
        started.append(cluster.start(*args, *options, script, on=host, env=env_of_node))
    return started[::-1]


@pytest.mark.parametrize("endpoint", ["10.77.0.1:29400", "[fd77::1]:29401", "a"])
def test_nodes_join_and_become_one_job(cluster, endpoint):
    script = cluster.script("who.py", WHO)
    head, *others = start_all(cluster, script, sizes=[("a", 1), ("b", 2), ("c", 3)], endpoint=endpoint)
    ended = cluster.finish(head)
    lines = ["[0@a] a 15.0 0 0", "[1@b] b 15.0 0 1", "[2@b] b 15.0 1 1"]
    lines += [f"[{3 + local}@c] c 15.0 {local} 2" for local in range(3)]
    assert (ended.code, ended.lines) == (0, lines), ended.err
    assert [cluster.finish(other).code for other in others] == [0, 0]


@pytest.mark.parametrize("address", ["10.77.0.1", "fd77::1"])
def test_torchruns_variables_and_a_secret_file(cluster, address):
    """As Kubeflow sets them, whose WORLD_SIZE and RANK count nodes."""
    script = cluster.script("who.py", WHO)
    (cluster.folder / "secret").write_text(SECRET + "\n")
    meeting = {"PET_NNODES": "2", "PET_MASTER_ADDR": address, "PET_MASTER_PORT": "29402", "WORLD_SIZE": "2"}
    jobs = [
        cluster.start(
            "--secret-file", "secret", "-n", "3", script, on=host,
            env={**meeting, "PET_NODE_RANK": str(rank), "RANK": str(rank), "PET_NPROC_PER_NODE": "auto"},
        )
        for rank, host in enumerate("ab")
    ]  # fmt: skip
    ended = cluster.finish(jobs[0])
    assert (ended.code, len(ended.lines)) == (0, 3), ended.err
    assert [line.split()[1] for line in ended.lines] == ["a", "a", "b"]
    assert cluster.finish(jobs[1]).code == 0


def test_in_clear_where_the_user_says_so(cluster):
    script = cluster.script("who.py", WHO)
    head, other = start_all(cluster, script, sizes=[("a", 1), ("b", 1)], options=["--no-encryption"], env={})
    ended = cluster.finish(head)
    assert (ended.code, len(ended.lines)) == (0, 2), ended.err
    assert cluster.finish(other).code == 0


def test_who_does_not_know_the_secret_does_not_join(cluster):
    script = cluster.script("who.py", WHO)
    stranger = cluster.start(
        "--nnodes", 2, "--node-rank", 1, "--rdzv-endpoint", "10.77.0.1:29400", script,
        on="c", env={"SUPERPOD_SECRET": "cd" * 32},
    )  # fmt: skip
    head, other = start_all(cluster, script, sizes=[("a", 1), ("b", 1)])
    ended = cluster.finish(head)
    assert (ended.code, [line.split()[1] for line in ended.lines]) == (0, ["a", "b"]), ended.err
    assert cluster.finish(other).code == 0
    stranger.send_signal(signal.SIGTERM)
    assert cluster.finish(stranger).code == 128 + signal.SIGTERM


def test_a_node_that_does_not_fit_is_told_so(cluster):
    script = cluster.script("who.py", WHO)
    args = ("--nnodes", "3", "--rdzv-endpoint", "10.77.0.1:29400", script)
    env = {"SUPERPOD_SECRET": SECRET}
    head = cluster.start("--node-rank", "0", *args, env=env)
    first = cluster.start("--node-rank", "1", *args, on="b", env=env)
    wrong = cluster.finish(cluster.start("--nnodes", "4", "--node-rank", "3", *args[2:], on="d", env=env))
    assert wrong.code == 2
    assert "--nnodes 4 --node-rank 3 does not fit: this job has nodes 0 to 2, each once" in wrong.err
    third = cluster.start("--node-rank", "2", *args, on="c", env=env)
    assert [cluster.finish(job).code for job in (head, first, third)] == [0, 0, 0]


def test_a_lost_head_ends_the_other_nodes(cluster):
    script = cluster.script("waits.py", """
        import time
        import superpod
        superpod.init()
        print("here", flush=True)
        time.sleep(60)
    """)  # fmt: skip
    head, other = start_all(cluster, script, sizes=[("a", 1), ("b", 1)])
    wait_for_lines(head.stdout, ["[0@a] here", "[1@b] here"])
    head.kill()
    ended = cluster.finish(other)
    assert ended.code == 1
    assert "nothing has been heard of the head of the job; ending its cards here" in ended.err


def test_a_lost_node_ends_the_job_in_time_by_name(cluster):
    script = cluster.script("turning.py", """
        import numpy as np
        import superpod
        comm = superpod.init()
        x = np.ones(10)
        comm.all_reduce(x)
        print("turning", flush=True)
        while True:
            comm.all_reduce(x, op="max")
    """)  # fmt: skip
    head, other = start_all(cluster, script, sizes=[("a", 1), ("b", 2)])
    wait_for_lines(head.stdout, ["[0@a] turning", "[1@b] turning", "[2@b] turning"])
    began = time.monotonic()
    os.kill(cluster.host("b").named("superpod-agent")[0], signal.SIGKILL)
    ended = cluster.finish(head)
    assert time.monotonic() - began < 5
    assert ended.code != 0
    assert "host b (ranks 1-2) was lost" in ended.err
    other.wait(10)


TORCH = """
import os
import torch
import torch.distributed as dist

dist.init_process_group("superpod")
x = torch.full((1000,), float(dist.get_rank()))
dist.all_reduce(x)
line = f"{os.environ['GROUP_RANK']} {dist.get_rank()} {x[0].item()}\\n"
os.write(1, line.encode())  # in one piece: torchrun does not keep lines apart
dist.destroy_process_group()
"""


def test_torchrun_itself_on_two_hosts(cluster):
    script = cluster.script("torch_job.py", TORCH)
    torchrun = Path(sys.executable).with_name("torchrun")
    jobs = [
        cluster.start(
            "--nnodes", 2, "--node-rank", rank, "--nproc-per-node", 2, "--master-addr", "10.77.0.1",
            "--master-port", 29411, script, on=host, command=(torchrun,), env={"OMP_NUM_THREADS": "1"},
        )
        for rank, host in enumerate("ab")
    ]  # fmt: skip
    ended = [cluster.finish(job) for job in jobs]
    assert [job.code for job in ended] == [0, 0], ended[0].err + ended[1].err
    assert sorted(ended[0].lines + ended[1].lines) == [f"{r // 2} {r} 6.0" for r in range(4)]
