"""Jobs on several hosts through ssh: ranks, environment, output, torch, what is refused."""

from __future__ import annotations

import json
import sys

import pytest
from namespaces import ROOT, run

WHO = """
import os, socket, sys
import numpy as np
import superpod

comm = superpod.init()
total = np.full(1000, comm.rank + 1, np.float32)
comm.all_reduce(total)
names = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "WORLD_SIZE")
print(socket.gethostname(), total[0], *(os.environ[name] for name in names), *sys.argv[1:])
comm.close()
"""


def expected(sizes, *args):
    world, rank, lines = sum(size for _, size in sizes), 0, []
    for number, (host, size) in enumerate(sizes):
        for local in range(size):
            total = float(world * (world + 1) // 2)
            words = (f"[{rank}@{host}]", host, total, rank, local, size, number, len(sizes), world, *args)
            lines.append(" ".join(map(str, words)))
            rank += 1
    return sorted(lines)


@pytest.mark.parametrize("sizes", [[("a", 2), ("b", 3), ("c", 1)], [("b", 1), ("a", 2)], [("c", 2), ("d", 2)]])
def test_ranks_go_by_hosts_in_the_order_given(cluster, sizes):
    script = cluster.script("who.py", WHO)
    job = cluster("--hosts", ",".join(f"{host}:{size}" for host, size in sizes), script, "--x", "1 2")
    assert (job.code, job.lines) == (0, expected(sizes, "--x", "1 2")), job.err


def test_a_job_that_runs_on_another_host_only(cluster):
    job = cluster("--hosts", "b:2", cluster.script("who.py", WHO))
    assert (job.code, job.lines) == (0, ["[0] b 3.0 0 0 2 0 1 2", "[1] b 3.0 1 1 2 0 1 2"]), job.err


PORTS = """
import os
import superpod

comm = superpod.init()
comm.barrier()
listening = [line.split()[1] for line in open("/proc/net/tcp") if line.split()[3] == "0A"]
ports = sorted(int(place.partition(":")[2], 16) for place in listening if not place.startswith("0100007F"))
print([port for port in ports if port != 22], os.environ["SUPERPOD_PORTS"])
comm.close()
"""


@pytest.mark.parametrize("options", [(), ("--no-encryption",)], ids=["encrypted", "in clear"])
def test_cards_listen_in_the_range_that_a_firewall_allows(cluster, options):
    job = cluster("--hosts", "a,b", "--ports", "29600-29607", *options, cluster.script("ports.py", PORTS))
    assert job.code == 0, job.err
    assert len(job.lines) == 2
    for line in job.lines:
        ports = json.loads(line[line.index(" ") : line.index("]", 5) + 1])
        assert ports, line
        assert all(29600 <= port <= 29607 for port in ports), line


def test_a_hostfile_and_a_number_of_cards(cluster):
    script = cluster.script("who.py", WHO)
    cluster.script("hosts", "# Open MPI's\na slots=2\nb slots=1 max_slots=3\n\nc\n")
    job = cluster("--hostfile", "hosts", "-n", "5", script)
    assert (job.code, job.lines) == (0, expected([("a", 2), ("b", 2), ("c", 1)])), job.err


def test_ipv6_addresses_without_names(cluster):
    script = cluster.script("who.py", WHO)
    job = cluster("-H", "[fd77::1]:1,[fd77::2]:2", script)
    assert job.code == 0, job.err
    assert sorted(line.split("]", 1)[1].split()[0] for line in job.lines) == ["a", "b", "b"]
    assert {line.split()[2] for line in job.lines} == {"6.0"}


@pytest.fixture
def second_network(cluster):
    """Hosts a and b have an interface docker0, too, which leads nowhere."""
    devices = [("-n", cluster.host(name).netns) for name in "ab"]
    for number, where in enumerate(devices, 1):
        run("ip", *where, "link", "add", "docker0", "type", "veth", "peer", "name", "nowhere")
        run("ip", *where, "address", "add", f"10.88.0.{number}/24", "dev", "docker0")
        run("ip", *where, "link", "set", "docker0", "up")
    yield
    for where in devices:
        run("ip", *where, "link", "delete", "docker0")


@pytest.mark.parametrize("choice", ["eth0,^docker0", "^docker", "=eth0,docker0,^docker0"])
def test_interfaces_are_chosen_as_nccl_has_it(cluster, second_network, choice):
    script = cluster.script(
        "where.py", "import os, superpod\nsuperpod.init().barrier()\nprint(os.environ['SUPERPOD_ADDRESS'])"
    )
    job = cluster("--hosts", "a,b", "--interface", choice, script)
    assert (job.code, job.lines) == (0, ["[0@a] 10.77.0.1", "[1@b] 10.77.0.2"]), job.err


def test_the_interface_that_was_chosen_counts(cluster, second_network):
    """Though it is not the way to the others."""
    script = cluster.script("where.py", "import os, superpod\nprint(os.environ['SUPERPOD_ADDRESS'])")
    job = cluster("--hosts", "a,b", "--interface", "docker0", script)
    assert (job.code, job.lines) == (0, ["[0@a] 10.88.0.1", "[1@b] 10.88.0.2"]), job.err


def test_environment_and_folder_travel(cluster):
    (cluster.folder / "sub").mkdir()
    cluster.script(
        "sub/env.py",
        """
        import os
        print(os.getcwd().rpartition("/")[2], os.environ["GIVEN"], os.environ["TAKEN"], os.environ["SUPERPOD_SEGMENT"],
              os.environ.get("STAYS"), os.environ["SUPERPOD_SECRET"] not in open("/proc/self/cmdline").read())
    """,
    )
    job = cluster(
        "--hosts", "a,b", "--workdir", "sub", "-x", "GIVEN=1 2", "-x", "TAKEN", "env.py",
        env={"TAKEN": "t", "SUPERPOD_SEGMENT": "64K"},
    )  # fmt: skip
    assert (job.code, job.lines) == (0, ["[0@a] sub 1 2 t 64K None True", "[1@b] sub 1 2 t 64K None True"]), job.err


def test_torch_on_several_hosts_meets_in_a_store_that_is_nowhere_open(cluster):
    script = cluster.script(
        "torch_job.py",
        """
        import os
        import torch
        import torch.distributed as dist

        dist.init_process_group("superpod")
        x = torch.full((1000,), float(dist.get_rank()))
        dist.all_reduce(x)
        everybody = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, (os.environ["MASTER_ADDR"], dist.get_rank()))
        group = dist.new_group([1, 2])
        if dist.get_rank() in (1, 2):
            dist.all_reduce(x, group=group)
        print(x[0].item(), everybody[-1])
        dist.destroy_process_group()
    """,
    )
    job = cluster("--hosts", "a:2,b:2", script)
    assert job.code == 0, job.err
    sums = [6.0, 12.0, 12.0, 6.0]
    hosts = "aabb"
    assert job.lines == [f"[{r}@{hosts[r]}] {sums[r]} ('127.0.0.1', 3)" for r in range(4)]


def test_log_files_and_summary_are_where_the_launcher_is(cluster):
    script = cluster.script(
        "say.py",
        """
        import os, sys
        import superpod
        superpod.init().barrier()
        print("out", os.environ["RANK"])
        print("x" * 300000, file=sys.stderr)
    """,
    )
    job = cluster("--hosts", "a,b:2", "--log-dir", "logs", "-r", "2", "--summary-json", "s.json", script)
    assert (job.code, job.err, len(job.lines)) == (0, "", 3)
    logs = {f.name: f.read_text() for f in (cluster.folder / "logs").glob("*err")}
    assert sorted(logs) == [f"rank{r}.stderr" for r in range(3)]
    for text in logs.values():
        assert text.endswith("x" * 300000 + "\n"), text[:500]
    assert json.loads((cluster.folder / "s.json").read_text())["world_size"] == 3


REFUSED = [
    (["--hosts", "a,nowhere", "ok.py"], "host nowhere cannot take part: ssh: Could not resolve hostname nowhere"),
    (["--hosts", "a,10.77.0.99", "--ssh", "{ssh} -o ConnectTimeout=1", "ok.py"], "host 10.77.0.99 cannot take part: "),
    (["--hosts", "a,b", "--python", "/no/python", "ok.py"], "host b cannot take part: its agent exited with code 12"),
    (["--hosts", "a,b", "--ssh", "no-such-command", "ok.py"], "ssh command 'no-such-command' cannot be started: No"),
    (["--hosts", "a,localhost", "ok.py"], "hosts a, localhost are all this host, which must be named once; add up its"),
    (["--hosts", "a,b", "--interface", "wlan7", "ok.py"], "interface='wlan7' fits none of this host's: "),
]  # fmt: skip


@pytest.mark.parametrize(("args", "message"), REFUSED, ids=lambda value: value[1] if isinstance(value, list) else "")
def test_what_cannot_be_is_refused_before_anything_starts(cluster, args, message):
    cluster.script("ok.py", "print('started')\n")
    job = cluster(*(arg.format(ssh=cluster.hosts.ssh) for arg in args))
    assert (job.code, job.out) == (2, ""), job.err
    assert message in job.err


OTHER_PYTHON = """
from superpod.launcher import far
from superpod.launcher.remote import main

far.facts = lambda: {"python": "3.10.1", "superpod": "0.0.1", "torch": "2.6.0+cu124"}
main()
"""


def test_hosts_that_differ_are_shown_in_a_table(cluster):
    cluster.script("ok.py", "print('started')\n")
    script = cluster.script("other_python.py", OTHER_PYTHON)
    fake = cluster.script("python", f"#!/bin/sh\nexec {sys.executable} {script}\n")
    fake.chmod(0o755)
    job = cluster("--hosts", "a,b", "--python", fake, "ok.py")
    assert (job.code, job.out) == (2, "")
    head, columns, here, there = job.err.splitlines()
    assert head.startswith("superpod-run: the hosts must have the same python and superpod and torch; install it, or")
    assert columns.split() == ["host", "python", "superpod", "torch"]
    assert here.split()[0] == "a"
    assert there.split() == ["b", "3.10.1", "0.0.1", "2.6.0+cu124"]


@pytest.mark.slow
def test_64_cards_on_4_hosts_train_to_the_loss_of_64_on_one(cluster):
    pytest.importorskip("sklearn")
    digits = ROOT / "examples/train_digits.py"
    for where, name in ((("-n", 64), "one"), (("--hosts", "a:16,b:16,c:16,d:16"), "four")):
        job = cluster(*where, digits, "--epochs", 5, "--require", 0.5, "--json", cluster.folder / name)
        assert job.code == 0, job.err
    on_one, on_four = (json.loads((cluster.folder / name).read_text()) for name in ("one", "four"))
    assert (on_one["world_size"], on_four["world_size"], len(on_four["losses"])) == (64, 64, 15)
    assert on_four["losses"][0] > 2 > on_four["losses"][-1]
    assert on_four["losses"] == pytest.approx(on_one["losses"], rel=1e-4)  # sums in another order
