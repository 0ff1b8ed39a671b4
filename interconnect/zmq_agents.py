"""The channel between the head of a job and the agents of other hosts, where no ssh carries it: ZeroMQ over tcp.

With the job's secret it is encrypted, and only those who know the secret get in (zmq_keys.py). Messages are bytes; what
they mean is the launcher's business.
"""

from __future__ import annotations

import hmac
import secrets
import select

import zmq

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_contexts import OwnContext
from superpod.interconnect.zmq_keys import Doorkeeper, KeyPair, knock, let_in, listen

MAX_MESSAGE = 17 << 20  # bytes
_ROLE = "agents"
_OPTIONS = ((zmq.LINGER, 1000), (zmq.SNDHWM, 0), (zmq.RCVHWM, 0), (zmq.MAXMSGSIZE, MAX_MESSAGE))


class AgentDesk:
    """The head's end, for all agents. Poll `fileno()`, then call `read()`. Attributes: endpoint: where it listens."""

    def __init__(self, endpoint: str, secret: JobSecret | None) -> None:
        """`endpoint`: tcp://address:port, also with port 0 or a range. Raises InvalidValue when it is not free."""
        self._own = OwnContext(self)
        self._context = self._own.context
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (*_OPTIONS, (zmq.BACKLOG, 1024), (zmq.ROUTER_HANDOVER, 1)):
            self._socket.setsockopt(option, value)
        pair = None if secret is None else KeyPair.of(secret, _ROLE)
        self._door = Doorkeeper(
            self._context, lambda key: pair is not None and hmac.compare_digest(key, pair.public), logs=pair is not None
        )
        self._door.watch(self._socket)
        self._own.keep(self._door.close, self._socket.close)
        if pair is not None:
            let_in(self._socket, pair)
        self._connections: dict[bytes, int] = {}  # agent → the descriptor that it last spoke by
        self._broken: list[bytes] = []
        try:
            self.endpoint = listen(self._socket, endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise InvalidValue(
                f"the agents' endpoint {endpoint} must be free on this host: {error.strerror}; name another port"
            ) from error
        self._poll = select.epoll()
        for descriptor in (self._socket.FD, *self._door.descriptors):
            self._poll.register(descriptor, select.EPOLLIN)

    def fileno(self) -> int:
        return self._poll.fileno()

    def read(self) -> list[tuple[bytes, bytes]]:
        """What has arrived: the agents' names, which they have chosen, and their messages. Never blocks."""
        self._door.serve()
        ended = set(self._door.ended)
        found: list[tuple[bytes, bytes]] = []
        while True:
            try:
                name, *parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            self._door.spoke(parts[-1])
            self._connections[name.bytes] = int(parts[-1].get(zmq.SRCFD))
            if len(parts) == 1:
                found.append((name.bytes, parts[0].bytes))
        broken = [agent for agent, descriptor in self._connections.items() if ended and descriptor in ended]
        for agent in broken:
            del self._connections[agent]
        self._broken += broken
        return found

    def broken(self) -> list[bytes]:
        """Agents whose connection has been seen to break since the last time. They may come back."""
        broken, self._broken = self._broken, []
        return broken

    def send(self, name: bytes, message: bytes) -> None:
        """To an agent that has spoken before; nothing happens if it has gone. Call `read` soon: see `has_more`."""
        self._socket.send_multipart([name, message])

    def has_more(self) -> bool:
        """Whether something has arrived that `fileno` may not tell, because a sending came between."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        """What was sent leaves, within a second."""
        self._own.is_closed_by_owner()
        self._poll.close()
        self._socket.disable_monitor()
        self._door.close()
        self._socket.close()
        self._context.term()


class AgentCall:
    """An agent's end. Poll `fileno()`, then call `read()`. The head may start later."""

    def __init__(self, endpoints: list[str], secret: JobSecret | None) -> None:
        """`endpoints`: where the head listens, or may listen: with a secret, nobody else can be mistaken for it."""
        self._own = OwnContext(self)
        self._context = self._own.context
        self._socket = self._context.socket(zmq.DEALER)
        self._own.keep(self._socket.close)
        more = ((zmq.IMMEDIATE, 1), (zmq.RECONNECT_IVL, 100), (zmq.RECONNECT_IVL_MAX, 1000))
        for option, value in (*_OPTIONS, *more):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.ROUTING_ID, b"a" + secrets.token_bytes(16))
        self._socket.setsockopt(zmq.IPV6, any("[" in endpoint for endpoint in endpoints))
        if secret is not None:
            pair = KeyPair.of(secret, _ROLE)
            knock(self._socket, pair, pair.public)
        try:
            for endpoint in endpoints:
                self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise InvalidValue(f"endpoint {endpoint} must be host:port: {error.strerror}") from error

    def fileno(self) -> int:
        return int(self._socket.FD)

    def read(self) -> list[bytes]:
        """What has arrived. Never blocks."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return found

    def send(self, message: bytes) -> bool:
        """Whether it could be sent: nobody may be there yet."""
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def has_more(self) -> bool:
        """Whether something has arrived that `fileno` may not tell, because a sending came between."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        """What was sent leaves, within a second."""
        self._own.is_closed_by_owner()
        self._socket.close()
        self._context.term()
