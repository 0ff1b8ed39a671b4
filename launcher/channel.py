"""Messages between the agent and its zygote: small JSON objects, file descriptors beside them, in order."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_MAX_MESSAGE = 64 * 1024
_ROOM = socket.CMSG_SPACE(4 * array("i").itemsize)  # for four file descriptors


@dataclass(frozen=True, slots=True)
class Order:
    """What the agent tells its zygote when it starts it; everything else goes over the channel.

    Attributes:
        directory: the job's directory.
        kind, target, args, start_method: see JobSpec.
        channel: file descriptor of the zygote's end of the channel.
        listener: file descriptor of the socket on which torch's store is to listen; -1: it is on another host.
        agent: the agent's process id.
        preload: modules to import before the first fork; auto_preload: and those that the target imports.
        bind_to: which core each card runs on, see binding.py.
        skip: modules not to import, found unfit by the attempts so far; attempt: how many those were.
    """

    directory: str
    kind: str
    target: str
    args: list[str]
    start_method: str
    channel: int
    listener: int
    agent: int
    preload: list[str]
    auto_preload: bool
    bind_to: str
    skip: list[str] = field(default_factory=list)
    attempt: int = 0

    def in_memory_file(self) -> int:
        """A file descriptor from which `read` gets the order back; no limit of a command line applies to it."""
        fd = os.memfd_create("order")
        os.write(fd, json.dumps(asdict(self)).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    @staticmethod
    def read(fd: int) -> Order:
        with open(fd, "rb", closefd=False) as file:
            return Order(**json.load(file))


class Channel:
    """One end. Losing the other one reads as None from `receive` and raises OSError from `send`."""

    def __init__(self, line: socket.socket, deadline: float | None) -> None:
        """`deadline`: seconds that a send may take; None when the other side may be stopped as long as it likes."""
        self._socket = line
        self._socket.settimeout(deadline)

    @staticmethod
    def pair(deadline: float | None = None) -> tuple[Channel, Channel]:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Channel(one, deadline), Channel(other, deadline)

    @staticmethod
    def inherited(fd: int) -> Channel:
        """The end that this process got from its parent."""
        return Channel(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=fd), None)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        socket.send_fds(self._socket, [json.dumps(message).encode()], fds)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message with its file descriptors, or None when the other side has gone."""
        try:
            # socket.recv_fds would do, but up to Python 3.12 it does not pass the flag on
            data, extras, _, _ = self._socket.recvmsg(_MAX_MESSAGE, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        fds = array("i", b"".join(content for _, _, content in extras)).tolist()
        if not data:
            for fd in fds:
                os.close(fd)
            return None
        return json.loads(data), fds

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
