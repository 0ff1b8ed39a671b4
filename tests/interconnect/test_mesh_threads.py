"""Several threads on one card: one of them polls, and no wake-up is lost."""

from __future__ import annotations

import random
import threading

import pytest
from cards import GROUP, LINKS, SOON, Card, dictionary, eventually, make_links, start, together, within

from superpod.interconnect import mesh as mesh_module
from superpod.interconnect.errors import SuperpodError
from superpod.interconnect.link import Arrival
from superpod.interconnect.memory_link import MemoryFabric, MemoryLink
from superpod.interconnect.turns import Turns
from superpod.interconnect.wire import Header, Kind, encode

LOST = 15.0  # seconds that a lost wake-up costs in these tests, which take a second


class EdgeLink(MemoryLink):
    """Signals as ZeroMQ's descriptor does: once for what has arrived, and any call may swallow the signal.

    `wait` does not look at what is there; only what arrives after the last call of `take` or `post` ends it.
    """

    def __init__(self, fabric, rank):
        super().__init__(fabric, rank)
        self._signal = False

    def push(self, event):
        super().push(event)
        with self._changed:
            self._signal = True
            self._changed.notify_all()

    def post(self, peer, header, payload):
        self._signal = False
        super().post(peer, header, payload)

    def take(self):
        self._signal = False
        return super().take()

    def connect(self, peer, address):
        self._signal = False
        super().connect(peer, address)

    def wait(self, seconds):
        with self._changed:
            self._changed.wait_for(lambda: self._signal or self._woken, seconds)
            self._woken = False


def edge_links(n: int) -> list[EdgeLink]:
    fabric = MemoryFabric(0)
    fabric.links = [EdgeLink(fabric, rank) for rank in range(n)]
    return fabric.links


@pytest.fixture(params=["edge", *LINKS])
def cards(request, tmp_path, monkeypatch):
    """Three cards on which a lost wake-up costs LOST seconds."""
    monkeypatch.setattr(mesh_module, "PROBE_AFTER", LOST)
    monkeypatch.setattr(mesh_module, "_SLICE", LOST)
    links = edge_links(3) if request.param == "edge" else make_links(request.param, 3, tmp_path)
    book = dictionary()
    cards = [Card(link, book, segment=4096, window=16384) for link in links]
    yield cards
    for card in cards:
        card.close()


def test_eight_threads_with_tags_of_their_own(cards):
    """Each thread sends on its tag and then waits for the answer, 500 times; sizes vary around segment and window."""
    a, b, _ = cards

    def ask(tag: int) -> None:
        chance = random.Random(tag)
        for i in range(500):
            data = bytes([i % 256]) * chance.choice((1, 8, 100, 5000)) if i % 50 else bytes([i % 256]) * 40_000
            send = a.send(1, data, tag)
            answer = a.expect(1, 4, tag)
            a.wait(send, answer, seconds=3 * SOON)
            assert answer.into.tobytes() == len(data).to_bytes(4, "little")

    def answer(tag: int) -> None:
        chance = random.Random(tag)
        for i in range(500):
            nbytes = chance.choice((1, 8, 100, 5000)) if i % 50 else 40_000
            assert b.recv(0, nbytes, tag) == bytes([i % 256]) * nbytes
            b.send(0, nbytes.to_bytes(4, "little"), tag)

    with within(LOST - 1):
        together(*[lambda t=t: ask(t) for t in range(8)], *[lambda t=t: answer(t) for t in range(8)])


def test_one_waits_while_others_send(cards):
    """The senders' calls may swallow the signal that the waiting thread sleeps on."""
    a, b, c = cards
    stop = threading.Event()

    def chatter() -> None:
        while not stop.is_set():
            send = a.send(2, b"noise", tag=9)
            while not (a.mesh.advance([send], a.group, seconds=0.01) or stop.is_set()):
                pass

    def listen() -> None:
        while not stop.is_set():
            c.mesh.advance([c.expect(0, 5, tag=9)], c.group, seconds=0.01)

    def wait_for_answers() -> None:
        for i in range(300):
            a.send(1, b"?")
            assert a.recv(1, 1) == bytes([i % 256])
        stop.set()

    def answer() -> None:
        for i in range(300):
            b.recv(0, 1)
            b.send(0, bytes([i % 256]))

    with within(LOST - 1):
        together(chatter, listen, wait_for_answers, answer)


def test_the_lead_is_handed_on(cards):
    """A waits for 1, 2, 3, ... in threads that all end while the others still wait."""
    a, b, _ = cards
    for _ in range(20):
        waits = [start(lambda tag=tag: a.recv(1, 1, tag)) for tag in range(6)]
        eventually(lambda: a.mesh._turns.leading and len(a.mesh._turns._followers) == 5)
        for tag in random.sample(range(6), 6):
            b.send(0, bytes([tag]), tag)
            with within(LOST - 1):
                assert waits[tag].result(SOON) == bytes([tag])


def test_meeting_a_new_peer_while_another_thread_waits(cards):
    a, b, c = cards
    waiting = start(lambda: a.recv(1, 1))
    eventually(lambda: a.mesh._turns.leading)
    b.send(0, b"x")
    a.send(2, b"hello")
    with within(LOST - 1):
        assert waiting.result(SOON) == b"x"
        assert c.recv(0, 5) == b"hello"


@pytest.mark.parametrize("call", ["send", "receive", "connect", "fail another group"])
def test_whoever_calls_handles_what_came_unnoticed(call):
    """The caller's own use of the link may have swallowed the signal on which the leader sleeps."""
    links = edge_links(3)
    book = dictionary()
    a, b, c = (Card(link, book) for link in links)
    a.send(1, b"x")
    b.recv(0, 1)
    other = a.open(GROUP + 1)
    waiting = start(lambda: a.recv(1, 1))
    eventually(lambda: a.mesh._turns.leading)
    links[0]._events.append(Arrival(1, encode(Header(Kind.DATA, GROUP, 0, nbytes=1)), b"!"))  # and no signal
    calls = {
        "send": lambda: a.send(1, b"y"),
        "receive": lambda: a.expect(2, 1),
        "connect": lambda: a.mesh._connect(2, None, SOON),
        "fail another group": lambda: a.mesh.fail_group(other, SuperpodError("no")),
    }
    with within(0.2):  # well below the probe, which would repair it
        calls[call]()
        assert waiting.result(SOON) == b"!"
    for card in (a, b, c):
        card.close()


def test_a_follower_looks_before_it_leads():
    """While the lead is handed on, another thread's post may swallow the signal: nobody sleeps in the link then."""
    links = edge_links(2)
    book = dictionary()
    a, b = (Card(link, book) for link in links)
    for card in (a, b):
        card.send(1 - card.rank, b"x")
    for card in (a, b):
        card.recv(1 - card.rank, 1)
    first, second = a.expect(1, 1, tag=1), a.expect(1, 1, tag=2)
    leader = start(lambda: a.wait(first))
    eventually(lambda: a.mesh._turns.leading)
    follower = start(lambda: a.wait(second, seconds=SOON))
    eventually(lambda: a.mesh._turns._followers)
    handing_on, original = threading.Event(), Turns.hand_on

    def hand_on(turns: Turns) -> None:
        """The leader lets go of the lead; before the follower runs, news comes and is swallowed."""
        if turns is a.mesh._turns and not handing_on.is_set():
            handing_on.set()
            b.send(0, b"2", tag=2)
            links[0].post(1, b"swallow", b"")
        original(turns)

    Turns.hand_on = hand_on
    try:
        b.send(0, b"1", tag=1)
        with within(0.2):  # well below the probe, which would repair it
            leader.result(SOON)
            follower.result(SOON)
    finally:
        Turns.hand_on = original
    a.close()
    b.close()


class InterruptedLock:
    """A lock whose owner is interrupted as soon as it has released it."""

    def __init__(self, lock):
        self._lock, self.acquire = lock, lock.acquire

    def release(self):
        self._lock.release()
        raise KeyboardInterrupt


@pytest.mark.parametrize("follower", [False, True])
def test_an_interrupt_gives_the_turn_and_the_lock_back(follower):
    turns = Turns(edge_links(1)[0])
    turns.leading = follower
    turns.lock.acquire()
    turns.lock = InterruptedLock(turns.lock)
    with pytest.raises(KeyboardInterrupt):
        turns.sleep(SOON)
    assert turns.held()
    assert (turns.leading, turns._followers) == (follower, [])


def test_closing_while_many_threads_come_and_go(cards):
    a, b, _ = cards
    ended = []

    def use(tag: int) -> None:
        try:
            while True:
                a.send(1, b"x", tag)
                a.mesh.advance([a.expect(1, 1, tag)], a.group, seconds=0.001)
        except Exception as error:
            ended.append(type(error).__name__)

    threads = [start(lambda t=t: use(t)) for t in range(6)]
    for _ in range(20):
        b.look()
    a.close()
    for thread in threads:
        thread.result(SOON)
    assert ended == ["LinkClosed"] * 6
