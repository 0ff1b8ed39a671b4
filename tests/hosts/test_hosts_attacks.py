"""Nobody else gets in: from a third host, attacks on every port of a job of real processes, which goes on and ends.

tests/interconnect/test_security.py holds each attack against each kind of port by itself, and fills the table in docs/.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from host_jobs import wait_for_lines
from losses import SECRET
from namespaces import run

TESTS = Path(__file__).resolve().parents[1]
ATTACKS = TESTS / "interconnect" / "attacks.py"
AGENTS = 29400
LAUNCHER, CARD = "superpod-run", "superpod-"
COUNTING = """
import sys
from pathlib import Path
import numpy as np
import superpod

comm = superpod.init()
folder = Path(sys.argv[1])
calls, going = 0, np.ones(1)
while going[0]:
    going[0] = not (folder / "stop").exists()
    comm.all_reduce(going, op="min")
    data = np.full(20_000, comm.rank + 1.0)
    comm.all_reduce(data)
    assert (data == 10).all()
    calls += 1
    if comm.rank == 0:
        (folder / "draft").write_text(str(calls))
        (folder / "draft").rename(folder / "calls")
    if calls == 1:
        print("going", flush=True)
print("done", flush=True)
comm.close()
"""
QUICK = ("without_a_key", "with_another_jobs_keys", "with_a_key_of_its_own", "with_the_keys_of_another_role")
QUICK += ("replay", "huge_headers", "garbage", "port_scan")
WHO_REFUSES = [f"[{rank}@{'ab'[rank // 2]}] rank {rank}" for rank in range(4)]
WHY_REFUSED = (
    "connection from somebody who showed no key of this job",
    "message from an unknown sender b'recorded': it does not know this card's token",  # whose handshake was recorded
)


def ports(host):
    """(port, the name of the process that listens there) of a host, but for its ssh server and what is on loopback."""
    found = []
    for line in run(*host.command("ss", "-Hltnp")).splitlines():
        address, port = line.split()[3].rsplit(":", 1)
        name = line.partition('users:(("')[2].partition('"')[0]
        if name not in host.own and not address.startswith(("127.", "[::1]")):
            found.append((int(port), name))
    return found


def attack(cluster, host, port, role, *names):
    """From host c; what has become of each of them."""
    command = cluster.host("c").command(sys.executable, ATTACKS, host.address, port, role, *names)
    path = os.pathsep.join(map(str, (TESTS, TESTS / "interconnect")))
    environment = cluster.environment(PYTHONPATH=path, SUPERPOD_SECRET=SECRET)
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Job:
    """Two cards on a, two on b, all of them in collectives until `finish`."""

    def __init__(self, cluster):
        script, self._cluster = cluster.script("counting.py", COUNTING), cluster
        where = ("--nnodes", 2, "--rdzv-endpoint", f"10.77.0.1:{AGENTS}", "--nproc-per-node", 2)
        self._launchers = [
            cluster.start(*where, "--node-rank", rank, script, cluster.folder, on=host, env={"SUPERPOD_SECRET": SECRET})
            for rank, host in enumerate("ab")
        ]
        wait_for_lines(self._launchers[0].stdout, [f"[{rank}@{'ab'[rank // 2]}] going" for rank in range(4)])

    def calls(self):
        return int((self._cluster.folder / "calls").read_text())

    def goes_on(self):
        before, end = self.calls(), time.monotonic() + 10
        while self.calls() < before + 3:
            assert time.monotonic() < end, "the job stands still"
            time.sleep(0.02)

    def finish(self):
        """What the launchers have printed, once the cards have ended by themselves."""
        (self._cluster.folder / "stop").touch()
        ended = [self._cluster.finish(launcher) for launcher in self._launchers]
        assert [job.code for job in ended] == [0, 0], ended
        return "".join(job.out + job.err for job in ended)


@pytest.fixture
def job(cluster):
    return Job(cluster)


def targets(cluster):
    """(host, port, whose keys it has) of everything of the job that listens on the network."""
    found = [(host, *port) for host in map(cluster.host, "ab") for port in ports(host)]
    names = [name for _, _, name in found]
    assert sorted(names) == [*(f"{CARD}{rank}" for rank in range(4)), LAUNCHER], "and nothing else"
    return [(host, port, "agents" if name == LAUNCHER else "cards") for host, port, name in found]


@pytest.mark.slow
def test_no_attack_from_the_network_gets_into_a_job_or_ends_it(cluster, job):
    for host, port, role in targets(cluster):
        seen = attack(cluster, host, port, role, *QUICK)
        assert set(seen.values()) <= {
            *("refused in the handshake", "refused by the doorkeeper", "hung up on"),
            "an open port of ZeroMQ's",
        }
        assert list(seen) == list(QUICK)
        job.goes_on()
    out = job.finish()
    refusals = [line.partition(" refused ") for line in out.splitlines() if " refused " in line]
    assert sorted(who for who, _, _ in refusals) == WHO_REFUSES, "each of them says it once"
    assert all(why.endswith(WHY_REFUSED) for _, _, why in refusals), refusals
    assert out.count("somebody without a key of this job has been turned away, and will be without further words") == 1
    assert out.count("done") == 4


@pytest.mark.slow
def test_a_flood_of_connections_does_not_end_a_job(cluster, job):
    host, port, role = next(found for found in targets(cluster) if found[2] == "cards")
    assert attack(cluster, host, port, role, "many_connections") == {
        "many_connections": "kept waiting, then hung up on"
    }
    job.goes_on()
    assert job.finish().count("done") == 4
