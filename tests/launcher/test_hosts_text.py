"""Hosts as text: what is understood, and what is refused with which words."""

from __future__ import annotations

import argparse

import pytest

from superpod.interconnect.errors import InvalidValue
from superpod.launcher import host_options, hosts
from superpod.launcher.facts import differences
from superpod.launcher.hosts import Host, parse_hosts, read_hostfile, spread
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
