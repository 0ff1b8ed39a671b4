"""Nodes that come by themselves, in torchrun's options and variables and in Slurm's: understood, or refused."""

from __future__ import annotations

import argparse
import os

import pytest

from superpod.interconnect.env_nodes import NodeVariables, SlurmStep
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.hosts_text import host_and_port
from superpod.launcher import host_options, slurm
from superpod.launcher.nodes import NodeSpec, node_spec, shares

SECRET = "ab" * 32


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7],m", ["n1", "n2", "n3", "n7", "m"]),
        ("n[08-10]", ["n08", "n09", "n10"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
    ],
)
def test_slurms_nodes(text, found):
    assert slurm.node_names(text) == found


@pytest.mark.parametrize("text", ["n[1", "n[1-x]", "n[]", "a,n[1-]", "n[1]m[x]", ""])
def test_slurms_nodes_refused(text):
    with pytest.raises(InvalidValue, match=r"SLURM_STEP_NODELIST='.*' must be names of nodes, such as n\[1-3,7\]"):
        slurm.node_names(text)


@pytest.mark.parametrize("text", ["n[1-99999999999]", "m[1-1000]-[1-1000]"])
def test_a_list_of_more_nodes_than_slurm_has_is_refused_before_it_is_written_out(text):
    with pytest.raises(InvalidValue, match="must be at most 65536 nodes; start with srun"):
        slurm.node_names(text)


STEP = {
    "SLURM_PROCID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
}


def test_a_step_is_what_srun_sets():
    assert SlurmStep.read(STEP) == SlurmStep(1, 4, "7", "0", "n[1-2]")
    assert SlurmStep.read({**STEP, "SLURM_STEP_NUM_TASKS": "2"}) == SlurmStep(1, 2, "7", "0", "n[1-2]")
    assert SlurmStep.read({}) is None


@pytest.mark.parametrize("changed", [{"SLURM_STEP_NODELIST": ""}, {"SLURM_STEP_ID": "batch"}, {"SLURM_PROCID": ""}])
def test_a_shell_of_sbatch_is_no_step(changed):
    assert SlurmStep.read({**STEP, **changed}) is None


def test_tasks_of_a_step_agree_on_where_to_meet(monkeypatch):
    monkeypatch.setattr(slurm, "address_of", lambda node: f"address of {node}")
    specs = [
        slurm.step_spec(SlurmStep(task, 3, "7", "0", "n[1-3]"), total=8, each=1, secret=SECRET, encrypt=True)
        for task in range(3)
    ]
    assert [spec.cards for spec in specs] == [3, 3, 2]
    assert {host for spec in specs[1:] for host, _ in spec.endpoints} == {"address of n1"}
    ports = [[port for _, port in spec.endpoints] for spec in specs]
    assert ports[0] == ports[1] == ports[2]
    assert len(set(ports[0])) == 8


def test_a_step_without_munge_or_secret_is_refused(monkeypatch):
    monkeypatch.setattr(slurm, "has_munge", lambda: False)
    with pytest.raises(
        InvalidValue, match=r"a step of 2 tasks must have a secret, .* export SUPERPOD_SECRET=\$\(openssl"
    ):
        slurm.step_spec(SlurmStep(0, 2, "7", "0", "n1"), total=None, each=1, secret="", encrypt=True)


NODE = {
    "nnodes": "3", "node_rank": "1", "endpoint": "a:29500", "backend": "", "job": "", "secret": SECRET,
    "total": None, "each": 4, "encrypt": True,
}  # fmt: skip


def test_a_node():
    spec = node_spec(**NODE)
    assert (spec.count, spec.rank, spec.cards, spec.endpoints) == (3, 1, 4, (("a", 29500),))
    assert spec.to_connect() == ["tcp://a:29500"]
    assert node_spec(**{**NODE, "endpoint": "[fd00::1]"}).to_connect() == ["tcp://[fd00::1]:29400"]
    assert [node_spec(**{**NODE, "total": 8, "node_rank": str(r)}).cards for r in range(3)] == [3, 3, 2]
    assert node_spec(**{**NODE, "secret": "", "encrypt": False}).secret is None
    assert node_spec(**{**NODE, "secret": "", "endpoint": "127.0.0.1:1"}).secret is None
    assert NodeSpec(2, 0, 1, (("127.0.0.1", 7),)).to_listen() == ["tcp://127.0.0.1:7"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nnodes": "1:4"}, r"--nnodes 1:4 must be one number, 1 or more: jobs of varying size are not supported"),
        (
            {"node_rank": ""},
            r"--node-rank \(none\) must be this node's number, from 0 to 2; node 0 is the one at the end",
        ),
        ({"node_rank": "3"}, r"--node-rank 3 must lie between 0 and 2: there are 3 nodes"),
        ({"endpoint": ""}, r"--rdzv-endpoint HOST\[:PORT\] must say where node 0 is reached by the others"),
        ({"endpoint": "a:b:c"}, r"endpoint 'a:b:c' must be host:port, such as node0:29400 or \[fd00::1\]:29400"),
        ({"backend": "etcd"}, r"--rdzv-backend etcd must be c10d or static: nodes meet at node 0"),
        (
            {"secret": ""},
            r"a job of 3 nodes at a must have a secret, or anybody there could join it: set SUPERPOD_SECRET",
        ),
        ({"secret": "short"}, r"secret of 5 characters must be 64 hexadecimal digits"),
        ({"total": 2}, r"-n 2 must be at least 3: every node gets a card; start fewer nodes"),
        ({"each": 0}, r"nproc_per_node=0 must be at least 1; give every node a card"),
    ],
)
def test_a_node_refused(changed, message):
    with pytest.raises(InvalidValue, match=message):
        node_spec(**{**NODE, **changed})


def test_shares_are_even():
    assert shares(10, 4) == [3, 3, 2, 2]
    assert shares(4, 4) == [1, 1, 1, 1]


def test_endpoints():
    assert host_and_port("a", 5) == ("a", 5)
    assert host_and_port("[::1]:7", 5) == ("::1", 7)
    with pytest.raises(InvalidValue, match=r"endpoint 'a:70000' must be host:port"):
        host_and_port("a:70000", 5)


def test_torchruns_variables():
    assert NodeVariables.read({"PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "7"}).endpoint == "a:7"
    six = {"PET_MASTER_ADDR": "fd00::1", "PET_MASTER_PORT": "7"}
    assert NodeVariables.read(six).endpoint == "[fd00::1]:7"
    assert NodeVariables.read({**six, "PET_MASTER_ADDR": "[fd00::1]"}).endpoint == "[fd00::1]:7"
    assert host_and_port(NodeVariables.read({"PET_MASTER_ADDR": "fd00::1"}).endpoint, 5) == ("fd00::1", 5)
    assert NodeVariables.read({"PET_MASTER_PORT": "7"}).endpoint == ""
    both = {"PET_RDZV_ENDPOINT": "b:8", "PET_MASTER_ADDR": "a", "PET_MASTER_PORT": "7", "PET_NNODES": "2"}
    assert (NodeVariables.read(both).endpoint, NodeVariables.read(both).nnodes) == ("b:8", "2")


def test_a_card_for_each_processor(nodes, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert nodes(*AT_A, "--nproc-per-node", "auto").cards == 6
    monkeypatch.setenv("PET_NPROC_PER_NODE", "cpu")
    assert nodes(*AT_A).cards == 6


def test_no_number_of_cards(nodes, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        nodes("--nproc-per-node", "gpu")
    assert "'gpu' must be a whole number, such as 4, or auto or cpu: one card a processor" in capsys.readouterr().err
    monkeypatch.setenv("PET_NPROC_PER_NODE", "gpu")
    with pytest.raises(InvalidValue, match=r"PET_NPROC_PER_NODE='gpu': must be a whole number, such as 4, or auto"):
        nodes(*AT_A)


@pytest.fixture
def nodes(monkeypatch):
    """`nodes(*args)` is the node that these options name, in an environment that says nothing of nodes."""
    for name in os.environ:
        if name.startswith(("PET_", "SLURM_", "SUPERPOD_")):
            monkeypatch.delenv(name)
    cli = argparse.ArgumentParser()
    for add in (host_options.add_cards, host_options.add_hosts, host_options.add_nodes):
        add(cli)
    return lambda *args: host_options.nodes_from(cli.parse_args(args))


TWO = ["--nnodes", "2", "--node-rank", "0", "--no-encryption"]
AT_A = [*TWO, "--master-addr", "a"]


def test_nodes_meet_where_the_options_say(nodes):
    assert nodes(*AT_A, "--master-port", "7").endpoints == (("a", 7),)
    assert nodes(*TWO, "--master-addr", "fd00::1").endpoints == (("fd00::1", 29400),)
    assert nodes(*TWO, "--master-addr", "[fd00::1]", "--master-port", "7").endpoints == (("fd00::1", 7),)
    assert nodes(*AT_A, "-n", "4", "--nproc-per-node", "2").cards == 2
    assert nodes("--nnodes", "1", "--node-rank", "0", "--master-addr", "a", "--master-port", "7") is None
    assert nodes("--standalone", "--rdzv-endpoint", "a:7") is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*TWO, "--master-port", "7"], r"--master-port 7 must go with --master-addr HOST; add it, or say --rdzv-end"),
        ([*AT_A, "-n", "8", "--nproc-per-node", "2"], r"-n 8 must be 4: 2 nodes with --nproc-per-node 2; give one of"),
        ([*AT_A, "--nproc-per-node", "0"], r"nproc_per_node=0 must be at least 1; give every node a card"),
        (
            ["--node-rank", "1"],
            r"--node-rank 1 must be 0 with one node; say on all nodes how many there are: --nnodes N",
        ),
        (["--standalone", "--node-rank", "1"], r"--node-rank 1 must be 0 with one node"),
        (
            ["--hosts", "a", "--node-rank", "0"],
            r"--node-rank 0 must not go with --hosts or --hostfile, which start the",
        ),
        (["--hosts", "a", "--master-addr", "b"], r"--master-addr b must not go with --hosts or --hostfile"),
        (["--hostfile", "f", "--rdzv-id", "b"], r"--rdzv-id b must not go with --hosts or --hostfile"),
        (["--hosts", "a", "--nnodes", "2"], r"--nnodes 2 must not go with --standalone or --hosts, which say it, too"),
    ],
)
def test_options_of_nodes_refused(nodes, args, message):
    with pytest.raises(InvalidValue, match=message):
        nodes(*args)


def test_a_step_has_as_many_cards_as_its_tasks(nodes, monkeypatch):
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidValue, match=r"-n 9 must be 8: 4 nodes with --nproc-per-node 2; give one of them"):
        nodes("-n", "9", "--nproc-per-node", "2", "--no-encryption")


def test_a_job_that_a_card_starts_is_not_its_own_one(nodes, monkeypatch):
    for name, value in {**STEP, "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_RDZV_ENDPOINT": "a:7"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SUPERPOD_DIR", "/run/superpod-x")
    assert nodes("-n", "2") is None
    assert nodes(*AT_A).rank == 0
