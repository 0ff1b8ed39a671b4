"""One connection of the shared-memory link: a socket, and a ring in each direction that is replaced when it is full."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import deque
from typing import Any

from superpod.interconnect import shm_sockets
from superpod.interconnect.errors import BadFrame, InvalidValue
from superpod.interconnect.link import Buffer
from superpod.interconnect.shm_inbox import Inbox, PeersInbox
from superpod.interconnect.shm_memory import Memory
from superpod.interconnect.shm_ring import HEAD, LINE, room_of
from superpod.interconnect.shm_sockets import Message

try:
    from superpod.interconnect._ring import Incoming, Outgoing
except ImportError:  # there was no C compiler where superpod was installed
    from superpod.interconnect.shm_ring import Incoming, Outgoing  # type: ignore[assignment]

_LEAST, _MOST = 4096, 1 << 40  # bytes of a peer's rings; what a card maps, it hardly touches
_NOT_NOW = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)


class Connection:
    """A card's end.

    Attributes:
        peer: the rank at the other end.
        slot: its slot in this card's inbox.
        listed: whether it stands in the link's list of those that may have frames.
        over: its line has ended: what is in the ring is all that will ever come.
        how: the words for that, if it did not simply break.
        lost: over, and the ring is empty.
    """

    def __init__(self, line: socket.socket, peer: int, rings: Memory, inbox: Inbox, *, opened: bool) -> None:
        """`rings`: memory for both. `inbox`: this card's. `opened`: this card connects, so the first ring is its."""
        self.line, self.peer = line, peer
        half = rings.nbytes // 2 // LINE * LINE
        first, second = rings.view[:half], rings.view[half : 2 * half]
        self._outgoing, self._incoming = Outgoing(first if opened else second), Incoming(second if opened else first)
        self._next_rings: deque[Memory] = deque()  # where the peer goes on when it leaves the ring that is read
        self._inbox = inbox
        self.slot = inbox.take_slot()
        self.listed = self.over = self.lost = False
        self.how: str | None = None
        self._endpoint: str | None = None  # that is yet to be dialled
        self._unsaid: deque[Message] = deque()  # what is to be sent through the line
        self._theirs: PeersInbox | None = None
        self._told = 0  # how often the peer has been told that there is more

    @staticmethod
    def open(rank: int, peer: int, endpoint: str, token: bytes, ring: int, inbox: Inbox) -> Connection:
        """`rank`'s end of a new connection to `peer`, with rings of `ring` bytes; `say` makes it known.

        Raises OSError when there is no memory or no descriptor left for it.
        """
        memory, descriptor = Memory.create(2 * ring)
        try:
            line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        except OSError:
            os.close(descriptor)
            raise
        connection = Connection(line, peer, memory, inbox, opened=True)
        connection._endpoint = endpoint
        hello = shm_sockets.hello(token, rank, connection.slot)
        connection._unsaid.append(Message(hello, [descriptor, *map(os.dup, inbox.descriptors)]))
        return connection

    @staticmethod
    def accept(line: socket.socket, message: Message, token: bytes, inbox: Inbox) -> Connection:
        """This card's end of a connection on which `message` came first. Raises BadFrame. Closes descriptors."""
        try:
            rank, slot = shm_sockets.read_hello(message, token)
            rings = Memory.adopt(message.descriptors[0], _LEAST, _MOST)
            theirs = _inbox_of(message, slot)
            connection = Connection(line, rank, rings, inbox, opened=False)
            connection._theirs = theirs
        finally:
            message.close()
        answer = shm_sockets.answer(connection.slot)
        connection._unsaid.append(Message(answer, [*map(os.dup, inbox.descriptors)]))
        return connection

    def say(self) -> bool:
        """Send what is to go through the line; False if something must wait. Raises OSError if nobody will hear it."""
        try:
            if self._endpoint is not None:
                shm_sockets.dial(self.line, self._endpoint)
                self._endpoint = None
            while self._unsaid:
                shm_sockets.send(self.line, self._unsaid[0])
                self._unsaid.popleft().close()
        except OSError as error:
            if error.errno in _NOT_NOW:
                return False
            raise
        return True

    def hear(self) -> bool:
        """Take in what has come through the line; False if it has ended. Raises BadFrame."""
        try:
            while (message := shm_sockets.receive(self.line)) is not None:
                try:
                    self._handle(message)
                finally:
                    message.close()
        except BlockingIOError:
            return True
        return False

    def _handle(self, message: Message) -> None:
        if message.data == shm_sockets.RING and len(message.descriptors) == 1:
            self._next_rings.append(Memory.adopt(message.descriptors[0], _LEAST, _MOST))
        elif message.data != shm_sockets.BELL:
            if self._theirs is not None:
                raise BadFrame(f"message of {len(message.data)} B is not superpod's")
            self._theirs = _inbox_of(message, shm_sockets.read_answer(message))
            self._tell()

    def post(self, header: bytes, payload: Buffer) -> bool:
        """Send a frame. False if it needs another ring, which can be sent only later, by `say`.

        Raises BadFrame for a torn ring; InvalidValue when there is no memory or no descriptor for another one.
        """
        sent = True
        if not self._outgoing.write(header, payload):
            sent = self._grow(room_of(len(header), len(payload)))
            self._outgoing.write(header, payload)
        self._tell()
        return sent

    def _grow(self, nbytes: int) -> bool:
        """Go on in a ring that is twice as large and has room for a frame of `nbytes`, and another."""
        try:
            memory, descriptor = Memory.create(max(2 * self._outgoing.capacity, 2 * nbytes) + HEAD)
        except OSError as error:
            raise InvalidValue(
                f"no more memory can be shared with rank {self.peer}, which has yet to read "
                f"{self._outgoing.capacity} B: {error.strerror}; raise {shm_sockets.limit_of(error)}, or send less "
                "before it receives"
            ) from error
        self._unsaid.append(Message(shm_sockets.RING, [descriptor]))
        self._outgoing.leave()
        self._outgoing = Outgoing(memory.view)
        with contextlib.suppress(OSError):  # the line's end will be heard of
            return self.say()
        return True

    def _tell(self) -> None:
        """Let the peer know that there is something for it."""
        self._told += 1
        if self._theirs is not None:
            self._theirs.tell(self._told)
        elif not self._unsaid:  # a bell must not come before the hello, which wakes the peer as well
            shm_sockets.ring(self.line)

    def compiled(self) -> dict[str, Any] | None:
        """What compiled code needs to do as `_tell` does; None: the peer has not answered yet."""
        return None if self._theirs is None else self._theirs.compiled()

    def read(self) -> tuple[bytes, memoryview] | None:
        """The next frame, whose payload is valid until `release`; None if there is none now. Raises BadFrame."""
        frame = self._incoming.read()
        while frame is None and self._incoming.left and self._next_rings:
            self._incoming = Incoming(self._next_rings.popleft().view)
            frame = self._incoming.read()
        return frame

    def release(self) -> None:
        """Give back the room of what was read."""
        self._incoming.release()

    def stop(self) -> None:
        """Read nothing more."""
        self._incoming.stop()
        self._incoming.left = False

    def forget(self) -> None:
        """Let go of the rings' memory."""
        nothing = memoryview(bytearray(HEAD + LINE))
        self._outgoing, self._incoming = Outgoing(nothing), Incoming(nothing)
        self._next_rings.clear()

    def end(self, how: str | None = None) -> None:
        """Close the line. What has come in can still be read."""
        if not self.over:
            self.how = how
            with contextlib.suppress(OSError):  # not connected
                self.line.shutdown(socket.SHUT_RDWR)  # a forked child may hold it open
            self.abandon()

    def abandon(self) -> None:
        """Close this process's descriptors; for a forked child, whose parent goes on using the line."""
        if not self.over:
            self.over = True
            self.line.close()
            while self._unsaid:
                self._unsaid.popleft().close()
            if self._theirs is not None:
                self._theirs.close()
                self._theirs = None


def _inbox_of(message: Message, slot: int) -> PeersInbox:
    """The last two descriptors of a greeting are the peer's inbox, in which `slot` is this card's, and its bell."""
    memory, bell = message.descriptors[-2:]
    theirs = PeersInbox(memory, bell, slot)
    message.descriptors.pop()  # the bell is the inbox's now
    return theirs
