"""The lines between superpod-bench and the ranks that it measures: a Unix socket, or tcp if they are on several hosts.

The Unix socket has a name and no file, so that nothing is left of it, whatever ends superpod-bench.

Whoever connects is asked a question that only those can answer who know the run's token, which ranks find in their
environment; the token itself is not sent. Who cannot answer is hung up on, and counts for nothing. Afterwards a line
carries orders and answers, JSON, one in a line of text, in clear.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import select
import socket
import time
from typing import Any

from superpod.interconnect.env import bench_token
from superpod.interconnect.interfaces import tcp_endpoint

Answer = dict[str, Any]

_LONGEST = 1 << 16  # bytes of an answer
_HESITATION = 10.0  # seconds that somebody who has connected may take to answer
_SILENCE = 5  # seconds without a sign of life after which another host counts as gone
_TCP, _NAME = "tcp://", "@"


class Line:
    """To one rank: sends orders, reads answers."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._rest = connection, b""

    def fileno(self) -> int:
        return self._connection.fileno()

    def send(self, order: bytes) -> None:
        self._connection.sendall(order)

    def receive(self) -> Answer | None:
        """An answer, if a whole one has come. Raises EOFError when the rank is gone, ValueError for what is none."""
        more = self._connection.recv(_LONGEST)
        if not more:
            raise EOFError
        self._rest += more
        if len(self._rest) > _LONGEST:
            raise ValueError(f"an answer of more than {_LONGEST} bytes")
        if not self._rest.endswith(b"\n"):
            return None
        answer, self._rest = json.loads(self._rest), b""
        if not isinstance(answer, dict):
            raise ValueError(f"an answer that is a {type(answer).__name__}")
        return answer

    def close(self) -> None:
        self._connection.close()


class Door:
    """Where ranks come in."""

    def __init__(self, address: str, backlog: int) -> None:
        """`address`: of this host, for ranks on several; "" for a Unix socket."""
        self.token = secrets.token_hex(32)
        self._most = 2 * backlog + 16  # who has not answered yet; with more of them the first is hung up on
        self._strangers: dict[int, tuple[Line, str, float]] = {}
        if address:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._listener = socket.create_server((address, 0), family=family, backlog=backlog)
            self.address = tcp_endpoint(address, str(self._listener.getsockname()[1]))
        else:
            self.address = f"{_NAME}superpod-bench-{secrets.token_hex(8)}"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(_without_file(self.address))
            self._listener.listen(backlog)

    def arrivals(self, seconds: float) -> list[tuple[Line, Answer]]:
        """Ranks that have come in, and what they say of themselves; after `seconds` at the latest, perhaps none."""
        found, poll = [], select.poll()
        for number in (self._listener.fileno(), *self._strangers):
            poll.register(number, select.POLLIN)
        for number, _ in poll.poll(seconds * 1000):
            if number == self._listener.fileno():
                self._ask()
            elif (hello := self._heard(number)) is not None:
                found.append((self._strangers.pop(number)[0], hello))
        late = [number for number, (_, _, since) in self._strangers.items() if time.monotonic() > since + _HESITATION]
        for number in late:
            self._hang_up(number)
        return found

    def _ask(self) -> None:
        connection, _ = self._listener.accept()
        if connection.family != socket.AF_UNIX:
            _keep_alive(connection)
        if len(self._strangers) >= self._most:
            self._hang_up(next(iter(self._strangers)))
        line, question = Line(connection), secrets.token_hex(16)
        self._strangers[line.fileno()] = line, question, time.monotonic()
        with contextlib.suppress(OSError):  # it has gone: then it is heard
            line.send(question.encode() + b"\n")

    def _heard(self, number: int) -> Answer | None:
        """What a stranger says who knows the token."""
        line, question, _ = self._strangers[number]
        try:
            hello = line.receive()
        except (EOFError, OSError, ValueError):
            self._hang_up(number)
            return None
        if hello is not None and not hmac.compare_digest(str(hello.get("proof")), proof(self.token, question)):
            self._hang_up(number)
            return None
        return hello

    def _hang_up(self, number: int) -> None:
        self._strangers.pop(number)[0].close()

    def close(self) -> None:
        for number in list(self._strangers):
            self._hang_up(number)
        self._listener.close()


def proof(token: str, question: str) -> str:
    """What shows that one knows the token."""
    return hmac.new(token.encode(), question.encode(), "sha256").hexdigest()


def come_in(address: str) -> tuple[socket.socket, str]:
    """A rank's end of a line to the Door at this address, and its proof, which must go with the first words."""
    if address.startswith(_TCP):
        host, _, port = address.removeprefix(_TCP).rpartition(":")
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=_HESITATION)
        _keep_alive(connection)
    else:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(_without_file(address))
    connection.settimeout(_HESITATION)
    question = b""
    while not question.endswith(b"\n"):
        more = connection.recv(1)  # and not a byte of what follows
        if not more:
            raise EOFError(f"superpod-bench at {address} has hung up")
        question += more
    connection.settimeout(None)
    return connection, proof(bench_token(), question.decode().strip())


def _without_file(address: str) -> str:
    """A socket's name as the system knows it."""
    return "\0" + address.removeprefix(_NAME)


def _keep_alive(connection: socket.socket) -> None:
    """Orders leave at once, and who vanishes without a word is noticed."""
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _SILENCE),
    ):
        connection.setsockopt(level, option, value)
