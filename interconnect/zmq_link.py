"""ZeroMQ between cards: one ROUTER socket a card, which both listens and connects, so there is one thing to poll.

Routes. A connection that this card opened to peer p is called b"o" + p; one that p opened is called b"i" + p by the
routing id that p gave itself. That id carries a token which only those know who read this card's address, so another
job's card, or anything else that speaks ZeroMQ, is told apart and refused. The other name carries a secret: ZeroMQ ends
the process if somebody has taken a name that it is to give to a connection. Frames to p take the first route that
exists and stay on it, which keeps their order. The high-water marks are off: the mesh's credits bound what is under
way.

Between hosts everything is encrypted, names included, and only those get as far as naming themselves whom the
doorkeeper lets in (zmq_keys.py). That a host has vanished is noticed by the kernel: nothing comes from it for so long.

A frame is [route, u16 length + header + small payload] or [route, u16 length + header, payload].
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import struct
import time
from collections import deque
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import zmq

from superpod.interconnect.allocator import keep_freed_memory
from superpod.interconnect.connections import Connections
from superpod.interconnect.errors import BadFrame, InvalidValue
from superpod.interconnect.host import Address, host_id
from superpod.interconnect.interfaces import tcp_endpoint
from superpod.interconnect.keys import Keys
from superpod.interconnect.link import Arrival, Broken, Buffer, Refused
from superpod.interconnect.wire import MAX_HEADER
from superpod.interconnect.zmq_contexts import OwnContext
from superpod.interconnect.zmq_keys import FAILED, Doorkeeper, knock, let_in, listen

INLINE = 4096  # bytes; below it a frame of its own costs more than copying the payload behind the header
_PREFIX = struct.Struct("<H")
_MORE = int(zmq.SNDMORE)
_EVENT = struct.Struct("=Hi")
_TOKEN = 8  # bytes
_SETTLE = 1.0  # seconds that ZeroMQ's thread may need to be scheduled, on a machine with many cards
_VANISHED = 10  # seconds of silence after which the kernel gives up a connection between hosts; 3 are four lost packets
_MAX_FRAME = (64 << 20) + MAX_HEADER  # bytes; the largest segment that env.py allows


class ZmqLink:
    """A card's ZeroMQ socket. Satisfies the Link contract."""

    name = "zmq"
    fleeting = False

    def __init__(
        self,
        rank: int,
        *,
        directory: Path | None = None,
        transport: str = "ipc",
        between_hosts: str | None = None,
        keys: Keys | None = None,
    ) -> None:
        """Listen for other cards.

        Args:
            rank: this card.
            directory: the job's 0700 directory for ipc's socket file; None takes a name without a file.
            transport: "ipc", or "tcp" on the loopback interface at a port of the kernel's choice.
            between_hosts: this link is for cards of other hosts; the endpoint that it listens at (tcp_endpoint).
            keys: encrypt, and let in only those who have one of them.
        Raises:
            InvalidValue: it cannot listen there.
        """
        keep_freed_memory()
        self.rank, self.keys, self._far, self._host = rank, keys, between_hosts is not None, host_id()
        self._file: Path | None = None
        place = between_hosts or self._place(directory, transport)
        self._own, self._pid = OwnContext(self), os.getpid()
        self.context = self._own.context
        self._token, self._secret = secrets.token_bytes(_TOKEN), secrets.token_bytes(_TOKEN)
        self._socket = self.context.socket(zmq.ROUTER)
        base: Any = super(zmq.Socket, self._socket)  # pyzmq's compiled half: the other half takes its time with checks
        self._send, self._recv = base.send, base.recv
        self._configure()
        self._door = None if keys is None else Doorkeeper(self.context, keys.admits, logs=False)
        self._address = self._listen(place).text()
        self._monitor = self._make_monitor()
        self._routes: dict[int, bytes] = {}  # peer → the route that frames to it take
        self._senders: dict[bytes, int] = {}  # route → peer
        self._connections = Connections()
        self._broken: set[int] = set()
        self._kept_out: set[int] = set()  # peers that ended the connection before it had come to be
        self._turned_away: deque[Refused] = deque()
        self._over: list[str] = []  # endpoints that this card had connected to, and must not again
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._keep()
        self._reports = [(self._monitor, zmq.POLLIN)]
        self._sources = [(self._socket, zmq.POLLIN), *self._reports]
        self._watched: set[int] = set()
        self._poll = select.epoll()
        for fd in (self._socket.FD, self._monitor.FD, self._wake_fd):
            self._poll.register(fd, select.EPOLLIN)
        self._midway = self._closed = False  # midway: parts of a message are with ZeroMQ, and the last one is not

    def _keep(self) -> None:
        """What ends if nobody closes this link."""
        if self._door is not None:
            self._own.keep(self._door.close)
        self._own.keep(self._monitor.close, self._socket.close, partial(os.close, self._wake_fd))

    def _configure(self) -> None:
        for option, value in (
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.SNDHWM, 0),
            (zmq.RCVHWM, 0),
            (zmq.LINGER, 0),
            (zmq.BACKLOG, 4096),
            (zmq.RECONNECT_IVL, 20),  # ms; only until the peer listens, a broken connection is given up
            (zmq.RECONNECT_IVL_MAX, 500),  # ms
            (zmq.MAXMSGSIZE, _MAX_FRAME),
            *(_BETWEEN_HOSTS if self._far else ()),
        ):
            self._socket.setsockopt(option, value)

    def _place(self, directory: Path | None, transport: str) -> str:
        """Where to listen within the host."""
        if transport == "tcp":
            return tcp_endpoint("127.0.0.1")
        if directory is None:
            return f"ipc://@superpod-{secrets.token_hex(8)}"
        name = self._file = directory / f"r{self.rank}-{secrets.token_hex(4)}"
        if len(os.fsencode(name)) > zmq.IPC_PATH_MAX_LEN:
            raise InvalidValue(
                f"socket path {name} is longer than the {zmq.IPC_PATH_MAX_LEN} bytes that the system allows; "
                "set TMPDIR or XDG_RUNTIME_DIR to a shorter directory"
            )
        return f"ipc://{name}"

    def _listen(self, wanted: str) -> Address:
        if self.keys is not None:
            let_in(self._socket, self.keys.own)
        if wanted.startswith("ipc:"):
            self._socket.setsockopt(zmq.IPC_FILTER_UID, os.geteuid())
        try:
            endpoint = listen(self._socket, wanted, first=self.rank)  # a range has room for all: each begins elsewhere
        except zmq.ZMQError as error:
            self.context.destroy(linger=0)
            raise InvalidValue(f"rank {self.rank} cannot listen at {wanted}: {error.strerror}") from error
        if self._door is not None:
            self._door.start()
        return Address(endpoint, self._token.hex(), self._host, "" if self.keys is None else self.keys.own.public.hex())

    def _make_monitor(self) -> zmq.Socket[bytes]:
        """Where ZeroMQ tells what becomes of connections."""
        name = f"inproc://monitor-{id(self)}"
        kinds = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
        self._socket.monitor(name, kinds if self.keys is None else kinds | FAILED)
        monitor = self.context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.RCVHWM, 0)  # or ZeroMQ's own thread, and with it every message, would wait for a reader
        monitor.connect(name)
        return monitor

    @property
    def address(self) -> str:
        return self._address

    def connect(self, peer: int, address: str) -> None:
        endpoint, token, host, key = Address.parse(address)
        if host != self._host and not self._far:
            raise InvalidValue(other_host(peer, endpoint))
        if (self.keys is None) != (not key):
            raise InvalidValue(
                f"rank {peer} {'encrypts' if key else 'does not encrypt'} what goes between hosts, rank {self.rank} "
                f"{'does not' if key else 'does'}; set SUPERPOD_ENCRYPTION alike for all cards"
            )
        route = b"o" + self._secret + b"%d" % peer
        self._socket.setsockopt(zmq.ROUTING_ID, b"i" + bytes.fromhex(token) + b"%d" % self.rank)
        self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, route)
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        if self.keys is not None:
            knock(self._socket, self.keys.own, self.keys.of_peer(key))
        self._socket.connect(endpoint)
        self._connections.opened(endpoint, peer)
        self._senders[route] = peer
        self._routes[peer] = route

    def reaches(self, peer: int) -> bool:
        return peer in self._routes

    def peers(self) -> list[int]:
        return sorted(self._routes)

    def post(self, peer: int, header: bytes, payload: Buffer) -> None:
        if peer in self._broken:
            return
        send = self._send
        if self._midway:
            self._end_message()
        self._midway = True
        try:
            send(self._routes[peer], _MORE)
        except zmq.ZMQError as error:
            self._midway = False
            if error.errno == errno.EHOSTUNREACH:  # the peer's own connection has just broken: `take` will tell
                return
            raise
        first = _PREFIX.pack(len(header)) + header
        if len(payload) <= INLINE:
            send(first + payload)
        else:
            send(first, _MORE)
            send(payload)
        self._midway = False

    def _end_message(self) -> None:
        """An interrupt has torn a message: end it, or the next one would be its rest. The peer will refuse it."""
        with contextlib.suppress(zmq.ZMQError):  # it had not begun, or had ended: then this is to nobody
            self._send(b"")
        self._midway = False

    def take(self) -> Arrival | Refused | Broken | None:
        while ready := zmq.zmq_poll(self._sources, 0):  # a failing recv raises, which costs three times as much
            if ready[0][0] is self._monitor:
                self._hear()  # and look at the socket again: what a peer sent before its connection broke comes first
                continue
            route = self._recv()
            parts = [self._recv(0, False)]
            while parts[-1].more:
                parts.append(self._recv(0, False))
            if (event := self._sort(route, parts)) is not None:
                return event
        while self._over:  # only now: it drops what came on the connection and was not taken
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(self._over.pop())
        if self._turned_away:
            return self._turned_away.popleft()
        if (broken := self._connections.lost(time.monotonic())) is not None:
            self._broken.add(broken.peer)
            if broken.peer in self._kept_out:
                return Broken(broken.peer, _KEPT_OUT)
        return broken

    def _sort(self, route: bytes, parts: list[zmq.Frame]) -> Arrival | Refused | None:
        peer = self._senders.get(route)
        if peer is None:
            peer = self._admit(route, parts[0])
        if peer is None:
            self._hear()
            self._connections.foreign(_descriptor(parts[0]))
            return Refused(
                BadFrame(f"message from an unknown sender {route[:32]!r}: it does not know this card's token")
            )
        if peer in self._broken:
            return None
        head = parts[0].buffer
        if len(head) < 2 or len(parts) > 2:
            return Refused(BadFrame(f"message of {len(parts)} parts from rank {peer} is not superpod's"))
        end = 2 + int.from_bytes(head[:2], "little")
        if end > len(head) or (len(parts) == 2 and end != len(head)):
            return Refused(BadFrame(f"torn message from rank {peer}: header of {end - 2} B in {len(head)} B"))
        return Arrival(peer, bytes(head[2:end]), head[end:] if len(parts) == 1 else parts[1].buffer)

    def _admit(self, route: bytes, frame: zmq.Frame) -> int | None:
        """The peer behind a route that is seen for the first time, if it knows the token."""
        prefix = b"i" + self._token
        digits, descriptor = route[len(prefix) :], _descriptor(frame)
        if not route.startswith(prefix) or not digits.isdigit() or descriptor < 0:
            return None
        peer = int(digits)
        self._senders[route] = peer
        self._routes.setdefault(peer, route)
        self._hear()
        self._connections.identified(descriptor, peer, time.monotonic())
        return peer

    def _hear(self) -> None:
        """Take in what has become of connections."""
        now = time.monotonic()
        while zmq.zmq_poll(self._reports, 0):
            event, name = self._monitor.recv_multipart()
            kind, value = _EVENT.unpack(event)
            endpoint = name.decode(errors="replace")
            if kind == zmq.EVENT_ACCEPTED:
                self._connections.accepted(value)
                continue
            if kind & FAILED:  # that it broke comes after it
                if (peer := self._connections.leads_to(endpoint)) is not None:
                    self._kept_out.add(peer)
                continue
            if self.keys is not None and self._connections.unnamed(endpoint, value):
                self._turned_away.append(Refused(BadFrame("connection from somebody who showed no key of this job")))
            refused = kind == zmq.EVENT_CONNECT_RETRIED
            over = (
                self._connections.refused(endpoint, now) if refused else self._connections.broke(endpoint, value, now)
            )
            if over:
                self._over.append(endpoint)

    def fileno(self) -> int:
        """What is readable when `take` may have something."""
        return self._poll.fileno()

    def patience(self, seconds: float) -> float:
        """How much of a wait of `seconds` may pass before `take` is to be called though nothing has happened."""
        if (look_at := self._connections.look_at) < inf:
            seconds = min(seconds, look_at - time.monotonic())
        return max(seconds, 0)

    def wait_for(self, fd: int) -> None:
        """From now on `wait` also returns while `fd` is readable."""
        self._poll.register(fd, select.EPOLLIN)

    def wait(self, seconds: float) -> bool:
        watched = False
        for fd, _ in self._poll.poll(self.patience(seconds)):
            if fd in self._watched:
                watched = True
            elif fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
        return watched

    def wake(self) -> None:
        if not self._closed:
            os.eventfd_write(self._wake_fd, 1)

    def watch(self, fd: int) -> None:
        self._watched.add(fd)
        self._poll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)

    def close(self, linger: float) -> None:
        if self._closed:
            return
        self._closed = True
        self._own.is_closed_by_owner()
        if os.getpid() != self._pid:  # a forked child must leave its parent's context alone
            return
        if linger > 0:
            self._settle()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        if self._door is not None:
            self._door.close()
        self._socket.close(linger=int(linger * 1000))
        self.context.destroy()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        self._poll.close()
        os.close(self._wake_fd)

    def _settle(self) -> None:
        """Let ZeroMQ's thread write what was posted, and drop what is for cards that are gone: it would linger for it.

        That thread takes orders one by one: when it has found that nobody listens at an address made up now, it has
        tried to write everything that was posted before. When it has tried that address twice more, by its clock, it
        has been through all its connections in between and noticed which are gone.
        """
        nowhere = f"ipc://@superpod-{secrets.token_hex(8)}"
        self._socket.setsockopt(zmq.RECONNECT_IVL, 1)
        self._socket.connect(nowhere)
        end = time.monotonic() + _SETTLE
        while self._connections.refusals[nowhere] < 3 and (rest := end - time.monotonic()) > 0:
            zmq.zmq_poll(self._reports, int(rest * 1000) + 1)
            self._hear()
        # nobody listens there, now or for good, or the connection broke: too late for all of them
        for endpoint in (*self._connections.refusals, *self._over):
            with contextlib.suppress(zmq.ZMQError):
                self._socket.disconnect(endpoint)


def _descriptor(frame: zmq.Frame) -> int:
    """Of the connection that a message came on; -1 if it speaks a ZeroMQ too old to say, or something like it."""
    try:
        return int(frame.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1


def other_host(peer: int, endpoint: str) -> str:
    """Why a card that only listens within its host cannot meet `peer`."""
    return (
        f"rank {peer} is on another host ({endpoint}), and this card was not told that there is one; start with "
        "superpod-run --hosts or torchrun, or set LOCAL_WORLD_SIZE to the number of cards of this host"
    )


_KEPT_OUT = "ended the connection before it had come to be: it died, or it has another SUPERPOD_SECRET"
_BETWEEN_HOSTS = (
    (zmq.TCP_KEEPALIVE, 1),
    (zmq.TCP_KEEPALIVE_IDLE, 1),  # seconds
    (zmq.TCP_KEEPALIVE_INTVL, 1),  # seconds
    (zmq.TCP_KEEPALIVE_CNT, _VANISHED - 1),
    (zmq.TCP_MAXRT, _VANISHED * 1000),  # ms
)
