"""Nobody else gets in: attacks on the ports of a job, while the job goes on."""

from __future__ import annotations

import contextlib
import logging
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from agents_channel import Head, ask
from attacks import ATTACKS, CONNECTIONS, TABLE, Attack, Target, most_connections
from cards import SECRET, SOON, Card, dictionary, eventually, near_and_far, start, within
from test_rendezvous import Server

from doc_tables import Say
from superpod.interconnect.errors import InvalidValue, PeerLost
from superpod.interconnect.host import Address, split
from superpod.interconnect.host_link import introduce
from superpod.interconnect.keys import Keys
from superpod.interconnect.rendezvous import LauncherStore, StoreServer
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_keys import Comings

attacks = pytest.mark.parametrize(
    "attack",
    [pytest.param(a, marks=pytest.mark.slow) if a.run.__name__ == "many_connections" else a for a in ATTACKS],
    ids=lambda attack: attack.run.__name__,
)


def port_of(card: Card) -> int:
    return int(Address.parse(split(card.mesh.link.address)[1]).endpoint.rpartition(":")[2])


@pytest.fixture
def several(tmp_path):
    """`several(n)`: cards, each on a host of its own."""
    book = dictionary().signed(SECRET)
    make = near_and_far("zmq", str, lambda: Keys(SECRET))
    with contextlib.ExitStack() as stack:

        def cards(n: int) -> list[Card]:
            made = [Card(make(rank, tmp_path), book) for rank in range(n)]
            for card in made:
                stack.callback(card.close)
            return made

        yield cards


def exchange(one: Card, other: Card) -> None:
    for a, b in ((one, other), (other, one)):
        a.send(b.rank, b"abc")
        assert b.recv(a.rank, 3) == b"abc"


@contextlib.contextmanager
def resident_within(nbytes: int):
    """The block makes this process no larger than that."""

    def now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = now()
    yield
    assert now() - before < nbytes


def attacked(attack: Attack, target: Target, exchange: Callable[[], None]) -> str:
    """What became of the attack, while the attacked go on with theirs."""
    with resident_within(256 << 20):
        attacker, over = start(lambda: attack.run(target)), False
        while not over:
            over = attacker.done()  # and once more after the last blow
            exchange()
        return attacker.result(0)


def show(doc: Say, attack: Attack, place: str, outcome: str, logged: Callable[[], int]) -> None:
    """The row of the table, or this place's part of it, once the refusal is in the log."""
    eventually(logged)
    how_often = {1: "once"}.get(logged(), f"{logged()} times")
    if attack.run.__name__ != "many_connections" or most_connections() == CONNECTIONS:
        doc(TABLE, attack.title, {place: outcome, "in the log": how_often, "the job": "goes on, a latecomer joins"})


@pytest.fixture
def logged(caplog):
    """`logged()`: how many warnings superpod has logged so far."""
    caplog.set_level(logging.WARNING, "superpod")
    return lambda: len([r for r in caplog.records if r.name == "superpod"])


@attacks
def test_a_card_under_attack(several, attack: Attack, logged, doc: Say):
    one, other, late = several(3)
    exchange(one, other)
    outcome = attacked(attack, Target(port_of(one), SECRET, "cards"), lambda: exchange(one, other))
    exchange(one, late)  # who has not been here before still gets in
    exchange(one, other)
    one.until(lambda: one.mesh.refused)
    reasons = {str(error).partition(":")[0].partition(" b'")[0] for error in one.mesh.refused}
    assert reasons <= {"connection from somebody who showed no key of this job", "message from an unknown sender"}
    show(doc, attack, "a card", outcome, logged)


@attacks
def test_the_launchers_store_under_attack(attack: Attack, logged, doc: Say):
    server = Server("tcp://127.0.0.1:0", SECRET)
    try:
        store = LauncherStore(server.store.endpoint, None, SECRET)

        def use() -> None:
            store.set("key", b"right")
            assert store.get("key", SOON) == b"right"

        target = Target(int(server.store.endpoint.rpartition(":")[2]), SECRET, "store")
        outcome = attacked(attack, target, use)
        late = LauncherStore(server.store.endpoint, None, SECRET)
        assert late.get("key", SOON) == b"right"
        show(doc, attack, "the launcher's store", outcome, logged)
        late.close()
        store.close()
    finally:
        server.stop()


@attacks
def test_the_agents_channel_under_attack(attack: Attack, logged, doc: Say):
    head = Head(SECRET)
    try:
        agents = [head.agent()]
        outcome = attacked(attack, Target(head.port, SECRET, "agents"), lambda: ask(agents[0]))
        agents.append(head.agent())
        ask(agents[1])
        assert len(head.names - {b"recorded"}) == 2, "nobody but the agents has been heard"
        show(doc, attack, "the agents' channel", outcome, logged)
        for agent in agents:
            agent.close()
    finally:
        head.stop()


def test_the_table_has_every_attack():
    assert list(TABLE.rows()) == [attack.title for attack in ATTACKS]


def test_a_replayed_message_never_arrives():
    """The recorded client has put something into the store; said again, it is not put there."""
    server = Server("tcp://127.0.0.1:0", SECRET)
    try:
        replay = next(a.run for a in ATTACKS if a.run.__name__ == "replay")
        seen: list[tuple[object, ...]] = []
        handle = server.store._handle
        server.store._handle = lambda *request: (seen.append(request), handle(*request))[1]
        replay(Target(int(server.store.endpoint.rpartition(":")[2]), SECRET, "store"))
        assert [request[3] for request in seen] == ["replayed"]
    finally:
        server.stop()


SUCCEEDED, ENDED, FAILED = zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_FAILED_AUTH


@pytest.mark.parametrize(
    ("events", "refused"),
    [
        ([(SUCCEEDED, 0), "speaks", (ENDED, 5)], 0),
        ([(SUCCEEDED, 0), (ENDED, 5)], 0),  # it had nothing to say
        ([(SUCCEEDED, 0), (ENDED, 5), "speaks"], 0),  # it had, but its end was heard first
        (["speaks", (SUCCEEDED, 0), "speaks", (ENDED, 5)], 0),
        ([(FAILED, 400), (ENDED, 5)], 1),
        ([(ENDED, 5)], 1),  # another protocol
        ([(SUCCEEDED, 0), "speaks", (ENDED, 6), (ENDED, 5)], 1),
        ([(SUCCEEDED, 0), "speaks", (ENDED, 5), (ENDED, 5)], 1),  # who came next has its descriptor
        ([(SUCCEEDED, 0), (FAILED, 400), (ENDED, 6), (ENDED, 5)], 1),
    ],
)
def test_who_was_turned_away_follows_from_what_is_heard(events, refused):
    comings = Comings()
    assert sum(comings.heard(*event) if event != "speaks" else comings.spoke(5) or 0 for event in events) == refused


def test_two_jobs_do_not_meet(tmp_path):
    """Cards with two secrets that were told each other's addresses: they fail, and say why."""
    book = dictionary()
    make = near_and_far("zmq", str, lambda: Keys(JobSecret.new()))
    one, other = (Card(make(rank, tmp_path), book) for rank in (0, 1))
    try:
        one.send(1, b"x")
        with (
            within(SOON),
            pytest.raises(PeerLost, match=r"rank 1 ended the connection .* another SUPERPOD_SECRET"),
        ):
            one.recv(1, 1)
        other.until(lambda: other.mesh.refused)
        assert "showed no key of this job" in str(other.mesh.refused[0])
    finally:
        one.close()
        other.close()


def test_an_address_that_was_made_up_is_not_gone_to():
    """In a store that is open to others."""
    book = dictionary()
    honest = book.signed(SECRET)
    honest.publish(0, "address 0")
    assert honest.find(0, 0) == "address 0"
    book.publish(1, "address 1")
    book.signed(JobSecret.new()).publish(2, "address 2")
    book.note("3", book._store.get("test/0", 0).decode("latin-1"))  # the genuine one of another rank
    book._store.set("test/4", book._store.get("test/0", 0))
    for rank in (1, 2, 3, 4):
        with pytest.raises(InvalidValue, match=rf"the address of rank {rank} is not signed .* give all cards the same"):
            honest.find(rank, 0)


def test_without_a_secret_only_published_keys_are_let_in(tmp_path):
    book = dictionary()
    make = near_and_far("zmq", str, lambda: Keys(None))
    links = [make(rank, tmp_path) for rank in range(3)]
    for link in links[:2]:
        introduce(link, book)
    one, other = (Card(link, book) for link in links[:2])
    stranger = Card(links[2], dictionary())
    try:
        exchange(one, other)
        links[2].connect(0, links[0].address)
        links[2].post(0, b"h", b"")
        one.until(lambda: one.mesh.refused)
        exchange(one, other)
    finally:
        for card in (one, other, stranger):
            card.close()


def test_who_encrypts_and_who_does_not_do_not_meet(tmp_path):
    book = dictionary()
    one = Card(near_and_far("zmq", str, lambda: Keys(SECRET))(0, tmp_path), book)
    other = Card(near_and_far("zmq", str, lambda: None)(1, tmp_path), book)
    try:
        with pytest.raises(InvalidValue, match=r"rank 1 does not encrypt .*, rank 0 does; set SUPERPOD_ENC"):
            one.send(1, b"x")
        with pytest.raises(InvalidValue, match="rank 0 encrypts what goes between hosts, rank 1 does not; set"):
            other.send(0, b"x")
    finally:
        one.close()
        other.close()


def test_a_store_on_the_network_needs_a_secret():
    with pytest.raises(InvalidValue, match=r"a store at tcp://127\.0\.0\.1:0 needs the job's secret, or anybody could"):
        StoreServer("tcp://127.0.0.1:0")


def test_handshakes_go_on_while_the_main_thread_is_elsewhere(several):
    """Somebody who comes while this card computes is let in at once; only its message waits."""
    one, other = several(2)
    let_in = threading.Event()
    admits = one.mesh.link.keys.admits
    one.mesh.link.far._door._admits = lambda key: (admits(key), let_in.set())[0]
    other.send(0, b"abc")
    assert let_in.wait(SOON)
    assert one.recv(1, 3) == b"abc"


def test_nothing_says_the_secret(several, caplog):
    (one,) = several(1)
    said = [repr(SECRET), str(SECRET), repr(one.mesh.link.keys.own), one.mesh.link.address, f"{vars(one.mesh.link)}"]
    assert not [text for text in said if SECRET.text in text or SECRET.key("curve cards").hex() in text]
