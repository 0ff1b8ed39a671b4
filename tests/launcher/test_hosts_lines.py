"""The parts between a job's hosts, each by itself: lines, messages, the store's branches, the tunnel, signs of life."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpod.collectives.standing import Standing
from superpod.interconnect.errors import BadFrame, InvalidValue
from superpod.interconnect.rendezvous import LauncherStore, StoreServer
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_agents import AgentCall, AgentDesk
from superpod.launcher import heartbeat
from superpod.launcher.line import GREETING, PipeLine
from superpod.launcher.messages import MAX_MESSAGE, pack, unpack
from superpod.launcher.node_line import AgentLine, HeadDesk
from superpod.launcher.pipes import Drain, Pump
from superpod.launcher.share import Share, ranks_of
from superpod.launcher.tunnel import Tunnel, loopback_listener
from superpod.launcher.values import Values

DEADLINE = 10  # seconds


@pytest.fixture
def pair():
    """Two ends of a line over pipes."""
    there, back = os.pipe(), os.pipe()
    one, other = PipeLine(back[0], there[1], greeted=True), PipeLine(there[0], back[1], greets=True)
    yield one, other
    one.close()
    other.close()


def arrive(line, count):
    """The next `count` messages."""
    messages, end = [], time.monotonic() + DEADLINE
    while len(messages) < count:
        assert time.monotonic() < end, messages
        with selectors.DefaultSelector() as selector:
            selector.register(line, selectors.EVENT_READ)
            selector.select(0.1)
        messages += line.receive()
    return messages


def test_a_line_carries_messages_both_ways(pair):
    one, other = pair
    one.send({"do": "x", "data": b"\0" * 200, "n": -1})
    other.send({"event": "y"})
    assert arrive(other, 1) == [{"do": "x", "data": b"\0" * 200, "n": -1}]
    assert arrive(one, 1) == [{"event": "y"}]


def test_what_a_login_script_prints_comes_before_the_greeting_and_is_passed_over():
    reader, writer = os.pipe()
    line = PipeLine(reader, os.open(os.devnull, os.O_WRONLY), greeted=True)
    os.write(writer, b"Welcome!\nYou have mail.\n" + GREETING[:5])
    assert line.receive() == []
    data = pack({"event": "z"})
    os.write(writer, GREETING[5:] + len(data).to_bytes(4) + data[:3])
    assert line.receive() == []
    os.write(writer, data[3:])
    assert line.receive() == [{"event": "z"}]
    os.close(writer)
    assert line.receive() == []
    assert line.closed
    line.close()


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"x" * 70000, r"the first 65536 B that came are no agent's: b'xxx"),
        (GREETING + b"\xff\xff\xff\xff", r"a message of 4294967295 B is longer than the 16777216 B that one may have"),
        (GREETING + b"\0\0\0\1\xc1", r"a message of 1 B cannot be read"),
        (GREETING + b"\0\0\0\1\x01", r"a message of 1 B cannot be read"),
    ],
)
def test_a_line_refuses_what_no_agent_says(sent, message):
    reader, writer = socket.socketpair()
    line = PipeLine(reader.detach(), os.open(os.devnull, os.O_WRONLY), greeted=True)
    writer.sendall(sent)
    with pytest.raises(BadFrame, match=message):
        arrive(line, 1)
    writer.close()
    line.close()


def test_a_line_never_blocks_and_says_when_it_is_crowded(pair):
    one, other = pair
    held = []
    with selectors.DefaultSelector() as selector:
        drain = Drain(selector, one, held.append)
        for _ in range(80):
            one.send({"data": b"x" * (1 << 16)})
        drain.balance()
        assert (one.crowded, held) == (True, [True])
        taken = 0
        while taken < 80:
            taken += len(other.receive())
            for key, _ in selector.select(0):
                key.data()
            drain.balance()
        assert (one.waits_for(), held) == (None, [True, False])
        drain.close()


def test_closing_twice_closes_nobody_elses_descriptors(pair):
    one, other = pair
    freed = {one._reader, one._writer}
    one.close()
    taken = []
    while not freed <= set(taken):
        taken.append(os.open(os.devnull, os.O_RDONLY))
    one.close()
    assert (one.fileno(), one.waits_for(), other.receive(), other.closed) == (-1, None, [], True)
    for fd in taken:
        os.close(fd)  # raises if it is closed already


def test_sending_to_one_that_has_gone_is_no_error(pair):
    one, other = pair
    other.close()
    one.send({"do": "x"})
    assert one.waits_for() is None


@given(st.binary(max_size=200))
def test_nothing_that_arrives_can_do_more_than_be_no_message(data):
    assert unpack(data) is None or isinstance(unpack(data), dict)


def test_standings_travel():
    standings = {3: Standing(3, groups={"world": [0, 3]}, silent="has ended"), 4: Standing(4)}
    assert unpack(pack({"event": "x", "standings": standings})) == {"event": "x", "standings": standings}
    assert unpack(msgpack.packb({"standings": {"a": 1, 5: []}})) == {"standings": {}}
    assert len(pack({"data": b"x" * 1000})) < MAX_MESSAGE


def test_a_share_travels():
    share = Share("script", "x.py", ("a", "b"), "fork", (), True, "auto", 1, ("a", "b"), (2, 3), "job", more={"A": "1"})
    assert Share.from_message(msgpack.unpackb(msgpack.packb(share.as_message()))) == share
    assert (share.world_size, share.ranks) == (5, range(2, 5))
    assert ranks_of((1, 2, 3)) == [range(1), range(1, 3), range(3, 6)]


def test_values_go_to_the_hosts_that_ask():
    orders = []
    values = Values(lambda number, order: orders.append((number, order["key"], order["value"])))
    values.handle(1, "get", "k", b"")
    values.handle(2, "get", "k", b"")
    assert orders == []
    values.handle(0, "set", "k", b"v")
    values.handle(3, "get", "k", b"")
    assert sorted(orders) == [(1, "k", b"v"), (2, "k", b"v"), (3, "k", b"v")]


def test_a_branch_of_a_store_asks_once_and_remembers(tmp_path):
    asked = []
    branch = StoreServer(f"ipc://{tmp_path}/store", upstream=lambda *request: asked.append(request))
    store = LauncherStore(f"ipc://{tmp_path}/store")
    store.set("own", b"1")
    with selectors.DefaultSelector() as selector:
        selector.register(branch, selectors.EVENT_READ)

        answers = []
        askers = [threading.Thread(target=lambda: answers.append(store.get("far", DEADLINE))) for _ in range(1)]
        askers[0].start()
        while ("get", "far", b"") not in asked:
            assert selector.select(DEADLINE)
            branch.serve()
        branch.offer("far", b"2")
        askers[0].join(DEADLINE)
    assert (answers, asked) == ([b"2"], [("set", "own", b"1"), ("get", "far", b"")])
    store.close()
    branch.close()


def test_the_tunnel_leads_to_the_first_hosts_loopback():
    with selectors.DefaultSelector() as selector, loopback_listener() as server:
        ends = {}

        def tell(number):
            def order(event):
                ends[1 - number].handle({"do": "tunnel", **event})

            return order

        for number in (0, 1):
            ends[number] = Tunnel(Pump(selector), selector, number, tell(number))
        ends[0].port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", ends[1].listen()), timeout=DEADLINE)

        def turn_until(ready):
            end = time.monotonic() + DEADLINE
            while not ready():
                assert time.monotonic() < end
                for key, _ in selector.select(0.05):
                    key.data()

        server.setblocking(False)
        accepted = []

        def accept():
            try:
                accepted.append(server.accept()[0])
            except BlockingIOError:
                return False
            return True

        turn_until(accept)
        received = bytearray()

        def receive(line):
            with contextlib.suppress(BlockingIOError):
                received.extend(line.recv(1 << 16))
            return len(received) == 300000

        client.setblocking(True)
        client.sendall(b"q" * 100)
        accepted[0].setblocking(False)
        turn_until(lambda: receive(accepted[0]) or len(received) == 100)
        accepted[0].setblocking(True)
        received.clear()
        sender = threading.Thread(target=accepted[0].sendall, args=(b"a" * 300000,))
        sender.start()
        client.setblocking(False)
        turn_until(lambda: receive(client))  # more than fits into a socket at once
        sender.join()
        client.close()
        accepted[0].settimeout(0)

        def has_ended():
            try:
                return accepted[0].recv(1) == b""
            except BlockingIOError:
                return False

        turn_until(has_ended)
        accepted[0].close()
        for end in ends.values():
            end.close()


def test_signs_of_life(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    heart = heartbeat.Heartbeat(3.0)
    assert (heart.is_due(), heart.next_time()) == (False, 100.5)
    now[0] = 100.6
    assert heart.is_due()
    assert not heart.is_due()
    now[0] = 102.9
    assert heart.silent_for() is None
    now[0] = 103.1
    assert heart.silent_for() == pytest.approx(3.1)
    heart.hear()
    assert heart.silent_for() is None


@pytest.fixture
def desk():
    """A head's desk with a secret, its lines, and how to call it."""
    lines, secret = [], JobSecret.new()
    desk = AgentDesk("tcp://127.0.0.1:0", secret)
    head = HeadDesk(desk, lines.append)

    def call(known=secret):
        return AgentLine(AgentCall([desk.endpoint], known))

    yield head, lines, call
    head.close()


def turn(head, ready):
    end = time.monotonic() + DEADLINE
    with selectors.DefaultSelector() as selector:
        selector.register(head, selectors.EVENT_READ)
        while not ready():
            assert time.monotonic() < end
            selector.select(0.02)
            head.serve()


def test_agents_reach_the_head_with_the_secret_only(desk):
    head, lines, call = desk
    stranger, agent = call(JobSecret.new()), call()
    stranger.send({"event": "join", "node": 9})
    agent.send({"event": "join", "node": 1})

    def joined():
        agent.push()
        stranger.push()
        return bool(lines)

    turn(head, joined)
    assert [message for line in lines for message in line.receive()] == [{"event": "join", "node": 1}]
    lines[0].send({"do": "job"})
    assert arrive(agent, 1) == [{"do": "job"}]
    assert len(lines) == 1
    agent.close()
    stranger.close()


def test_an_agent_whose_connection_breaks_is_in_doubt_until_it_speaks(desk):
    head, lines, call = desk
    agents = call(), call()

    def joined():
        for agent in agents:
            agent.push()
        return len(lines) == 2

    for number, agent in enumerate(agents):
        agent.send({"node": number})
    turn(head, joined)
    assert [line.doubted for line in lines] == [None, None]
    agents[0].close()
    turn(head, lambda: any(line.doubted for line in lines))
    (broken,) = [line for line in lines if line.doubted]
    assert broken.receive() == [{"node": 0}]
    assert 0 < broken.doubted - time.monotonic() < 2
    broken.send({"do": "leave", "code": 0})
    assert not broken.lingers
    broken.bring(pack({"beat": True}))
    assert broken.doubted is None
    agents[1].close()


def test_an_agent_that_has_said_bye_is_not_waited_for(desk):
    head, lines, call = desk
    agent = call()
    agent.send({"node": 0})

    def joined():
        agent.push()
        return bool(lines)

    turn(head, joined)
    (line,) = lines
    line.send({"do": "leave", "code": 0})
    assert line.lingers
    assert arrive(agent, 1) == [{"do": "leave", "code": 0}]
    agent.send({"event": "bye"})
    turn(head, lambda: not line.lingers)
    line.send({"do": "leave", "code": 1})  # the head says so twice
    assert not line.lingers
    assert line.receive() == [{"node": 0}]
    line.close()
    agent.close()


def test_what_is_under_way_is_bounded(desk):
    head, lines, call = desk
    agent = call()
    for _ in range(80):
        agent.send({"data": b"x" * (1 << 16)})
    assert agent.crowded
    taken = []

    def all_taken():
        agent.push()
        for line in lines:
            taken.extend(line.receive())
        agent.receive()
        return len(taken) == 80 and agent.roomy

    turn(head, all_taken)
    agent.close()


def test_an_endpoint_that_is_taken(desk):
    head, _, _ = desk
    endpoint = head._desk.endpoint
    with pytest.raises(
        InvalidValue, match=r"the agents' endpoint tcp://127.0.0.1:\d+ must be free on this host: Addre"
    ):
        AgentDesk(endpoint, None)
