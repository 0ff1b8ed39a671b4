"""Torch's store for all hosts, though it listens on the first host's loopback only: its connections pass through the
job's own lines, which are encrypted.

torch's TCPStore knows neither keys nor passwords, so it must not be reachable from outside. On every other host the
agent listens in its place, on that host's loopback; what arrives there travels to the first host's agent, which
connects to the store. A connection is known by the number of the host where it began and a count.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from itertools import count
from typing import Any

from superpod.interconnect.errors import InvalidValue
from superpod.launcher.pipes import Pump

BACKLOG = 4096  # cards that knock at torch's store at once
_AT_ONCE = 1 << 16  # bytes of one read


def loopback_listener() -> socket.socket:
    """A listening socket on 127.0.0.1, at a port that the kernel chooses. Raises InvalidValue."""
    try:
        return socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    except OSError as error:
        raise InvalidValue(
            f"address 127.0.0.1 must be there for torch's store, but: {error.strerror}; bring up the loopback device"
        ) from error


class Tunnel:
    """One host's end. Attributes: port: where connections that arrive are led; needed on the first host."""

    def __init__(
        self, pump: Pump, selector: selectors.BaseSelector, number: int, tell: Callable[[dict[str, Any]], None]
    ) -> None:
        self.port = 0
        self._pump, self._selector, self._number, self._tell = pump, selector, number, tell
        self._listener: socket.socket | None = None
        self._count = count()
        self._connections: dict[tuple[int, int], _Connection] = {}

    def listen(self) -> int:
        """Take connections on this host's loopback; returns the port."""
        self._listener = loopback_listener()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        port: int = self._listener.getsockname()[1]
        return port

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):  # who knocked has gone already
            line, _ = self._listener.accept()
            key = (self._number, next(self._count))
            self._add(key, line)
            self._say(key, "open")

    def _add(self, key: tuple[int, int], line: socket.socket) -> None:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(line, self._selector, lambda data: self._arrived(key, data))
        self._connections[key] = connection
        self._pump.watch(connection)

    def _arrived(self, key: tuple[int, int], data: bytes) -> None:
        self._say(key, "data" if data else "close", data)
        if not data:
            self._drop(key)

    def _say(self, key: tuple[int, int], what: str, data: bytes = b"") -> None:
        self._tell({"event": "tunnel", "origin": key[0], "id": key[1], "what": what, "data": data})

    def handle(self, order: dict[str, Any]) -> None:
        """What the other end has said."""
        match order:
            case {"origin": int(origin), "id": int(number), "what": str(what), "data": bytes(data)}:
                key = (origin, number)
            case _:
                return
        if what == "open" and self._number == 0:
            try:
                self._add(key, socket.create_connection(("127.0.0.1", self.port), timeout=5))
            except OSError:  # the store has ended: so has the connection
                self._say(key, "close")
        elif key in self._connections and what == "data":
            self._connections[key].write(data)
        elif key in self._connections and what == "close":
            self._drop(key)

    def _drop(self, key: tuple[int, int]) -> None:
        connection = self._connections.pop(key)
        self._pump.forget(connection)
        connection.close()

    def close(self) -> None:
        for key in list(self._connections):
            self._drop(key)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None


class _Connection:
    """A connection to the store, or of one that wants to reach it. `give(b"")`: it has ended."""

    def __init__(self, line: socket.socket, selector: selectors.BaseSelector, give: Callable[[bytes], None]) -> None:
        self._line, self._selector, self._give = line, selector, give
        self._line.setblocking(False)
        self._rest = b""
        self._writer: socket.socket | None = None  # the same connection, while the selector watches for room in it
        self.open = True

    def fileno(self) -> int:
        return self._line.fileno()

    def read(self) -> None:
        if not self.open:  # closed in this very round of the loop
            return
        try:
            data = self._line.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.open = bool(data)
        self._give(data)

    def write(self, data: bytes) -> None:
        self._rest += data
        self._write()

    def _write(self) -> None:
        try:
            while self._rest:
                self._rest = self._rest[self._line.send(self._rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self._rest = b""  # reading tells that it has ended
        if self._rest and self._writer is None:
            self._writer = self._line.dup()
            self._selector.register(self._writer, selectors.EVENT_WRITE, self._write)
        elif not self._rest:
            self._stop_watching()

    def _stop_watching(self) -> None:
        if self._writer is not None:
            self._selector.unregister(self._writer)
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        self.open = False
        self._stop_watching()
        self._line.close()
