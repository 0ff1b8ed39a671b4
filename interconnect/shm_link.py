"""Memory semantics within a host: frames lie in shared memory, where the peer reads them. No copy through a socket.

Each connection has two rings, one a direction, in memory that whoever connects makes and hands over through a Unix
socket (shm_sockets.py, shm_connection.py, shm_ring.py). A card's inbox (shm_inbox.py) says in one place which rings
have news. Who waits gives way to other processes for a moment, then sleeps until its bell is rung. The sockets carry
nothing more; that one ends says that the peer is gone, and what it sent before lies in the ring.

The rings rely on x86-64's order of memory, so elsewhere there is no such link: see `possible`.

Memory: 4 KiB a card for its inbox, and as much again for every 512 peers; 4 KiB a connection and, in each direction, as
much of its ring as was ever in use at once: some 20 KiB where messages are small, at the most the ring's size.
Descriptors: five a card, two a connection.
"""

from __future__ import annotations

import os
import platform
import secrets
import select
import socket
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from superpod.interconnect import shm_sockets
from superpod.interconnect.errors import BadFrame, InvalidValue
from superpod.interconnect.forked import call_in_child
from superpod.interconnect.host import Address, host_id
from superpod.interconnect.link import Arrival, Broken, Buffer, Refused
from superpod.interconnect.shm_connection import Connection
from superpod.interconnect.shm_inbox import Inbox

RING = 1 << 20  # bytes
YIELDING = 100e-6  # seconds that a wait gives way to others before it sleeps
_AGAIN = 0.005  # seconds until a connection that could not be made is tried again
_NOBODY = "is gone: nobody listens at its address"


def possible() -> bool:
    """Whether this machine and system can have such a link."""
    return platform.machine() == "x86_64" and hasattr(os, "memfd_create") and hasattr(os, "eventfd")


class ShmLink:
    """A card's end. Satisfies the Link contract."""

    name = "shm"
    fleeting = True

    def __init__(self, rank: int, *, directory: Path | None = None, ring: int = RING) -> None:
        """Listen for other cards.

        Args:
            rank: this card.
            directory: the job's 0700 directory for the socket's file; None takes a name without a file.
            ring: bytes of each ring at first; one in which there is no room is replaced by a larger one.
        Raises:
            InvalidValue: this machine cannot have it, or there are no descriptors or no directory for it.
        """
        if not possible():
            raise InvalidValue(
                f"shared memory between cards needs Linux on x86-64, this is {platform.system()} on "
                f"{platform.machine()}; set SUPERPOD_LINK=zmq"
            )
        self.rank = rank
        self._ring = -(-ring // 4096) * 4096
        self._token = secrets.token_bytes(shm_sockets.TOKEN)
        try:
            self._inbox = Inbox()
        except OSError as error:
            raise self._exhausted(error) from error
        try:
            self._listener, endpoint, self._file = shm_sockets.listen(rank, directory)
        except InvalidValue:
            self._inbox.close()
            raise
        self._host = host_id()
        self._address = Address(endpoint, self._token.hex(), self._host).text()
        self._slots: list[Connection] = []
        self._routes: dict[int, Connection] = {}  # peer → the connection that frames to it take
        self._lines: dict[int, Connection | socket.socket] = {}  # descriptor → whose it is; a socket: nobody's yet
        self._senders: dict[int, Connection] = {}  # peer → the connection that its frames take
        self._whole: Counter[int] = Counter()  # peer → connections that have not ended
        self._broken: set[int] = set()
        self._ready: deque[Connection] = deque()  # those that may have frames
        self._events: deque[Refused | Broken] = deque()
        self._unsaid: list[Connection] = []  # those that could not say something through their line yet
        self._held: Connection | None = None  # the one whose last frame is still in use
        self._patience = YIELDING
        self._woken = False
        self._watched: set[int] = set()
        self._sockets, self._poll = select.epoll(), select.epoll()
        self._sockets.register(self._listener.fileno(), select.EPOLLIN)
        for fd in (self._sockets.fileno(), self._inbox.bell):
            self._poll.register(fd, select.EPOLLIN)
        self._closed = False
        call_in_child(self._disown)

    @property
    def address(self) -> str:
        return self._address

    # Meeting

    def connect(self, peer: int, address: str) -> None:
        endpoint, token, host, _ = Address.parse(address)
        if host != self._host:
            raise InvalidValue(f"rank {peer} is on another host ({endpoint}), with which no memory can be shared")
        try:
            connection = Connection.open(self.rank, peer, endpoint, bytes.fromhex(token), self._ring, self._inbox)
        except OSError as error:
            raise self._exhausted(error) from error
        self._add(connection)
        self._say(connection)

    def _add(self, connection: Connection) -> None:
        self._slots.append(connection)
        self._routes.setdefault(connection.peer, connection)
        self._whole[connection.peer] += 1

    def _say(self, connection: Connection) -> None:
        try:
            said = connection.say()
        except (OSError, BadFrame) as error:
            if connection.line.fileno() not in self._lines:  # it did not come to be; else its end is about to be heard
                self._end(connection, _NOBODY if isinstance(error, OSError) else f"is not superpod's: {error}")
            return
        if not said:
            self._unsaid.append(connection)
        elif connection.line.fileno() not in self._lines:
            self._lines[connection.line.fileno()] = connection
            self._sockets.register(connection.line, select.EPOLLIN)

    def _accept(self) -> None:
        """Take in everybody who has connected."""
        while True:
            try:
                line = shm_sockets.accept(self._listener)
            except BlockingIOError:
                return
            except BadFrame as error:
                self._events.append(Refused(error))
                continue
            except OSError as error:
                raise self._exhausted(error) from error
            self._lines[line.fileno()] = line
            self._sockets.register(line.fileno(), select.EPOLLIN)
            self._admit(line)

    def _exhausted(self, error: OSError) -> InvalidValue:
        return InvalidValue(
            f"rank {self.rank} cannot connect to another card: {error.strerror}; raise {shm_sockets.limit_of(error)}, "
            "or choose algorithms in which nobody talks to everybody"
        )

    def _admit(self, line: socket.socket) -> None:
        """Hear what a connection says first, if it has said something."""
        try:
            message = shm_sockets.receive(line)
        except BlockingIOError:
            return
        if message is not None:
            try:
                connection = Connection.accept(line, message, self._token, self._inbox)
            except BadFrame as error:
                self._events.append(Refused(error))
            except OSError as error:
                raise self._exhausted(error) from error
            else:
                self._lines[line.fileno()] = connection
                self._add(connection)
                self._say(connection)
                if connection.peer in self._broken:
                    connection.stop()
                    self._end(connection)
                self._list(connection)
                return
        self._sockets.unregister(line)
        del self._lines[line.fileno()]
        line.close()

    def reaches(self, peer: int) -> bool:
        return peer in self._routes

    def peers(self) -> list[int]:
        return sorted(self._routes)

    def compiled(self, peer: int) -> dict[str, Any] | None:
        """What compiled code needs to send `peer` frames and to take its: see _passage.h. None: it is not there yet."""
        connection = self._routes.get(peer)
        if connection is not None and not connection.over and connection.compiled() is None:
            self._look()  # it may just have answered
        theirs = None if connection is None else connection.compiled()
        return None if theirs is None else {"link": self, "connection": connection, "senders": self._senders} | theirs

    # Frames

    def post(self, peer: int, header: bytes, payload: Buffer) -> None:
        if self._held is not None:
            self._release(self._held)
        connection = self._routes[peer]
        if connection.over:
            return
        try:
            if not connection.post(header, payload) and connection not in self._unsaid:
                self._unsaid.append(connection)
        except BadFrame as error:
            self._tear(connection, error)

    def take(self) -> Arrival | Refused | Broken | None:
        if self._held is not None:
            self._release(self._held)
        ready = self._ready
        while True:
            while ready:
                connection = ready[0]
                try:
                    frame = connection.read()
                except BadFrame as error:
                    self._tear(connection, error)
                    frame = None
                if frame is not None:
                    self._held = connection
                    self._senders.setdefault(connection.peer, connection)
                    return Arrival(connection.peer, *frame)
                ready.popleft()
                connection.listed = False
                if connection.over:
                    self._lose(connection)
            if news := self._inbox.news():
                for slot in news:
                    self._list(self._slots[slot])
            elif self._events:
                return self._events.popleft()
            elif not self._look():
                return None

    def _list(self, connection: Connection) -> None:
        if not connection.listed:
            connection.listed = True
            self._ready.append(connection)

    def _release(self, connection: Connection) -> None:
        self._held = None
        connection.release()

    def _look(self) -> bool:
        """Look after everything that the inbox does not tell; whether there may be something to take now."""
        if self._unsaid:
            again, self._unsaid = self._unsaid, []
            for connection in again:
                self._say(connection)
        for descriptor, _ in self._sockets.poll(0):
            if descriptor == self._listener.fileno():
                self._accept()
            elif isinstance(line := self._lines.get(descriptor), Connection):
                self._hear(line)
            elif line is not None:
                self._admit(line)
        return bool(self._ready or self._events)

    def _hear(self, connection: Connection) -> None:
        try:
            if connection.hear():
                self._list(connection)
            else:
                self._end(connection)
        except BadFrame as error:
            self._tear(connection, error)

    # Ends

    def _tear(self, connection: Connection, error: BadFrame) -> None:
        """What a peer wrote makes no sense, and nothing that it writes after it can be found."""
        self._events.append(Refused(BadFrame(f"from rank {connection.peer}: {error}")))
        for other in self._slots:
            if other.peer == connection.peer:
                other.stop()
                self._end(other, "wrote into shared memory what is not superpod's, so its connection was closed")

    def _end(self, connection: Connection, how: str | None = None) -> None:
        """The line has ended; what the ring still holds is taken first."""
        if connection.over:
            return
        if self._lines.pop(connection.line.fileno(), None) is not None:
            self._sockets.unregister(connection.line)
        connection.end(how)
        if connection in self._unsaid:
            self._unsaid.remove(connection)
        self._list(connection)

    def _lose(self, connection: Connection) -> None:
        """A connection has ended and its ring is empty: so is the peer lost, unless it has another one."""
        if connection.lost:
            return
        connection.lost = True
        connection.forget()
        peer = connection.peer
        self._whole[peer] -= 1
        self._accept()  # one that it has opened may still be in the queue
        if not self._whole[peer] and peer not in self._broken:
            self._broken.add(peer)
            self._events.append(Broken(peer) if connection.how is None else Broken(peer, connection.how))

    # Waiting; from any thread

    def wait(self, seconds: float) -> bool:
        if self._ready or self._events:
            return False
        if self._give_way(min(seconds, self._patience)):
            return False
        fired: list[tuple[int, int]] = []
        try:
            if self._inbox.fall_asleep() and not self._woken:
                start = time.monotonic()
                fired = self._poll.poll(max(0, min(seconds, _AGAIN) if self._unsaid else seconds))
                if time.monotonic() - start < YIELDING:  # giving way would have been enough
                    self._patience = YIELDING
        finally:
            self._inbox.wake_up()
            self._woken = False
        descriptors = {fd for fd, _ in fired}
        if self._inbox.bell in descriptors:
            self._inbox.hush()
        return not descriptors.isdisjoint(self._watched)

    def _give_way(self, seconds: float) -> bool:
        """Let others have the processor for so long, or until there is news: whether there is."""
        has_news, give_way = self._inbox.has_news, os.sched_yield
        end = time.monotonic() + seconds
        while not self._woken:
            if has_news():
                return True
            if time.monotonic() >= end:
                if seconds == self._patience:
                    self._patience /= 2
                return False
            give_way()
        return False

    def wake(self) -> None:
        if not self._closed:
            self._woken = True
            self._inbox.ring()

    def wait_for(self, fd: int) -> None:
        """From now on `wait` also returns while `fd` is readable."""
        self._poll.register(fd, select.EPOLLIN)

    def watch(self, fd: int) -> None:
        self._watched.add(fd)
        self._poll.register(fd, select.EPOLLIN | select.EPOLLONESHOT)

    # Closing

    def close(self, linger: float) -> None:
        if self._closed:
            return
        end = time.monotonic() + linger
        while self._unsaid and (rest := end - time.monotonic()) > 0:
            self._poll.poll(min(rest, _AGAIN))
            self._look()
        self._closed = True
        self._held = None
        for connection in self._slots:
            connection.end()
            connection.forget()
        self._release_all()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _disown(self) -> None:
        """In a forked child: let go of the lines, which are the parent's and must end when it does."""
        if not self._closed:
            self._closed = True
            for connection in self._slots:
                connection.abandon()
            self._release_all()

    def _release_all(self) -> None:
        for line in self._lines.values():
            if isinstance(line, socket.socket):
                line.close()
        self._listener.close()
        self._sockets.close()
        self._poll.close()
        self._inbox.close()
