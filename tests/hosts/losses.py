"""Losses of hosts in a job on a, b and c: what is done, what must be seen of it, and the table in docs/hosts.md."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from host_jobs import HostLauncher, wait_for_lines
from namespaces import Namespace

from doc_tables import DocTable, without_numbers

WITHIN = 5.0  # seconds from the loss until nothing of the job runs on the other hosts
WITHIN_FROZEN = 10.0
BY_SSH, BY_NODES = "ssh", "torchrun's way"
TABLE = DocTable(
    "hosts.md",
    "losses",
    "loss",
    ("what is said", "the other hosts are empty after", "what is left on it"),
    volatile=("the other hosts are empty after",),
)
RANKS = {"a": "0-1", "b": "2-3", "c": "4-5"}
SECRET = "ab" * 32
HEADLINES = ("the job failed: ", "the first failure: ", "superpod: ")  # the best first
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


class Job:
    """A job all of whose cards are in a collective. Attributes: head: the launcher on host a."""

    def __init__(self, cluster: HostLauncher, start: str) -> None:
        script = cluster.script("turning.py", TURNING)
        self._cluster = cluster
        if start == BY_SSH:
            self._launchers = [cluster.start("--hosts", "a:2,b:2,c:2", script)]
        else:
            where = ("--nnodes", 3, "--rdzv-endpoint", "10.77.0.1:29400", "--nproc-per-node", 2)
            self._launchers = [
                cluster.start(*where, "--node-rank", rank, script, on=host, env={"SUPERPOD_SECRET": SECRET})
                for rank, host in enumerate("abc")
            ]
        self.head = self._launchers[0]
        wait_for_lines(self.head.stdout, [f"[{rank}@{'abc'[rank // 2]}] turning" for rank in range(6)])

    def told(self, loss: Loss) -> str:
        """What the head said, or where there is none any more another node did, once all have ended."""
        ended = [self._cluster.finish(launcher) for launcher in self._launchers]
        assert all(job.code != 0 for job in ended)
        text = "".join(job.err for job in ended)
        if loss.do is _stop_everything and loss.host == "a":  # once it goes on it says that it has lost the others
            assert re.search(r"host [bc] .*was lost|PeerLost", text), text
            text = "\n".join(line for line in text.splitlines() if line.startswith(HEADLINES[-1]))
        elif loss.host == "a":  # then it is the others who are lost to it, the first of which is named
            text = re.sub(r"host [bc] \(ranks \d-\d\)", "host b or c", text)
        elif f"ranks {RANKS[loss.host]}: lost with the host" not in text:
            raise AssertionError(text)
        cards = [line for line in text.splitlines() if "PeerLost: " in line]
        told = [line.partition(begin)[2] for begin in HEADLINES for line in text.splitlines() if begin in line]
        said = next(iter(told), "nothing")
        gone = re.compile(
            r"rank [23] died: its connection broke|the launcher has ended on host b"
        )  # what is heard first
        assert all(said in line or gone.search(line) for line in cards) or not said.startswith("host "), text
        return without_numbers(said)


def turning(cluster: HostLauncher, start: str) -> Job:
    return Job(cluster, start)


class Watch:
    """Since when something has been lost. Attributes: seconds: until the last host that was looked at was empty."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.seconds = 0.0

    def until_empty(self, host: Namespace, within: float = 3 * WITHIN_FROZEN) -> None:
        while found := host.pids():
            assert time.monotonic() - self._began < within, f"left on {host.name}: {found}"
            time.sleep(0.02)
        self.seconds = time.monotonic() - self._began


def _take_link_down(host: Namespace, job: Job) -> None:
    host.link("down")


def _kill_agent(host: Namespace, job: Job) -> None:
    os.kill(host.named("superpod-agent")[0], signal.SIGKILL)


def _kill_zygote(host: Namespace, job: Job) -> None:
    os.kill(host.named("superpod-zygote")[0], signal.SIGKILL)


def _stop_everything(host: Namespace, job: Job) -> None:
    host.signal(signal.SIGSTOP)


def _kill_launcher(host: Namespace, job: Job) -> None:
    job.head.kill()


class Loss(NamedTuple):
    """One row of the table. `do` gets the host that is lost, and the job."""

    what: str
    host: str
    do: Callable[[Namespace, Job], None]
    within: float = WITHIN

    def left(self, host: Namespace, watch: Watch, start: str) -> str:
        """What stays on the lost host once all others are empty: nothing, or what goes when it goes on."""
        if self.do is _stop_everything and (start == BY_NODES or host.name == "a"):
            assert host.pids(), "no ssh leads there from anybody, so who can have ended them?"
            host.signal(signal.SIGCONT)
            watch.until_empty(host)
            return "what is frozen; it ends when it goes on"
        watch.until_empty(host)
        return "nothing"


LOSSES = (
    Loss("the link of b is taken down", "b", _take_link_down),
    Loss("the agent on b is killed", "b", _kill_agent),
    Loss("the zygote on b is killed", "b", _kill_zygote),
    Loss("all processes on b are stopped (SIGSTOP)", "b", _stop_everything, WITHIN_FROZEN),
    Loss("the link of a, the first host, is taken down", "a", _take_link_down),
    Loss("the launcher on a is killed", "a", _kill_launcher),
    Loss("all processes on a are stopped", "a", _stop_everything, WITHIN_FROZEN),
)


def title(loss: Loss, start: str) -> str:
    return f"{start}: {loss.what}"
