"""A card's line to its launcher: the abort flag comes in, news goes out. Both lie in the job's own 0700 directory.

The abort flag is a FIFO that the launcher keeps open for writing. Closing it, on purpose or by dying, is seen by every
card at once, however many there are; a file beside it says why. News are datagrams on a Unix socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack

from superpod.interconnect.errors import InvalidValue

_FIFO, _CAUSE, _NEWS, _GONE, _HOST = "abort", "abort.json", "news", "gone-{}", "host"
_ROOM = socket.CMSG_SPACE(array("i").itemsize)  # for one file descriptor
_MAX_DATAGRAM = 128 * 1024  # below the kernel's default socket buffer of 208 KiB


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job ends: the card that failed first and the cause in words.

    `cause` continues a sentence that starts with the rank: "was killed by SIGKILL", "raised ValueError: ...".
    """

    rank: int
    host: str
    pid: int
    cause: str

    def __str__(self) -> str:
        if self.rank < 0:
            return self.cause
        return f"rank {self.rank} (host {self.host}, pid {self.pid}) {self.cause}"


class AbortSwitch:
    """The launcher's end of the abort flag. Use: `pull(failure)` ends every wait of every card of the job.

    `note_gone(rank, how)` is milder: a card has ended well, which only concerns those who have yet to meet it.
    """

    def __init__(self, directory: Path, host: str = "") -> None:
        """`host`: the name of this one, in a job of several."""
        self._directory = directory
        if host:
            (directory / _HOST).write_text(host)
        os.mkfifo(directory / _FIFO, 0o600)
        self._fd: int | None = os.open(directory / _FIFO, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def pull(self, failure: Failure) -> None:
        """Tell all cards; only the first failure counts."""
        if self._fd is None:
            return
        draft = self._directory / (_CAUSE + ".draft")
        with contextlib.suppress(OSError):  # a full disk must not keep the cards from hearing of it
            draft.write_text(json.dumps(asdict(failure)))
            draft.rename(self._directory / _CAUSE)
        self.close()

    def note_gone(self, rank: int, how: str) -> None:
        """For those who look for it: `rank` has ended, `how` continues a sentence that starts with it."""
        draft = self._directory / (_GONE.format(rank) + ".draft")
        with contextlib.suppress(OSError):
            draft.write_text(how)
            draft.rename(self._directory / _GONE.format(rank))

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class AbortFlag:
    """A card's end of the abort flag: poll `fileno()`, and ask `failure()` when it is readable."""

    def __init__(self, directory: Path, *, own_ranks: bool = False) -> None:
        """Raises InvalidValue when `directory` is not that of a running job.

        `own_ranks`: this card numbers the others in its own way, so what the launcher says of ranks is of no use.
        """
        self._directory, self._own_ranks = directory, own_ranks
        self._where = ""
        with contextlib.suppress(OSError):
            self._where = " on host " + (directory / _HOST).read_text()
        try:
            self._fd = os.open(directory / _FIFO, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidValue(
                f"SUPERPOD_DIR={directory} is not the directory of a running job ({error.strerror}); "
                "start with superpod-run, or unset SUPERPOD_DIR"
            ) from error
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._over = (directory / _CAUSE).exists()  # a FIFO whose writer has gone before tells nothing

    def fileno(self) -> int:
        return self._fd

    def failure(self) -> Failure | None:
        """The job's first failure, or None while the job goes on. Costs one system call while it goes on."""
        if not self._over and not self._poll.poll(0):
            return None
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Failure(**json.loads((self._directory / _CAUSE).read_text()))
        return Failure(-1, "", 0, "the launcher has ended" + self._where)

    def gone(self, rank: int) -> str | None:
        """How `rank` has ended, though the job goes on; None while it has not. Costs one system call."""
        if self._own_ranks:
            return None
        try:
            return (self._directory / _GONE.format(rank)).read_text()
        except OSError:
            return None

    def close(self) -> None:
        os.close(self._fd)


class NewsDesk:
    """The launcher's end: where the cards' news arrive."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(directory / _NEWS))
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[dict[str, Any]]:
        """All news that have arrived, in order; what is not a news item is left out.

        An item that came with a descriptor has it as "descriptor": close it.
        """
        items: list[dict[str, Any]] = []
        while True:
            try:
                # socket.recv_fds would do, but up to Python 3.12 it does not pass the flag on
                datagram, extras, _, _ = self._socket.recvmsg(_MAX_DATAGRAM + 1, _ROOM, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return items
            fds = array("i", b"".join(content for _, _, content in extras)).tolist()
            with contextlib.suppress(ValueError, msgpack.UnpackException):
                item = msgpack.unpackb(datagram)
                if isinstance(item, dict) and isinstance(item.get("event"), str):
                    item.pop("descriptor", None)
                    items.append({**item, "descriptor": fds.pop()} if fds else item)
            for fd in fds:
                os.close(fd)

    def close(self) -> None:
        self._socket.close()


def send_news(directory: Path | None, rank: int, event: str, *, descriptor: int | None = None, **fields: Any) -> bool:
    """Tell the launcher; without one (`directory` is None) do nothing.

    An item carries event, rank, pid, time (seconds since the epoch), `fields`, and a copy of the `descriptor`. Returns
    whether it was sent: a launcher that is gone, or an item above 128 KiB, is no error of the card.
    """
    if directory is None:
        return False
    item = {"event": event, "rank": rank, "pid": os.getpid(), "time": time.time(), **fields}
    datagram = msgpack.packb(item, unicode_errors="backslashreplace")  # file names may come as lone surrogates
    if len(datagram) > _MAX_DATAGRAM:
        return False
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.settimeout(5)
        beside = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))]
        line.sendmsg([datagram], beside, 0, str(directory / _NEWS))
        return True
    return False
