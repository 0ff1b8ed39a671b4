"""superpod-bench between hosts, and superpod-bench namespaces, which makes hosts: what they measure, and leave."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from namespaces import why_not

from superpod.benchmarks import namespaces, peers
from superpod.interconnect.errors import InvalidValue

BENCH = (sys.executable, "-m", "superpod.benchmarks.cli")
QUICK = ("--turns", "1", "--budget", "20ms", "--iters", "3", "-w", "1")


@pytest.mark.slow
def test_all_programs_in_one_run(cluster):
    """Open MPI too, if it is there; encrypted and in clear, with an algorithm of one's own choice."""
    others = [peer for peer in ("gloo", "openmpi") if peer == "gloo" or (peers.HOME / peer).exists()]
    file = cluster.folder / "r.json"
    what = ("all_reduce,barrier", "--hosts", "a:2,b:1", "-b", "8", "-e", "96K", "-f", "12288", "-J", file)
    how = ("--peers", ",".join(others), "--encryption", "on,off", "--algorithm", "auto")
    ended = cluster(*what, *how, *QUICK, command=BENCH)
    assert ended.code == 0, ended.err
    rows = json.loads(file.read_text())["rows"]
    ours = ["superpod", "superpod-torch", "superpod clear", "superpod-torch clear"]
    assert [row["player"] for row in rows] == [*ours, *others] * 3
    assert all(row["wrong"] == 0 and row["hosts"] == "2+1" and row["median_us"] > 0 for row in rows)
    assert all(("encryption_ratio" in row) == (row["player"] in ours[:2]) for row in rows)


@pytest.mark.slow
def test_an_algorithm_is_a_series(cluster):
    """From a host that takes no part, on an interface that is named, without a peer."""
    file = cluster.folder / "r.json"
    what = ("all_reduce", "--hosts", "b:1,c:2", "--interface", "eth0", "-b", "1K", "-e", "1K", "-J", file)
    ended = cluster(*what, "--algorithm", "auto,ring,tree", *QUICK, command=BENCH)
    assert ended.code == 0, ended.err
    rows = json.loads(file.read_text())["rows"]
    assert [(row["player"], row["algorithm"]) for row in rows] == [
        ("superpod", "auto"),
        ("superpod:ring", "ring"),
        ("superpod:tree", "tree"),
    ]


def test_a_host_that_is_not_there(cluster):
    ended = cluster("barrier", "--hosts", "a:1,10.77.0.99:1", *QUICK, command=BENCH)
    assert ended.code == 1
    assert "superpod: 0 of 2 ranks came" in ended.err


@pytest.fixture
def hosts_here(tmp_path):
    """`start(count, *command)`: superpod-bench namespaces. Afterwards nothing of it may be left."""
    if reason := why_not():
        pytest.skip(f"no hosts here: {reason}")
    started = []

    def start(*arguments):
        command = [*BENCH, "namespaces", *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
    tags = tuple(f"sp{process.pid % 100000:x}" for process in started)
    end = time.monotonic() + 20
    while (left := left_of(tags)) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []


def left_of(tags):
    """Namespaces and links whose names begin so."""
    names = namespaces.run("ip", "netns", "list").split()
    names += [line.split(": ")[1] for line in namespaces.run("ip", "-o", "link").splitlines()]
    return [name for name in names if name.startswith(tags)]


def test_a_command_on_hosts_made_for_it(hosts_here, tmp_path):
    script = "hostname; pwd; $SUPERPOD_SSH b 'hostname; echo from ${SSH_CONNECTION%% *}'; exit 7"
    process = hosts_here(2, "--", "sh", "-c", script)
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == (f"a\n{tmp_path}\nb\nfrom 10.77.0.1\n", "", 7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_whatever_ends_it(hosts_here, number):
    """Not even what has been started on another host and made a session of its own."""
    script = "$SUPERPOD_SSH b 'setsid sleep 1000 >/dev/null 2>&1 & echo $!'; echo $SUPERPOD_SSH; exec sleep 1000"
    process = hosts_here(2, "--", "sh", "-c", script)
    other = os.pidfd_open(int(process.stdout.readline()))
    folder = Path(process.stdout.readline().split()[-1]).parent
    assert folder.exists()
    process.send_signal(number)
    if number == signal.SIGINT:  # the terminal's goes to the command, too, and who made the hosts waits for that
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
    process.wait(30)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + signal.SIGTERM)
    assert ended(other)
    end = time.monotonic() + 20
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not folder.exists()


def ended(descriptor):
    """Whether a process ends within some seconds."""
    ready, _, _ = select.select([descriptor], [], [], 20)
    os.close(descriptor)
    return bool(ready)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0", "--", "x"], "namespaces 0 must be a number of hosts from 1 to 26"),
        (["27", "--", "x"], "namespaces 27 must be"),
        (["2"], "namespaces 2 needs a command to run there"),
        (["2", "--"], "namespaces 2 needs a command to run there"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InvalidValue, match=message):
        namespaces.main(arguments)


def test_who_is_not_root_is_told(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InvalidValue, match="there can be no hosts here: network namespaces need root"):
        namespaces.main(["2", "--", "true"])
