"""What an attacker on the network can do to a port of a job: one function an attack, and the table that docs/ shows.

Every attack gets the port of a card, of the launcher's store or of the agents' channel, knows the protocol and, where
it says so, more. It returns what it has seen, in words for the table. As a program, from any host:

    SUPERPOD_SECRET=... python attacks.py HOST PORT ROLE ATTACK...    prints a line of JSON: attack → what it has seen
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import zmq
from cards import SOON

from doc_tables import DocTable
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_keys import KeyPair, knock

GREETING = b"\xff" + bytes(8) + b"\x7f\3\0"
FULL_GREETING, WELCOME = 64, 2 + 168  # bytes: what CURVE's server says to anybody who says hello
CONNECTIONS = 10_000
PLACES = ("a card", "the launcher's store", "the agents' channel")
TABLE = DocTable("security.md", "attacks", "somebody", (*PLACES, "in the log", "the job"))

_HANDSHAKE, _DOORKEEPER, _HUNG_UP = "refused in the handshake", "refused by the doorkeeper", "hung up on"


class Target(NamedTuple):
    """What is attacked, and what is known of it: `role` names its keys."""

    port: int
    secret: JobSecret
    role: str
    host: str = "127.0.0.1"

    @property
    def endpoint(self) -> str:
        return f"tcp://{self.host}:{self.port}"


class Attack(NamedTuple):
    """One row of the table. `run` returns what became of it."""

    title: str
    run: Callable[[Target], str]


@contextlib.contextmanager
def _line(target: Target) -> Iterator[socket.socket]:
    with socket.create_connection((target.host, target.port), SOON) as line:
        yield line


def _until_hung_up(line: socket.socket) -> int:
    """How many bytes the other end says before it hangs up."""
    heard = 0
    with contextlib.suppress(ConnectionError):
        while data := line.recv(1 << 16):
            heard += len(data)
    return heard


def _says_nothing(target: Target, prepare: Callable[[zmq.Socket[bytes]], None]) -> str:
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
        return _DOORKEEPER if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH else _HANDSHAKE
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


def without_a_key(target: Target) -> str:
    return _says_nothing(target, lambda client: None)


def with_another_jobs_keys(target: Target) -> str:
    theirs = KeyPair.of(JobSecret.new(), target.role)
    return _says_nothing(target, lambda client: knock(client, theirs, theirs.public))


def with_a_key_of_its_own(target: Target) -> str:
    """It has found out the public key that the port listens with."""
    listens_with = KeyPair.of(target.secret, target.role).public
    return _says_nothing(target, lambda client: knock(client, KeyPair.fresh(), listens_with))


def with_the_keys_of_another_role(target: Target) -> str:
    """A client of the launcher's store or an agent at a card's port, or the other way round."""
    other = KeyPair.of(target.secret, {"cards": "store", "store": "agents", "agents": "cards"}[target.role])
    return _says_nothing(target, lambda client: knock(client, other, KeyPair.of(target.secret, target.role).public))


def replay(target: Target) -> str:
    """It stands between two that belong together, records what passes, and says it again."""
    said = _record(target)
    assert len(said) > 64 + 200, "the handshake was recorded"
    assert not [word for word in (b"replayed", b"recorded") if word in said], "it can be read"
    for cut in (len(said), len(said) // 2):
        with _line(target) as line:
            line.sendall(said[:cut])
            line.shutdown(socket.SHUT_WR)
            assert _until_hung_up(line) <= FULL_GREETING + WELCOME, "it was let in"
    return _HANDSHAKE


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


def huge_headers(target: Target) -> str:
    """Frames that announce 2 GiB, before and after the greeting, of either mechanism."""
    announced = (1 << 31).to_bytes(8, "big")
    for mechanism in (b"CURVE", b"NULL"):
        for flags in (b"\2", b"\6", b"\0"):
            with _line(target) as line:
                line.sendall(GREETING + mechanism.ljust(20, b"\0") + bytes(32))
                with contextlib.suppress(OSError):  # hung up on in the middle
                    line.sendall(flags + announced + b"x" * 4096)
                    line.shutdown(socket.SHUT_WR)
                assert _until_hung_up(line) <= FULL_GREETING
    return _HUNG_UP


def garbage(target: Target) -> str:
    """Other protocols, and noise."""
    noise = random.Random(5)
    for data in (b"GET / HTTP/1.1\r\n\r\n" * 9, b"\x16\3\1\2\0" + bytes(500), b"SSH-2.0-x\r\n" * 9, *_noise(noise)):
        with _line(target) as line, contextlib.suppress(OSError):
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            assert _until_hung_up(line) <= FULL_GREETING
    return _HUNG_UP


def _noise(source: random.Random) -> Iterator[bytes]:
    for _ in range(20):
        yield source.randbytes(source.randrange(1, 2000))


def port_scan(target: Target) -> str:
    """Connections that say nothing and go, half of them with a reset; one hears what is said to it."""
    with _line(target) as line:
        heard = line.recv(4096)
    assert 0 < len(heard) <= FULL_GREETING, heard
    for i in range(200):
        with _line(target) as line:
            if i % 2:
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return "an open port of ZeroMQ's"


_HOLD = """
import resource, socket, sys
host, (count, port) = sys.argv[1], map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
lines = [socket.create_connection((host, port), 60) for _ in range(count)]
print("holds", flush=True)
sys.stdin.read()
heard = 0
for line in lines:
    line.setblocking(False)
    try:
        heard = max(heard, len(line.recv(4096)))
    except (BlockingIOError, ConnectionError):
        pass
print(heard)
"""


def many_connections(target: Target) -> str:
    """10,000 at once, from a process of their own, that stay; as many as can be, where that is less."""
    command = [sys.executable, "-c", _HOLD, target.host, str(most_connections()), str(target.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as attacker:
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == "holds\n"
        heard, _ = attacker.communicate("", 3 * SOON)
    assert int(heard) <= FULL_GREETING
    return "kept waiting, then hung up on"


def most_connections() -> int:
    """How many the attacked one, this process, can have, and the attacker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(CONNECTIONS, soft - 500, hard - 50)


ATTACKS = (
    Attack("connects without a key", without_a_key),
    Attack("connects with the keys of another job", with_another_jobs_keys),
    Attack("knows the port's public key, and has a key of its own", with_a_key_of_its_own),
    Attack("has the keys of another role in the job", with_the_keys_of_another_role),
    Attack("replays what it has recorded, whole and in part", replay),
    Attack("announces frames of 2 GiB", huge_headers),
    Attack("speaks HTTP, TLS, SSH or noise", garbage),
    Attack("scans the port, 200 times", port_scan),
    Attack("opens 10,000 connections and keeps them", many_connections),
)


def main(host: str, port: str, role: str, *names: str) -> None:
    target = Target(int(port), JobSecret.from_text(os.environ["SUPERPOD_SECRET"]), role, host)
    print(json.dumps({name: globals()[name](target) for name in names}))


if __name__ == "__main__":
    main(*sys.argv[1:])
