"""What goes between hosts: how much, and who can read it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from host_jobs import DEADLINE

REDUCE = """
import sys
import numpy as np
import superpod

comm = superpod.init()
for name in sys.argv[1:]:
    for nbytes in (4800, 480_000, 4_800_000):
        data = np.full(nbytes // 4, comm.rank + 1, np.float32)
        comm.all_reduce(data, algorithm=None if name == "any" else name)
        assert (data == comm.world_size * (comm.world_size + 1) / 2).all()
link = comm._engine.mesh.link
print(link.near.name, link.bytes_far)
comm.close()
"""
TOTAL = 4800 + 480_000 + 4_800_000  # bytes

SECRET = """
import numpy as np
import superpod

comm = superpod.init()
data = np.frombuffer(b"this is what nobody else may read " * 4096, np.uint8).copy()
comm.broadcast(data, root=0)
comm.close()
"""
LISTEN = """
import socket, sys
line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
line.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
print("listening", flush=True)
line.settimeout(0.2)
heard = plain = 0
import select
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        packet = line.recv(1 << 17)
    except TimeoutError:
        continue
    heard += len(packet)
    plain += b"nobody else may read" in packet
print(heard, plain, flush=True)
"""


def sent(job, sizes):
    """What each host's cards have sent to others [B]."""
    host_of = [name for name, size in sizes for _ in range(size)]
    out = dict.fromkeys((name for name, _ in sizes), 0)
    for line in job.lines:
        rank, _, nbytes = line.partition("@")[0].strip("["), *line.split()[1:]
        out[host_of[int(rank)]] += int(nbytes)
    return out


@pytest.mark.parametrize("link", ["zmq", "shm"])
@pytest.mark.parametrize("sizes", [[("a", 2), ("b", 2)], [("a", 3), ("b", 1), ("c", 2)]], ids=str)
def test_rails_send_what_their_formula_says(cluster, sizes, link):
    script = cluster.script("reduce.py", REDUCE)
    hosts = ",".join(f"{host}:{size}" for host, size in sizes)
    job = cluster("--hosts", hosts, "-x", f"SUPERPOD_LINK={link}", script, "rails")
    assert job.code == 0, job.err
    assert {line.split()[1] for line in job.lines} == {link}
    m = len(sizes)
    assert sent(job, sizes) == dict.fromkeys((name for name, _ in sizes), 2 * (m - 1) * TOTAL // m)


def test_leaders_send_what_their_formula_says(cluster):
    sizes = [("a", 3), ("b", 1), ("c", 2)]
    job = cluster("--hosts", "a:3,b:1,c:2", cluster.script("reduce.py", REDUCE), "leaders")
    assert job.code == 0, job.err
    assert sum(sent(job, sizes).values()) == 2 * 2 * TOTAL


EXCHANGE = """
import numpy as np
import superpod

comm = superpod.init()
for nbytes in (8, 100_000):
    data = np.full((comm.world_size, nbytes), comm.rank, np.uint8)
    got = comm.all_to_all(data, algorithm="rails")
    assert (got == np.arange(comm.world_size, dtype=np.uint8)[:, None]).all()
link = comm._engine.mesh.link
print(link.near.name, link.bytes_far)
comm.close()
"""


@pytest.mark.parametrize("link", ["zmq", "shm"])
def test_rails_of_all_to_all_send_what_their_formula_says(cluster, link):
    sizes = [("a", 3), ("b", 1), ("c", 2)]
    script = cluster.script("exchange.py", EXCHANGE)
    job = cluster("--hosts", "a:3,b:1,c:2", "-x", f"SUPERPOD_LINK={link}", script)
    assert job.code == 0, job.err
    assert sent(job, sizes) == {host: k * (6 - k) * 100_008 for host, k in sizes}


ROOTED = """
import numpy as np
import superpod

comm = superpod.init()
for root in range(comm.world_size):
    own = np.full(50_000, comm.rank, np.uint8)
    got = comm.gather(own, root=root, algorithm="leaders")
    assert comm.rank != root or (got == np.arange(comm.world_size, dtype=np.uint8)[:, None]).all()
    comm.scatter(got, root=root, out=own, algorithm="leaders")
    assert (own == comm.rank).all()
link = comm._engine.mesh.link
print(link.near.name, link.bytes_far)
comm.close()
"""


def test_leaders_of_gather_and_scatter_send_what_their_formula_says(cluster):
    sizes = [("a", 3), ("b", 1), ("c", 2)]
    job = cluster("--hosts", "a:3,b:1,c:2", cluster.script("rooted.py", ROOTED))
    assert job.code == 0, job.err
    to_roots = {host: k * (6 - k) * 50_000 for host, k in sizes}  # all roots of other hosts together
    from_roots = {host: k * (6 - k) * 50_000 for host, k in sizes}
    assert sent(job, sizes) == {host: to_roots[host] + from_roots[host] for host, _ in sizes}


def test_the_summary_says_how_much_went_between_hosts(cluster):
    job = cluster("--hosts", "a:2,b:2", "--summary-json", "s.json", cluster.script("reduce.py", REDUCE), "any")
    assert job.code == 0, job.err
    rows = {row["operation"]: row for row in json.loads((cluster.folder / "s.json").read_text())["operations"]}
    most = max(int(line.split()[2]) for line in job.lines)
    assert rows["to other hosts"]["bytes"] == most > 0


@pytest.mark.parametrize("options", [(), ("--no-encryption",)], ids=["encrypted", "in clear"])
def test_who_listens_on_the_network_reads_nothing(cluster, options):
    script = cluster.script("secret.py", SECRET)
    listener = subprocess.Popen(
        cluster.host("b").command(sys.executable, "-c", LISTEN),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert listener.stdout.readline() == "listening\n"
        job = cluster("--hosts", "a:1,b:1", *options, script)
        assert job.code == 0, job.err
        out, _ = listener.communicate("enough\n", timeout=DEADLINE)
    finally:
        listener.kill()
        listener.wait()
    heard, plain = map(int, out.split())
    assert heard > 34 * 4096
    assert (plain > 0) == bool(options)
