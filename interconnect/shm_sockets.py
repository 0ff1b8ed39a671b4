"""How two cards of a host come to share memory: a Unix socket carries the descriptors, and then only its own end.

The card that connects says hello: this card's token, which only those know who read its address, its rank, and the
descriptors of the memory with the connection's two rings, of its inbox and of its bell. The other answers with its own
inbox and bell. Until the answer has come, a byte through the socket stands in for the bell. A sender that needs another
ring sends its descriptor.

The sockets keep whole messages (SOCK_SEQPACKET). Only processes of the same user get as far as a hello.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import secrets
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from superpod.interconnect.errors import BadFrame, InvalidValue

TOKEN = 16  # bytes
BACKLOG = 4096
BELL, RING = b"!", b"ring"
_LONGEST = 107  # bytes of a socket's path that Linux takes
_HELLO = struct.Struct("<8s16sII")
_ANSWER = struct.Struct("<8sI")
_MAGIC = b"spodshm1"
_MOST = 3  # descriptors in a message
_PEER_CREDENTIALS = struct.Struct("3i")


def limit_of(error: OSError) -> str:
    """The limit that somebody whose memory could not be made may raise."""
    return "`ulimit -f`" if error.errno == errno.EFBIG else "`ulimit -n`"


class Message(NamedTuple):
    """What goes through a socket. Whoever takes one out of it closes the descriptors."""

    data: bytes
    descriptors: list[int]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class Hello(NamedTuple):
    """What a card that connects says of itself: its rank, and the slot of its inbox that is the other's."""

    rank: int
    slot: int


def listen(rank: int, directory: Path | None) -> tuple[socket.socket, str, Path | None]:
    """A socket that listens, its endpoint, and its file if it has one: in `directory`, or None for a name without.

    Raises InvalidValue for a directory in which it cannot.
    """
    file = None
    endpoint = f"@superpod-{secrets.token_hex(8)}"
    if directory is not None:
        file = directory / f"s{rank}-{secrets.token_hex(4)}"
        endpoint = str(file)
        if len(os.fsencode(file)) > _LONGEST:
            raise InvalidValue(
                f"socket path {file} is longer than the {_LONGEST} bytes that the system allows; "
                "set TMPDIR or XDG_RUNTIME_DIR to a shorter directory"
            )
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        line.bind(_name(endpoint))
        line.listen(BACKLOG)
    except OSError as error:
        line.close()
        raise InvalidValue(f"rank {rank} cannot listen at {endpoint}: {error.strerror}") from error
    return line, endpoint, file


def dial(line: socket.socket, endpoint: str) -> None:
    """Connect. Raises BlockingIOError while too many others do, another OSError if nobody listens, BadFrame."""
    line.connect(_name(endpoint))
    _check_user(line)


def accept(listener: socket.socket) -> socket.socket:
    """The next connection. Raises BlockingIOError if there is none, BadFrame for another user's, OSError."""
    line, _ = listener.accept()
    line.setblocking(False)
    try:
        _check_user(line)
    except BadFrame:
        line.close()
        raise
    return line


def hello(token: bytes, rank: int, slot: int) -> bytes:
    """What the card that connects says; `slot` of its inbox is the other's."""
    return _HELLO.pack(_MAGIC, token, rank, slot)


def answer(slot: int) -> bytes:
    """What the other answers."""
    return _ANSWER.pack(_MAGIC, slot)


def send(line: socket.socket, message: Message) -> None:
    """Raises OSError: with ETOOMANYREFS while too many descriptors of this user are on their way."""
    socket.send_fds(line, [message.data], message.descriptors, socket.MSG_NOSIGNAL)


def ring(line: socket.socket) -> None:
    """Wake the card at the other end, if it is there and has not been woken so often that the line is full."""
    with contextlib.suppress(OSError):
        line.send(BELL, socket.MSG_NOSIGNAL)


def receive(line: socket.socket) -> Message | None:
    """The next message, None at the end of the line. Raises BlockingIOError if there is none now."""
    try:
        data, descriptors, _, _ = _receive(line)
    except ConnectionResetError:  # the other end closed before it had read everything; what it had sent is still there
        data, descriptors, _, _ = _receive(line)
    return Message(data, descriptors) if data or descriptors else None


def read_hello(message: Message, token: bytes) -> Hello:
    """Raises BadFrame for anything but a hello with this card's token and three descriptors."""
    if len(message.data) != _HELLO.size:
        raise BadFrame(f"greeting of {len(message.data)} B is not superpod's")
    magic, theirs, rank, slot = _HELLO.unpack(message.data)
    if magic != _MAGIC or not hmac.compare_digest(theirs, token):
        raise BadFrame("greeting from an unknown sender: it does not know this card's token")
    if len(message.descriptors) != 3:
        raise BadFrame(f"greeting of rank {rank} came without its memory; raise `ulimit -n` if descriptors ran out")
    return Hello(rank, slot)


def read_answer(message: Message) -> int:
    """The slot that an answer gives away. Raises BadFrame for anything but an answer with two descriptors."""
    if len(message.data) != _ANSWER.size or len(message.descriptors) != 2:
        raise BadFrame(f"answer of {len(message.data)} B and {len(message.descriptors)} descriptors is not superpod's")
    magic, slot = _ANSWER.unpack(message.data)
    if magic != _MAGIC:
        raise BadFrame("answer is not superpod's")
    return int(slot)


def _receive(line: socket.socket) -> tuple[bytes, list[int], int, object]:
    return socket.recv_fds(line, 64, _MOST, socket.MSG_CMSG_CLOEXEC)


def _name(endpoint: str) -> str:
    return "\0" + endpoint[1:] if endpoint.startswith("@") else endpoint


def _check_user(line: socket.socket) -> None:
    raw = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, user, _ = _PEER_CREDENTIALS.unpack(raw)
    if user != os.geteuid():
        raise BadFrame(f"process {pid} belongs to user {user}, this card to user {os.geteuid()}")
