"""What an attacker on the network can do to a port of a job: one function an attack, and the table that docs/ shows.

Every attack gets the port of a card or of the launcher's store, knows the protocol and, where it says so, more.
"""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import zmq
from cards import SOON

from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_keys import KeyPair, knock

GREETING = b"\xff" + bytes(8) + b"\x7f\3\0"
CONNECTIONS = 10_000


class Target(NamedTuple):
    """What is attacked, and what is known of it: `role` names its keys."""

    port: int
    secret: JobSecret
    role: str

    @property
    def endpoint(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"


class Attack(NamedTuple):
    """One row of the table."""

    title: str
    outcome: str
    run: Callable[[Target], None]


@contextlib.contextmanager
def _line(target: Target) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", target.port), SOON) as line:
        yield line


def _until_hung_up(line: socket.socket) -> int:
    """How many bytes the other end says before it hangs up."""
    heard = 0
    with contextlib.suppress(ConnectionError):
        while data := line.recv(1 << 16):
            heard += len(data)
    return heard


def _says_nothing(target: Target, prepare: Callable[[zmq.Socket[bytes]], None]) -> None:
    """A ZeroMQ client that asks and pushes; nothing of it gets through, and nothing comes back."""
    context = zmq.Context()
    try:
        client = context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        prepare(client)
        monitor = client.get_monitor_socket()
        client.connect(target.endpoint)
        for _ in range(50):
            client.send(b"\x94\xa3get\x01\xa3key\xc4\x00")  # a right request to the store
        assert monitor.poll(SOON * 1000)
        while (kind := _next(monitor)) not in _REFUSALS:
            assert kind != zmq.EVENT_HANDSHAKE_SUCCEEDED, "it was let in"
        assert not client.poll(0)
        client.disable_monitor()
    finally:
        context.destroy(linger=0)


_REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_DISCONNECTED,
)


def _next(monitor: zmq.Socket[bytes]) -> int:
    assert monitor.poll(SOON * 1000)
    return int.from_bytes(monitor.recv_multipart()[0][:2], "little")


def without_a_key(target: Target) -> None:
    _says_nothing(target, lambda client: None)


def with_another_jobs_keys(target: Target) -> None:
    theirs = KeyPair.of(JobSecret.new(), target.role)
    _says_nothing(target, lambda client: knock(client, theirs, theirs.public))


def with_a_key_of_its_own(target: Target) -> None:
    """It has found out the public key that the port listens with."""
    listens_with = KeyPair.of(target.secret, target.role).public
    _says_nothing(target, lambda client: knock(client, KeyPair.fresh(), listens_with))


def with_the_keys_of_another_role(target: Target) -> None:
    """A client of the launcher's store at a card's port, or the other way round."""
    other = KeyPair.of(target.secret, {"cards": "store", "store": "cards"}[target.role])
    _says_nothing(target, lambda client: knock(client, other, KeyPair.of(target.secret, target.role).public))


def replay(target: Target) -> None:
    """It stands between two that belong together, records what passes, and says it again."""
    said = _record(target)
    assert len(said) > 64 + 200, "the handshake was recorded"
    assert not [word for word in (b"replayed", b"recorded") if word in said], "it can be read"
    for cut in (len(said), len(said) // 2):
        with _line(target) as line:
            line.sendall(said[:cut])
            line.shutdown(socket.SHUT_WR)
            _until_hung_up(line)


def _record(target: Target) -> bytes:
    """What an admitted client says, up to its first message."""
    said = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server, _line(target) as onward:
        context = zmq.Context()
        client = context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        pair = KeyPair.of(target.secret, target.role)
        knock(client, pair, pair.public)
        client.setsockopt(zmq.ROUTING_ID, b"recorded")
        client.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        client.send(b"\x94\xa3set\x00\xa8replayed\xc4\x01x")
        incoming, _ = server.accept()
        back = threading.Thread(target=_pass_on, args=(onward, incoming), daemon=True)
        back.start()
        incoming.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while data := incoming.recv(1 << 16):
                said += data
                onward.sendall(data)
        context.destroy(linger=0)
        onward.shutdown(socket.SHUT_RDWR)
        back.join(SOON)
        incoming.close()
    return bytes(said)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)


def huge_headers(target: Target) -> None:
    """Frames that announce 2 GiB, before and after the greeting, of either mechanism."""
    announced = (1 << 31).to_bytes(8, "big")
    for mechanism in (b"CURVE", b"NULL"):
        for flags in (b"\2", b"\6", b"\0"):
            with _line(target) as line:
                line.sendall(GREETING + mechanism.ljust(20, b"\0") + bytes(32))
                with contextlib.suppress(OSError):  # hung up on in the middle
                    line.sendall(flags + announced + b"x" * 4096)
                    line.shutdown(socket.SHUT_WR)
                assert _until_hung_up(line) < 4096


def garbage(target: Target) -> None:
    """Other protocols, and noise."""
    noise = random.Random(5)
    for data in (b"GET / HTTP/1.1\r\n\r\n" * 9, b"\x16\3\1\2\0" + bytes(500), b"SSH-2.0-x\r\n" * 9, *_noise(noise)):
        with _line(target) as line, contextlib.suppress(OSError):
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            _until_hung_up(line)


def _noise(source: random.Random) -> Iterator[bytes]:
    for _ in range(20):
        yield source.randbytes(source.randrange(1, 2000))


def port_scan(target: Target) -> None:
    """Connections that say nothing and go, half of them with a reset."""
    for i in range(200):
        with _line(target) as line:
            if i % 2:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def many_connections(target: Target) -> None:
    """10,000 at once that stay; as many as this process may have, where that is less."""
    with contextlib.ExitStack() as lines:
        for _ in range(most_connections()):
            lines.enter_context(_line(target))


def most_connections() -> int:
    """The attacked one is in this process, too, so each connection costs two descriptors."""
    return min(CONNECTIONS, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500) // 2)


ATTACKS = (
    Attack("connects without a key", "refused in the handshake", without_a_key),
    Attack("connects with the keys of another job", "refused in the handshake", with_another_jobs_keys),
    Attack("knows the port's public key, and has a key of its own", "refused by the doorkeeper", with_a_key_of_its_own),
    Attack("has the keys of another role in the job", "refused by the doorkeeper", with_the_keys_of_another_role),
    Attack("replays what it has recorded, whole and in part", "refused in the handshake", replay),
    Attack("announces frames of 2 GiB", "hung up on, nothing allocated", huge_headers),
    Attack("speaks HTTP, TLS, SSH or noise", "hung up on", garbage),
    Attack("scans the port, 200 times", "nothing to be learnt but that it is open", port_scan),
    Attack("opens 10,000 connections and keeps them", "they get nowhere; those of cards come and go", many_connections),
)


def table() -> str:
    """The table in docs/security.md."""
    rows = [f"| {attack.title} | {attack.outcome} |" for attack in ATTACKS]
    return "\n".join(["| somebody | what becomes of it |", "|---|---|", *rows])
