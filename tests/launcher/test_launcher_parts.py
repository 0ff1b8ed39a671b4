"""The launcher's small parts, each by itself: lines, ending, console, channel, directory, processes, the head."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpod.collectives.standing import Standing
from superpod.interconnect.errors import InvalidValue
from superpod.launcher import directory, processes
from superpod.launcher import head as head_module
from superpod.launcher.channel import Channel, Order
from superpod.launcher.ending import Ending
from superpod.launcher.head import Head
from superpod.launcher.hosts import Host
from superpod.launcher.job import JobSpec
from superpod.launcher.logs import LineSplitter
from superpod.launcher.signals import SignalInbox


@given(st.lists(st.text("ab\n", max_size=6).map(str.encode)))
def test_lines_do_not_depend_on_the_pieces_in_which_they_come(pieces):
    splitter = LineSplitter()
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    whole = b"".join(pieces)
    assert lines + splitter.finish() == (whole.removesuffix(b"\n").split(b"\n") if whole else [])
    assert splitter.finish() == []


def test_long_lines_and_carriage_returns():
    splitter = LineSplitter(longest=4)
    assert splitter.feed(b"abcdefghij") == [b"abcd", b"efgh"]
    assert splitter.feed(b"k\nx\r\n1\r2\r3\n\r\n") == [b"ijk", b"x", b"3", b""]


def test_ending_after_a_failure():
    ending = Ending()
    assert (ending.due(0.0), ending.next_time(), ending.begun) == (None, None, False)
    ending.after_failure(100.0, grace=5.0)
    assert ending.due(100.9) is None
    assert ending.next_time() == 101.0
    assert ending.due(101.0) == signal.SIGTERM
    assert ending.due(105.9) is None
    ending.by_signal(signal.SIGINT, 105.9, grace=1000.0)  # has begun already
    assert ending.due(106.0) == signal.SIGKILL
    assert (ending.due(999.0), ending.next_time()) == (None, None)


def test_ending_by_signal_and_at_once():
    ending = Ending()
    ending.by_signal(signal.SIGINT, 100.0, grace=5.0)
    assert ending.due(100.0) == signal.SIGINT
    ending.at_once(100.5)
    assert ending.due(100.5) == signal.SIGKILL
    assert ending.next_time() is None


def run_console(code, **streams):
    """A process whose console writes; what it returns is said on fd 3 style: as its exit code."""
    setup = "from superpod.launcher.console import Console\nimport os, sys\nconsole = Console(colour=True)\n"
    return subprocess.Popen([sys.executable, "-c", setup + code], **streams)


def test_console_never_blocks_and_keeps_the_order():
    code = "for i in range(1000): console.write(1, b'%d\\n' % i * 1000)\n"
    code += "assert console.crowded and not console.roomy and console.waits_for() == 1\n"
    code += "os.write(2, b'did not block\\n')\nr, w = os.pipe()\nconsole.flush(r)\nassert console.roomy\n"
    process = run_console(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr.readline() == b"did not block\n"
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    assert out == b"".join(b"%d\n" % i * 1000 for i in range(1000))


def test_console_flush_ends_when_somebody_is_impatient():
    code = "console.write(1, b'x' * 1000000)\nr, w = os.pipe()\nos.write(w, b'!')\nconsole.flush(r)\n"
    process = run_console(code, stdout=subprocess.PIPE)
    assert process.wait(30) == 0
    process.stdout.close()


def test_console_without_a_reader():
    reader, writer = os.pipe()
    os.close(reader)
    code = "console.write(1, b'x')\nassert console.closed and console.waits_for() is None\nconsole.write(2, b'y')\n"
    process = run_console(code, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 0


def test_channel_carries_messages_and_descriptors():
    one, other = Channel.pair()
    with socket.socket() as sock:
        one.send({"do": "x"}, [sock.fileno()])
        message, (fd,) = other.receive()
        assert message == {"do": "x"}
        assert os.fstat(fd) == os.fstat(sock.fileno())
        assert not os.get_inheritable(fd)
        os.close(fd)
    one.close()
    assert other.receive() is None
    with pytest.raises(BrokenPipeError):
        other.send({})
    other.close()


def test_order_survives_its_file():
    order = Order("/d", "script", "x.py", ["é" * 200000], "fork", 3, 4, 5, ["json"], True, "auto", ["a"], 1)
    fd = order.in_memory_file()
    assert Order.read(fd) == order
    os.close(fd)


def test_directory_is_private_short_and_removed(tmp_path):
    with directory.job_directory(None) as path:
        assert path.stat().st_mode & 0o777 == 0o700
        assert len(os.fsencode(path)) <= directory.LONGEST
        (path / "file").write_text("x")
    assert not path.exists()
    with directory.job_directory(str(tmp_path / "gone")) as path:
        assert path.parent != tmp_path  # what cannot be used is passed over


def test_directory_refused(monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory.tempfile, "mkdtemp", refuse)
    with pytest.raises(InvalidValue, match=r"no directory for the job's sockets \(/tmp: No space left on device\);"):
        directory.create_directory()


def test_ends_in_words():
    assert processes.end_in_words(3) == "exited with code 3"
    assert processes.end_in_words(-9) == "was killed by SIGKILL"
    assert processes.end_in_words(-41) == "was killed by signal 41"


def test_age_counts_from_the_start_of_the_process():
    code = "import time; time.sleep(0.3)\nfrom superpod.launcher.processes import age\nprint(age())"
    began = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.29 <= float(out) <= time.monotonic() - began + 0.02


def test_die_with_a_parent_that_has_died_already():
    code = "from superpod.launcher.processes import die_with_parent\ndie_with_parent(1, 9)\nprint('alive')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (-9, "")


def test_signal_inbox_collects_and_restores():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)]
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with SignalInbox().installed() as inbox:
        assert inbox.read() == []
        signal.raise_signal(signal.SIGHUP)  # nohup's
        signal.raise_signal(signal.SIGTERM)
        assert inbox.read() == [signal.SIGTERM]
    signal.signal(signal.SIGHUP, ignored)
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)] == before


class Quiet:
    """In place of console and logs: remembers what is said and written."""

    closed = crowded = False
    roomy = True

    def __init__(self):
        self.said, self.written = [], []

    def say(self, text):
        self.said.append(text)

    def status(self, text):
        pass

    def write(self, rank, stream, data):
        self.written.append((rank, stream, data))

    def waits_for(self):
        return None


class Obedient:
    """A host's agent that remembers its orders, and says in `answers` what follows from them."""

    def __init__(self, **answers):
        self.orders, self.answers, self.tell, self.doubtful = [], answers, None, False

    def obey(self, order):
        self.orders.append(order)
        for event in self.answers.get(order["do"], ()):
            self.tell(event)

    def next_time(self):
        return None

    def mind(self):
        pass

    def close(self):
        pass


@pytest.fixture
def head(tmp_path):
    """Use: `head(agent, agent)` is a head of hosts a, b with one card each, and what it says and writes."""
    script = tmp_path / "x.py"
    script.write_text("")
    with selectors.DefaultSelector() as selector, SignalInbox().installed() as inbox:

        def make(*agents):
            hosts = tuple(Host(name, 1) for name, _ in zip("abc", agents, strict=False))
            spec, quiet = JobSpec(str(script), world_size=len(agents), hosts=hosts), Quiet()
            made = Head(spec, quiet, quiet, inbox, selector)
            for number, agent in enumerate(agents):
                agent.tell = partial(made.hear, number)
                made.add(agent)
            return made, quiet

        yield make


def leaving(agent):
    return [order["code"] for order in agent.orders if order["do"] == "leave"]


def test_a_head_that_fails_lets_no_host_leave_with_0(head):
    here, there = Obedient(), Obedient()
    made, _ = head(here, there)
    made.hear(1, {"event": "over"})
    made.close()
    assert (leaving(here), leaving(there)) == ([1], [1])


def test_a_head_whose_job_went_well_says_0(head):
    agents = Obedient(end=[{"event": "over"}]), Obedient(end=[{"event": "over"}])
    made, _ = head(*agents)
    for number in range(2):
        made.hear(number, {"event": "idle"})
    made.run()
    made.close()
    assert [leaving(agent) for agent in agents] == [[0], [0]]


def test_only_a_host_that_was_lost_is_gone_in_the_flight_record(head):
    made, _ = head(
        Obedient(record=[{"event": "record", "standings": {0: Standing(0)}}]),
        Obedient(record=[{"event": "record", "standings": None}]),
        Obedient(record=[{"event": "record", "standings": {}}]),
    )
    made.hear(1, {"event": "started", "rank": 1, "pid": 7})
    made.hear(1, {"event": "exited", "rank": 1, "code": 0, "time": 1.0})
    made.hear(2, {"event": "lost", "text": "its link is down", "code": 1})
    record = json.dumps(made.flight_record("test"))
    assert "has ended normally" in record
    assert "was on host c, which is gone" in record
    assert "on host b, which is gone" not in record


def test_what_is_due_now_does_not_wait(head, monkeypatch):
    made, _ = head(Obedient())
    monkeypatch.setattr(made, "_patience", lambda: 0.0)
    began = time.monotonic()
    made._turn(5.0)
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize(
    "event",
    [
        {"event": "output", "rank": 0, "stream": 1, "data": b"another host's card\n"},
        {"event": "output", "rank": -2, "stream": 1, "data": b"no card\n"},
        {"event": "output", "rank": 1, "stream": 7, "data": b"no stream\n"},
        {"event": "output", "rank": 1, "stream": 0, "data": b"no stream\n"},
        {"event": "record", "standings": [1]},
        {"event": "record", "standings": 5},
        {"event": "signal", "signum": 9},
        {"event": "signal", "signum": 10},
    ],
)
def test_what_no_agent_says_is_nothing(head, event):
    agents = Obedient(), Obedient()
    made, quiet = head(*agents)
    made.hear(1, event)
    assert (quiet.written, quiet.said, agents[0].orders, agents[1].orders) == ([], [], [], [])


def test_what_agents_print_arrives(head):
    made, quiet = head(Obedient(), Obedient())
    made.hear(1, {"event": "output", "rank": 1, "stream": 2, "data": b"x\n"})
    made.hear(1, {"event": "output", "rank": -1, "stream": 2, "data": b"y\n"})
    assert quiet.written == [(1, 2, b"x\n"), (-2, 2, b"y\n")]


HEARD = {
    "event": "error",
    "rank": 0,
    "time": 1.0,
    "type": "PeerLost",
    "message": "rank 1 died",
    "consequence": True,
}
"""A card's failure, of which it has only heard."""


def test_a_host_that_may_be_lost_is_named_and_not_who_only_heard_of_it(head, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(head_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    here, there = Obedient(), Obedient()
    made, _ = head(here, there)
    there.doubtful = True
    made.hear(0, {"event": "news", "item": HEARD})
    now[0] += 1.0
    made._mind_deadlines()
    assert (made._patience(), here.orders) == (None, [])
    there.doubtful = False
    made.hear(1, {"event": "lost", "text": "its agent was killed", "code": 1})
    assert made.outcome.own_failure == "host b (rank 1) was lost: its agent was killed"


def test_who_heard_of_a_failure_is_believed_when_no_host_is_in_doubt(head, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(head_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    made, _ = head(Obedient(), Obedient())
    made.hear(0, {"event": "news", "item": HEARD})
    assert made._patience() == pytest.approx(0.3)
    now[0] += 0.4
    made._mind_deadlines()
    assert made._ending.begun


def ordered(agent):
    return [order["signum"] if order["do"] == "signal" else order["do"] for order in agent.orders]


def test_a_signal_to_all_launchers_is_one_request_and_a_second_one_means_at_once(head):
    here, there = Obedient(), Obedient()
    made, quiet = head(here, there)
    signalled = {"event": "signal", "signum": signal.SIGTERM}
    made.hear(1, signalled)
    made._turn(0.0)
    os.kill(os.getpid(), signal.SIGTERM)  # the head's own
    made._turn(1.0)
    assert (ordered(here), ordered(there)) == (["stop", signal.SIGTERM], ["stop", signal.SIGTERM])
    assert (quiet.said, made.outcome.exit_code) == (["host b got SIGTERM; ending the cards"], 143)
    made.hear(1, signalled)
    made._turn(0.0)
    assert there.orders[-1] == {"do": "end", "kill": True}
