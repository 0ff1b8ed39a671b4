"""A host is lost, or a card on another host fails: everybody else ends in time, names the cause, and leaves nothing."""

from __future__ import annotations

import os
import signal
import time

import pytest
from host_jobs import wait_for_lines

WITHIN = 5.0  # seconds from the loss to the end of the job
WITHIN_FROZEN = 10.0

TURNING = """
import numpy as np
import superpod

comm = superpod.init()
x = np.ones(1000, np.float32)
comm.all_reduce(x)
print("turning", flush=True)
while True:
    comm.all_reduce(x)
    x[:] = 1
"""


def turning(cluster, hosts="a:2,b:2,c:2"):
    """A job all of whose cards are in a collective."""
    job = cluster.start("--hosts", hosts, cluster.script("turning.py", TURNING))
    ranks = sum(int(part.partition(":")[2]) for part in hosts.split(","))
    names = [name for part in hosts.split(",") for name in part.partition(":")[0] * int(part.partition(":")[2])]
    wait_for_lines(job.stdout, [f"[{r}@{names[r]}] turning" for r in range(ranks)])
    return job


def take_link_down(host):
    host.link("down")


def kill_agent(host):
    os.kill(host.named("superpod-agent")[0], signal.SIGKILL)


def kill_zygote(host):
    os.kill(host.named("superpod-zygote")[0], signal.SIGKILL)


def stop_everything(host):
    host.signal(signal.SIGSTOP)


LOSSES = [
    (take_link_down, WITHIN, "nothing has been heard of it for 3."),
    (kill_agent, WITHIN, "its agent was killed, or ssh has lost it"),
    (kill_zygote, WITHIN, "its zygote (pid "),
    (stop_everything, WITHIN_FROZEN, "nothing has been heard of it for 3."),
]


@pytest.mark.parametrize(("lose", "within", "how"), LOSSES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_loss_of_a_host_ends_the_job_in_time_by_name(cluster, lose, within, how):
    job = turning(cluster)
    began = time.monotonic()
    lose(cluster.host("b"))
    ended = cluster.finish(job)
    seconds = time.monotonic() - began
    assert ended.code != 0
    headline = next(line for line in ended.err.splitlines() if "the job failed" in line)
    assert headline.startswith("superpod-run: the job failed: host b (ranks 2-3) was lost: " + how), ended.err
    others = [line for line in ended.err.splitlines() if "PeerLost" in line]
    assert others, ended.err
    assert all("host b" in line for line in others), others
    assert "ranks 2-3: lost with the host" in ended.err
    assert seconds < within, f"{seconds:.1f} s\n{ended.err}"


def test_a_card_that_fails_on_another_host_is_named_with_it(cluster):
    script = cluster.script("fails.py", """
        import superpod
        comm = superpod.init()
        comm.barrier()
        if comm.rank == 3:
            raise ValueError("no more")
        comm.barrier()
    """)  # fmt: skip
    job = cluster("--hosts", "a:2,b:2", script)
    assert job.code == 1
    assert "superpod-run: the first failure: rank 3 (host b, pid " in job.err
    assert "raised ValueError: no more" in job.err
    assert "  | ValueError: no more" in job.err
    assert "ranks 0-2: PeerLost: rank 3 (host b, pid" in job.err
    assert "superpod-run --explain" in job.err
    record = next(word for word in job.err.split() if word.endswith(".json"))
    explained = cluster("--explain", record.rstrip(";"))
    assert "rank 3" in explained.out
    os.unlink(record)


def test_the_launchers_death_ends_the_job_on_every_host(cluster):
    job = turning(cluster)
    job.kill()
    job.wait()
    assert cluster.hosts.wait_until_nothing_is_left(5) == {}


def test_ctrl_c_ends_the_job_on_every_host(cluster):
    job = turning(cluster)
    job.send_signal(signal.SIGINT)
    ended = cluster.finish(job)
    assert ended.code == 130
    assert "interrupted (Ctrl-C); all cards have been ended" in ended.err
    assert ended.seconds < WITHIN


def test_what_cards_do_is_asked_on_every_host(cluster):
    script = cluster.script("waits.py", """
        import time
        import superpod
        comm = superpod.init()
        comm.barrier()
        print("here", flush=True)
        if comm.rank == 3:
            time.sleep(60)
        comm.barrier()
    """)  # fmt: skip
    job = cluster.start("--hosts", "a:2,b:2", script)
    wait_for_lines(job.stdout, ["[3@b] here", "[0@a] here", "[1@a] here", "[2@b] here"])
    job.send_signal(signal.SIGUSR1)
    wait_for_lines(job.stderr, ["ranks 0-2 wait in barrier", "rank 3 is in the script at waits.py:8"])
    job.send_signal(signal.SIGTERM)
    assert cluster.finish(job).code == 143
