"""A host is lost, or a card on another host fails: everybody else ends in time, names the cause, and leaves nothing."""

from __future__ import annotations

import os
import signal

import pytest
from host_jobs import wait_for_lines
from losses import BY_NODES, BY_SSH, LOSSES, TABLE, WITHIN, Loss, Watch, title, turning


@pytest.mark.parametrize("start", [BY_SSH, BY_NODES], ids=["ssh", "nodes"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.do.__name__)
def test_a_loss_ends_the_job_in_time_by_name(cluster, doc, loss: Loss, start: str):
    job = turning(cluster, start)
    lost, others = cluster.host(loss.host), [cluster.host(name) for name in "abc" if name != loss.host]
    watch = Watch()
    loss.do(lost, job)
    for host in others:
        watch.until_empty(host)
    seconds = watch.seconds
    left = loss.left(lost, watch, start)
    told = job.told(loss)
    assert seconds < loss.within, f"{seconds:.1f} s\n{told}"
    doc(TABLE, title(loss, start), {
        "what is said": told, "the other hosts are empty after": f"{seconds:.1f} s", "what is left on it": left,
    })  # fmt: skip


def test_the_table_has_every_loss():
    assert list(TABLE.rows()) == [title(loss, start) for start in (BY_SSH, BY_NODES) for loss in LOSSES]


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


def test_ctrl_c_ends_the_job_on_every_host(cluster):
    job = turning(cluster, BY_SSH).head
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
    missing = {"ranks 0-2 wait in barrier", "rank 3 is in the script at waits.py:8"}
    while missing:  # a report has two lines or more, so there is always one to read
        job.send_signal(signal.SIGUSR1)
        line = job.stderr.readline()
        assert line, missing
        missing -= {text for text in missing if text in line}
    job.send_signal(signal.SIGTERM)
    assert cluster.finish(job).code == 143
