"""Before a job of several nodes or tasks is one: who is late, who does not fit, who is a stranger."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
import time

import pytest
from launched_jobs import wait_for_line

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_agents import AgentCall
from superpod.launcher import gather, munge, node_crew
from superpod.launcher.far import muster
from superpod.launcher.gather import Gathering, Interrupted
from superpod.launcher.job import JobSpec
from superpod.launcher.line import PipeLine
from superpod.launcher.node_line import AgentLine
from superpod.launcher.nodes import NodeSpec
from superpod.launcher.pipes import Drain
from superpod.launcher.remote_agent import RemoteAgent
from superpod.launcher.signals import SignalInbox

DEADLINE = 10  # seconds


@pytest.fixture
def spec(tmp_path):
    script = tmp_path / "x.py"
    script.write_text("")
    return JobSpec(str(script), world_size=1)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def call(spec, nodes, signalled=0):
    with selectors.DefaultSelector() as selector, SignalInbox().installed() as inbox:
        if signalled:
            threading.Timer(0.2, os.kill, (os.getpid(), signalled)).start()
        node_crew.call_nodes(spec, nodes, selector, inbox).close()


def test_nodes_that_do_not_join_are_named(spec, monkeypatch):
    monkeypatch.setattr(node_crew, "JOIN_WITHIN", 0.2)
    nodes = NodeSpec(3, 0, 1, (("127.0.0.1", free_port()),), JobSecret.new())
    with pytest.raises(InvalidValue, match=r"nodes 1, 2 of 3 have not joined within 0 s; see their output"):
        call(spec, nodes)


def test_a_signal_ends_the_waiting_for_nodes(spec):
    nodes = NodeSpec(2, 0, 1, (("127.0.0.1", free_port()),), JobSecret.new())
    with pytest.raises(Interrupted, match="ended by SIGTERM"):
        call(spec, nodes, signalled=signal.SIGTERM)


def test_sigusr1_says_which_nodes_are_awaited(spec, monkeypatch, capsys):
    monkeypatch.setattr(node_crew, "JOIN_WITHIN", 0.5)
    nodes = NodeSpec(3, 0, 1, (("127.0.0.1", free_port()),), JobSecret.new())
    with pytest.raises(InvalidValue, match="have not joined"):
        call(spec, nodes, signalled=signal.SIGUSR1)
    assert capsys.readouterr().err == "superpod-run: waiting for nodes 1, 2 of 3 to join\n"


class SilentHost:
    """A host that was reached, and does not answer."""

    def __init__(self, line, selector):
        self.line, self.drain = line, Drain(selector, line, lambda held: None)

    def why(self):
        return "it has gone"

    def close(self, *, kill=False):
        self.drain.close()
        self.line.close()


@pytest.fixture
def silent():
    """A silent host, the line's other end, and the selector that it is registered in."""
    there, back = os.pipe(), os.pipe()
    other = PipeLine(there[0], back[1])
    with selectors.DefaultSelector() as selector:
        host = SilentHost(PipeLine(back[0], there[1]), selector)
        yield host, other, selector
        host.close()
    other.close()


def test_sigusr1_says_which_hosts_are_awaited(silent, monkeypatch, capsys):
    host, _, selector = silent
    monkeypatch.setattr(gather, "_ANSWER_WITHIN", 0.5)
    with SignalInbox().installed() as inbox:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(InvalidValue, match="host b cannot take part: it has not answered within"):
            Gathering({"b": host}, selector, inbox).ask({"do": "muster"})
    assert capsys.readouterr().err == "superpod-run: waiting for hosts b to answer\n"


def test_a_line_that_was_written_is_watched_no_more(silent):
    host, other, selector = silent
    agent = RemoteAgent(host, 60.0, selector, lambda event: None)
    agent.obey({"do": "x", "data": b"x" * (1 << 20)})
    assert host.line.waits_for() is not None
    taken = []
    end = time.monotonic() + DEADLINE
    while not taken and time.monotonic() < end:
        for key, _ in selector.select(0.05):
            key.data()
        taken += other.receive()
    agent.mind()
    assert (len(taken), host.line.waits_for(), selector.select(0)) == (1, None, [])
    agent.close()


def test_what_has_arrived_counts_before_silence(silent):
    host, other, selector = silent
    told = []
    agent = RemoteAgent(host, 0.01, selector, told.append)
    other.send({"event": "idle"})
    time.sleep(0.05)  # the head was busy elsewhere
    agent.mind()
    assert (agent.lost, told) == (False, [{"event": "idle"}])
    time.sleep(0.05)
    agent.mind()
    assert agent.lost
    assert "nothing has been heard of it" in told[1]["text"]
    agent.close()


ENDED = """
import os, signal, sys, time
import superpod

def end(signum, frame):
    os.write(1, b"handler ran\\n")  # print may be under way
    sys.exit(0)

comm = superpod.init()
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_signal_to_one_node_ends_the_job_with_grace(launch):
    launch.script("ended.py", ENDED)
    place = ("--nnodes", 2, "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--node-rank")
    head, node = (launch.start(*place, rank, "ended.py") for rank in (0, 1))
    for line in ("ready", "ready"):
        wait_for_line(head.stdout, line)
    node.send_signal(signal.SIGTERM)
    ended, other = launch.finish(head), launch.finish(node)
    assert (ended.code, other.code) == (143, 143), ended.err + other.err
    assert ended.out.count("handler ran") == 2
    assert "got SIGTERM; ending the cards" in ended.err


def introduced(port, secret, **changed):
    """A thread that joins as a node, and what it was told."""
    told = []

    def join():
        line = AgentLine(AgentCall([f"tcp://127.0.0.1:{port}"], secret))
        facts = {"python": "3.11.7", "superpod": "x", "torch": "y"}
        join = {"event": "join", "node": 1, "count": 2, "cards": 1, "host": "b", "address": "127.0.0.1", "facts": facts}
        line.send({**join, **changed})
        end = time.monotonic() + DEADLINE
        while not told and time.monotonic() < end:
            told.extend(line.receive())
            time.sleep(0.01)
        line.send({"event": "bye"})
        line.close()

    thread = threading.Thread(target=join)
    thread.start()
    return thread, told


def test_nodes_that_differ_are_refused_on_both_sides(spec):
    secret, port = JobSecret.new(), free_port()
    thread, told = introduced(port, secret)
    with pytest.raises(InvalidValue, match=r"the hosts must have the same .*superpod and torch; install it") as refused:
        call(spec, NodeSpec(2, 0, 1, (("127.0.0.1", port),), secret))
    thread.join(DEADLINE)
    assert "  b (node 1)" in str(refused.value)
    assert told[0]["do"] == "refuse"
    assert "b (node 1)" in told[0]["why"]


def test_a_node_in_trouble_is_named(spec):
    secret, port = JobSecret.new(), free_port()
    thread, _ = introduced(port, secret, trouble="there is no script")
    with pytest.raises(InvalidValue, match=r"node 1 \(host b\) cannot take part: there is no script"):
        call(spec, NodeSpec(2, 0, 1, (("127.0.0.1", port),), secret))
    thread.join(DEADLINE)


def test_an_endpoint_that_is_taken_is_refused(spec):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        nodes = NodeSpec(2, 0, 1, (("127.0.0.1", holder.getsockname()[1]),), JobSecret.new())
        with pytest.raises(InvalidValue, match=r"the agents' endpoint tcp://127.0.0.1:\d+ must be free on this host"):
            call(spec, nodes)


def test_what_is_in_the_way_on_another_host(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    order = {"do": "muster", "environment": {}, "kind": "script", "target": "gone.py", "workdir": str(tmp_path)}
    assert "script gone.py does not exist; looked for it in" in muster(order)["trouble"]
    gone = muster({**order, "workdir": "/gone"})["trouble"]
    assert gone == "directory /gone must be there: No such file or directory; name another with --workdir"


def test_task_0_that_never_comes(monkeypatch):
    monkeypatch.setattr(munge, "_AGAIN", 0.01)
    with pytest.raises(
        InvalidValue, match=r"task 0 of slurm-7.0 has not been there at 127.0.0.1 within 0 s; see its ou"
    ):
        munge.fetch([("127.0.0.1", free_port())], "slurm-7.0", 0.1)


def test_ports_that_are_all_taken():
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(InvalidValue, match=rf"one of the ports {port} to {port} must be free on this host for the"):
            munge._first_free([port])


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"MUNGE:forged:\n", b"x" * 10000, b""])
def test_strangers_get_no_secret(said):
    with selectors.DefaultSelector() as selector:
        port = free_port()
        desk = munge.SecretDesk([port], "slurm-7.0", selector)
        desk.announce(1)
        stranger = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        stranger.setblocking(False)
        answer, end = None, time.monotonic() + DEADLINE
        while answer is None and time.monotonic() < end:
            for key, _ in selector.select(0.05):
                key.data()
            try:
                answer = stranger.recv(100)
            except BlockingIOError:
                pass
            except ConnectionResetError:
                answer = b""
        assert answer == b""
        stranger.close()
        desk.close()


def test_no_more_strangers_than_fit():
    with selectors.DefaultSelector() as selector:
        port = free_port()
        desk = munge.SecretDesk([port], "slurm-7.0", selector)
        strangers = [socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) for _ in range(80)]
        while ready := selector.select(0.1):
            for key, _ in ready:
                key.data()
        assert len(selector.get_map()) == 1 + 64  # the desk itself, and those who were let wait
        for stranger in strangers:
            stranger.close()
        desk.close()
