"""Hosts, nodes and Slurm's short forms as text: what is understood, and what is refused with which words."""

from __future__ import annotations

import argparse
import os

import pytest

from superpod.interconnect.env_nodes import NodeVariables, SlurmStep
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.hosts_text import host_and_port
from superpod.launcher import host_options, hosts, slurm
from superpod.launcher.facts import differences
from superpod.launcher.hosts import Host, parse_hosts, read_hostfile, spread
from superpod.launcher.nodes import NodeSpec, node_spec, shares
from superpod.launcher.reach import Reach, exports, shell_words

SECRET = "ab" * 32


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a:8,b:8,c:4", [("a", 8), ("b", 8), ("c", 4)]),
        ("a", [("a", 1)]),
        ("a:2, b ,a:1", [("a", 3), ("b", 1)]),
        ("user@a:2,[fe80::1%eth0]:4,u@[::1]", [("user@a", 2), ("fe80::1%eth0", 4), ("u@::1", 1)]),
        ("fd77::1,10.0.0.1:3", [("fd77::1", 1), ("10.0.0.1", 3)]),
    ],
)
def test_hosts(text, found):
    assert [(host.name, host.cards) for host in parse_hosts(text)] == found


@pytest.mark.parametrize("text", ["", "a:", "a:0", "a:x", "a:1:2", "a,,b", "-oProxyCommand=x", "a b:1", "[::1:2"])
def test_hosts_refused(text):
    with pytest.raises(
        InvalidValue, match=r"host '.*' in --hosts '.*' must be a name or an address, and after a colon"
    ):
        parse_hosts(text)


def test_a_hostfile(tmp_path):
    file = tmp_path / "hosts"
    file.write_text(
        "# all\na slots=4 # fast\nb slots = 2 max_slots=4\n\nc user=me\nb slots=1 max_slots=1\nd max-slots=3\n"
    )
    expected = (Host("a", 4), Host("b", 3, 5), Host("me@c", 1), Host("d", 1, 3))
    assert read_hostfile(file) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"hostfile .* names no host; write one a line, such as: node1 slots=8"),
        (
            "a slots=x",
            r"hostfile .*, line 1: 'a slots=x' must be a host, then slots=N, max_slots=N or user=NAME, with N 1",
        ),
        ("a\nb slots=0", r"line 2: 'b slots=0' must be a host"),
        ("a colour=red", r"line 1: 'a colour=red' must be a host"),
        ("slots=3", r"line 1: 'slots=3' must begin with a host's name, and max_slots not be less than slots"),
        (
            "a slots=3 max_slots=2",
            r"line 1: 'a slots=3 max_slots=2' must begin with a host's name, and max_slots not be",
        ),
    ],
)
def test_a_hostfile_refused(tmp_path, text, message):
    file = tmp_path / "hosts"
    file.write_text(text)
    with pytest.raises(InvalidValue, match=message):
        read_hostfile(file)
    with pytest.raises(InvalidValue, match=r"hostfile /gone must be a text file that can be read"):
        read_hostfile(type(file)("/gone"))


AB = (Host("a", 2, 4), Host("b", 3), Host("c", 1, 2))


@pytest.mark.parametrize(
    ("total", "each", "found"),
    [
        (None, None, {"a": 2, "b": 3, "c": 1}),
        (1, None, {"a": 1}),
        (4, None, {"a": 2, "b": 2}),
        (6, None, {"a": 2, "b": 3, "c": 1}),
        (8, None, {"a": 4, "b": 3, "c": 1}),
        (9, None, {"a": 4, "b": 3, "c": 2}),
        (None, 2, {"a": 2, "b": 2, "c": 2}),
        (6, 2, {"a": 2, "b": 2, "c": 2}),
    ],
)
def test_cards_over_hosts(total, each, found):
    assert {host.name: host.cards for host in spread(AB, total, each)} == found


@pytest.mark.parametrize(
    ("total", "each", "message"),
    [
        (10, None, r"-n 10 must be at least 1 and at most 9: that is the room on a:2, b:3, c:1; give hosts more slots"),
        (0, None, r"-n 0 must be at least 1"),
        (None, 5, r"--nproc-per-node 5 must be at least 1 and fit on every host: host a has max_slots=4"),
        (None, 0, r"--nproc-per-node 0 must be at least 1"),
        (5, 2, r"-n 5 must be 6: that is the room on a:2, b:2, c:2"),
    ],
)
def test_cards_over_hosts_refused(total, each, message):
    with pytest.raises(InvalidValue, match=message):
        spread(AB, total, each)


def test_this_host_is_known_without_a_look_up(monkeypatch):
    monkeypatch.setattr(hosts.socket, "gethostname", lambda: "node7.cluster")
    here = ["localhost", "node7", "node7.cluster", "127.0.0.1", "127.9.9.9"]
    assert all(Host(name, 1).is_here() for name in here)
    assert not any(Host(name, 1).is_here() for name in ["node8", "me@node7", "192.0.2.1", "0.0.0.0", "2001:db8::1"])


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


def test_exports():
    assert exports(["A", "B=x=y", "C="], {"A": "1"}) == {"A": "1", "B": "x=y", "C": ""}
    with pytest.raises(
        InvalidValue, match=r"-x D: there is no variable of that name here; set it, or write -x D=value"
    ):
        exports(["D"], {})
    with pytest.raises(InvalidValue, match=r"-x 1A=2 must be NAME or NAME=value, with a name of letters"):
        exports(["1A=2"], {})


@pytest.mark.parametrize("name", ["RANK", "MASTER_PORT", "SUPERPOD_DIR", "SUPERPOD_SECRET"])
def test_what_the_launcher_tells_every_card_is_not_for_export(name):
    with pytest.raises(InvalidValue, match=f"-x {name}=7 must not name what superpod-run itself tells every card"):
        exports([f"{name}=7"], {})
    assert exports(["OMP_NUM_THREADS=7"], {}) == {"OMP_NUM_THREADS": "7"}


def test_the_command_that_ssh_gets():
    reach = Reach(ssh=shell_words("ssh -p 2222"), python="/opt/a b/python")
    command = reach.command("u@a", "m.n", "/x y")
    assert command[:3] == ["ssh", "-p", "2222"]
    assert {"BatchMode=yes", "-T"} <= set(command)
    assert command[-3:-1] == ["--", "u@a"]
    assert command[-1] == "exec env 'PYTHONPATH=/x y' '/opt/a b/python' -u -m m.n"
    assert Reach(ssh=("rsh",)).command("a", "m", "")[:2] == ["rsh", "a"]  # ssh's options are for ssh


@pytest.mark.parametrize(
    ("text", "message"), [("", r"--ssh '' must be a command"), ("a 'b", r"--ssh \"a 'b\" must be a")]
)
def test_ssh_commands_refused(text, message):
    with pytest.raises(InvalidValue, match=message):
        shell_words(text)


def test_a_timeout_below_a_second_is_refused():
    with pytest.raises(InvalidValue, match=r"--host-timeout 0.5 must be 1 second or more, for a busy host speaks late"):
        Reach(silence=0.5)


def test_what_differs_between_hosts():
    same = {"python": "3.11.7", "superpod": "0.3", "torch": "2.13.0"}
    assert differences({"a": same, "b": {**same, "python": "3.11.9", "torch": "2.13.0+cpu"}}) == ""
    table = differences({"a": same, "bb": {**same, "torch": "2.6.0"}}).splitlines()
    assert table == [
        "the hosts must have the same torch; install it, or name another Python by --python:",
        "  host  python  superpod  torch",
        "  a     3.11.7  0.3       2.13.0",
        "  bb    3.11.7  0.3       2.6.0",
    ]


OPTIONS = [
    (
        ["-n", "2", "--nproc-per-node", "3"],
        r"-n 2 and --nproc-per-node 3 must be the same on one host; give one of them",
    ),
    (["--hosts", "a", "--hostfile", "f"], r"--hosts a and --hostfile f must not both be given"),
]


@pytest.mark.parametrize(("args", "message"), OPTIONS)
def test_options_refused(args, message):
    cli = argparse.ArgumentParser()
    host_options.add_cards(cli)
    host_options.add_hosts(cli)
    with pytest.raises(InvalidValue, match=message):
        host_options.cards_from(cli.parse_args(args))


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
