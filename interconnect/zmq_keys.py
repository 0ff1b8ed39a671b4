"""ZeroMQ's encryption (CURVE) and who is let in (ZAP): only those who have one of the job's keys.

A socket that listens has a pair of keys; whoever connects must know its public half, or does not get past the first
message, and must have a key of its own that the doorkeeper lets in. All that is sent, names included, is encrypted,
under keys that are made for each connection and forgotten with it.

Source: CurveZMQ, https://rfc.zeromq.org/spec/26; ZAP, https://rfc.zeromq.org/spec/27.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils import z85

from superpod.interconnect.interfaces import candidates
from superpod.interconnect.secret import JobSecret

log = logging.getLogger("superpod")

_ZAP = "inproc://zeromq.zap.01"
FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
"""What a monitor tells of a connection that did not come to be; but not of one that speaks another protocol."""
_END_WITHIN = 1.0  # seconds that the doorkeeper's thread has


class KeyPair:
    """A pair of Curve25519 keys in ZeroMQ's text form, 40 characters each. Its repr hides the private one."""

    __slots__ = ("private", "public")

    def __init__(self, private: bytes) -> None:
        self.private = private
        self.public: bytes = zmq.curve_public(private)

    @staticmethod
    def fresh() -> KeyPair:
        """One that nobody has had before."""
        return KeyPair(zmq.curve_keypair()[1])

    @staticmethod
    def of(secret: JobSecret, role: str) -> KeyPair:
        """The pair that all who know the secret use in one role, such as "cards" or "store"."""
        return KeyPair(z85.encode(secret.key(f"curve {role}")))

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.decode()})"


def let_in(socket: zmq.Socket[Any], pair: KeyPair) -> None:
    """What this socket binds from now on is for those whom the context's doorkeeper lets in, and nobody without one."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.private)
    socket.setsockopt(zmq.ZAP_DOMAIN, b"superpod")
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def knock(socket: zmq.Socket[Any], pair: KeyPair, server: bytes) -> None:
    """What this socket connects to from now on must have the private half of `server`; it is shown `pair`."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, server)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.private)


def listen(socket: zmq.Socket[Any], endpoint: str, first: int = 0) -> str:
    """Bind at an endpoint, or the first free port of its range from the `first`-th on; returns where that is.

    Raises zmq.ZMQError if it cannot be.
    """
    failure: zmq.ZMQError | None = None
    socket.setsockopt(zmq.IPV6, "[" in endpoint)  # else an IPv4 address would be told as one of IPv6
    for one in candidates(endpoint, first):
        try:
            socket.bind(one)
        except zmq.ZMQError as error:
            failure = error
        else:
            return socket.get_string(zmq.LAST_ENDPOINT)
    assert failure is not None
    raise failure


class Comings:
    """Tells from what a monitor hears whether somebody was turned away.

    Of who speaks another protocol it hears only that a connection has ended, which may as well have been an admitted
    one's. Those who have spoken are known by their descriptors, and of the silent ones that were admitted the number.
    """

    def __init__(self) -> None:
        self._speakers = set[int]()  # descriptors
        self._silent = 0  # connections that were admitted and have not spoken
        self._told = False  # of the connection that ends next, that it did not come to be

    def spoke(self, descriptor: int) -> None:
        if descriptor not in self._speakers:
            self._speakers.add(descriptor)
            self._silent -= 1

    def heard(self, kind: int, value: int) -> bool:
        """Whether this event is that of a connection that was turned away. `value`: a descriptor, or why it failed."""
        if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._silent += 1
        elif kind & FAILED:
            self._told = True
            return True
        elif self._told:
            self._told = False
        elif value in self._speakers:
            self._speakers.discard(value)
        elif self._silent > 0:
            self._silent -= 1
        else:
            return True
        return False


class Doorkeeper:
    """Says for all sockets of a context who is let in. Made before they bind.

    Poll `descriptors` and call `serve`, which never blocks; or call `start`, and a thread does. That thread waits in C
    and needs the interpreter only when somebody knocks.
    """

    def __init__(self, context: zmq.Context[Any], admits: Callable[[bytes], bool], *, logs: bool = True) -> None:
        """A door that nobody has come to yet.

        Args:
            admits: whether somebody with this public key (40 characters) is let in; called by whoever serves.
            logs: the first one who is turned away is logged here; False: whoever owns the sockets does it.
        """
        self._admits, self._logs = admits, logs
        self.refused = 0  # how often somebody was turned away
        self.ended = list[int]()  # descriptors of connections that have, at sockets that are watched; for who wants it
        self._came = Comings()
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ZAP)
        self._monitors: list[zmq.Socket[bytes]] = []
        self._thread: threading.Thread | None = None
        self._end = -1

    def watch(self, socket: zmq.Socket[Any]) -> None:
        """Hear of those who do not get as far as showing a key at this socket; before it binds."""
        name = f"inproc://door-{id(socket)}"
        socket.monitor(name, FAILED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        monitor = socket.context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.RCVHWM, 0)  # or ZeroMQ's own thread would wait for a reader
        monitor.connect(name)
        self._monitors.append(monitor)

    @property
    def descriptors(self) -> list[int]:
        """What is readable when there may be something to serve."""
        return [int(socket.FD) for socket in (self._socket, *self._monitors)]

    def spoke(self, frame: zmq.Frame) -> None:
        """A message, of which this is a frame, has come through a socket that is watched."""
        self._came.spoke(int(frame.get(zmq.SRCFD)))

    def serve(self) -> None:
        """Answer everybody who has knocked. The first one who is turned away is logged."""
        before = self.refused
        self.ended.clear()
        for monitor in self._monitors:
            while zmq.zmq_poll([(monitor, zmq.POLLIN)], 0):
                kind, value = struct.unpack("=HI", monitor.recv_multipart()[0])
                self.refused += self._came.heard(kind, value)
                if kind == zmq.EVENT_DISCONNECTED:
                    self.ended.append(value)
        self._answer_all()
        if self._logs and not before and self.refused:
            log.warning("somebody without a key of this job has been turned away, and will be without further words")

    def _answer_all(self) -> None:
        while True:
            try:
                request = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._socket.send_multipart(self._answer(request))

    def _answer(self, request: list[bytes]) -> list[bytes]:
        version, number, _, address, _, mechanism, *credentials = request
        admitted = False
        if mechanism == b"CURVE" and len(credentials) == 1 and len(credentials[0]) == 32:
            try:
                admitted = self._admits(z85.encode(credentials[0]))
            except Exception as error:  # noqa: BLE001  who cannot be looked up is not let in, and the door goes on
                log.warning("somebody at %s was not let in: %s", address.decode(errors="replace"), error)
        if admitted:
            return [version, number, b"200", b"OK", b"", b""]
        self.refused += not self._monitors  # which tell of it, too
        return [version, number, b"400", b"no key of this job", b"", b""]

    def start(self) -> None:
        """Serve in a thread from now on, until `close`."""
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._loop, name="superpod doorkeeper", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        incoming = [(self._socket, zmq.POLLIN), (self._end, zmq.POLLIN)]
        with contextlib.suppress(zmq.ContextTerminated):
            while all(ready is not self._end for ready, _ in zmq.zmq_poll(incoming, -1)):
                self.serve()
        self._socket.close()

    def close(self) -> None:
        """Before the context is. Not in a forked child."""
        if self._thread is None:
            for socket in (self._socket, *self._monitors):
                socket.close()
            return
        os.eventfd_write(self._end, 1)
        self._thread.join(_END_WITHIN)
        if not self._thread.is_alive():
            os.close(self._end)
