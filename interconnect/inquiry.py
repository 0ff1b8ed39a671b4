"""Questions to cards about what they are doing, and their answers: datagrams between Unix sockets of one host.

A desk is where a card is asked. It lies in the job's directory, so that the launcher finds it, or without a launcher
has an abstract name that only those know who can read the cards' store. An asker has a name that the kernel chose, and
knows its answers by a random word that the question carried.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgpack

ANSWER_WITHIN = 1.0  # seconds that a card may take to answer
_PREFIX = "ask"
_MAX_DATAGRAM = 128 * 1024  # bytes; below the kernel's default socket buffer of 208 KiB
_SEND_WITHIN = 1.0  # seconds for an answer, to an asker whose queue of ten is full
_AGAIN = 0.005  # seconds until a question is repeated to a card whose queue is full
_WORD = 8  # bytes


def desks(directory: Path) -> dict[int, tuple[str, int]]:
    """The cards of a job that can be asked: rank → the address of its desk, and its process id."""
    found: dict[int, tuple[str, int]] = {}
    for path in sorted(directory.glob(f"{_PREFIX}*-*")):
        rank, _, pid = path.name.removeprefix(_PREFIX).partition("-")
        if rank.isdecimal() and pid.isdecimal():
            found.setdefault(int(rank), (str(path), int(pid)))
    return found


class Desk:
    """Where one card is asked. Attributes: address: what others need to know in order to ask."""

    def __init__(self, directory: Path | None, rank: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        if directory is None:
            self.address = f"@superpod-{_PREFIX}-{secrets.token_hex(8)}"
        else:
            self.address = str(directory / f"{_PREFIX}{rank}-{os.getpid()}")
            Path(self.address).unlink(missing_ok=True)  # that of an earlier program in this process
        self._socket.bind(_name(self.address))

    def wait(self, seconds: float | None) -> tuple[dict[str, Any], str | bytes] | None:
        """The next question and whom to answer, within `seconds`; None if there is none, or it makes no sense."""
        if not self._poll.poll(None if seconds is None else seconds * 1000):
            return None
        datagram, sender = self._socket.recvfrom(_MAX_DATAGRAM)
        question = _unpacked(datagram)
        return (question, sender) if question is not None and sender and "word" in question else None

    def answer(self, question: dict[str, Any], sender: str | bytes, fields: dict[str, Any]) -> None:
        """An asker that has gone, or an answer above 128 KiB, is no error."""
        datagram = msgpack.packb({**fields, "word": question["word"]})
        if len(datagram) <= _MAX_DATAGRAM:
            self._socket.settimeout(_SEND_WITHIN)
            with contextlib.suppress(OSError):
                self._socket.sendto(datagram, sender)

    def abandon(self) -> None:
        """In a forked child: the desk is the parent's."""
        self._socket.close()


class Inquiry:
    """One question to several cards. Poll `fileno()`, then `read()`; `waits_for` says whose answers are missing.

    Attributes:
        absent: ranks that have no desk: they are not started, have not opened superpod yet, or have ended.
    """

    def __init__(self, **question: Any) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.bind("")  # the kernel chooses an abstract name
        self._word = secrets.token_bytes(_WORD)
        self._question = msgpack.packb({**question, "word": self._word})
        self._crowded: dict[int, str] = {}  # rank → address of those that could not be asked yet
        self.waits_for: set[int] = set()
        self.absent: set[int] = set()

    def fileno(self) -> int:
        return self._socket.fileno()

    def ask(self, rank: int, address: str | None) -> None:
        """Ask a card; None as address: it has no desk."""
        self.waits_for.add(rank)
        self._crowded.pop(rank, None)
        try:
            if address is None:
                raise FileNotFoundError
            self._socket.sendto(self._question, _name(address))
        except BlockingIOError:
            self._crowded[rank] = str(address)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._crowded[rank] = str(address)
                return
            self.waits_for.discard(rank)
            self.absent.add(rank)

    def read(self) -> list[tuple[int, dict[str, Any]]]:
        """The answers that have arrived, with the ranks that gave them; asks those again whose queue was full."""
        answers = []
        while True:
            try:
                answer = _unpacked(self._socket.recv(_MAX_DATAGRAM))
            except BlockingIOError:
                break
            if answer is not None and answer.get("word") == self._word and answer.get("rank") in self.waits_for:
                self.waits_for.discard(answer["rank"])
                answers.append((answer["rank"], answer))
        for rank, address in list(self._crowded.items()):
            self.ask(rank, address)
        return answers

    @property
    def patience(self) -> float | None:
        """Seconds after which `read` is worth calling again, though nothing has arrived."""
        return _AGAIN if self._crowded else None

    def close(self) -> None:
        self._socket.close()


def ask(
    ranks: Iterable[int],
    where: Callable[[int], str | None],
    follow: Callable[[dict[str, Any]], Iterable[int]],
    *,
    seconds: float,
    **question: Any,
) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """Ask `ranks`, and those whom their answers lead to; waits until all have answered, at most `seconds`.

    Args:
        where: rank → the address of its desk, or None.
        follow: an answer → ranks to be asked, too.
    Returns: the answers by rank, and the ranks without a desk. Who is in neither did not answer in time.
    """
    inquiry, answers, asked = Inquiry(**question), dict[int, dict[str, Any]](), set[int]()
    end = time.monotonic() + seconds
    with contextlib.closing(inquiry):
        fresh = list(ranks)
        while True:
            for rank in fresh:
                if rank not in asked:
                    asked.add(rank)
                    inquiry.ask(rank, where(rank))
            if not inquiry.waits_for or (rest := end - time.monotonic()) <= 0:
                return answers, inquiry.absent
            select.select([inquiry], [], [], min(rest, inquiry.patience or rest))
            arrived = inquiry.read()
            answers.update(arrived)
            fresh = [rank for _, answer in arrived for rank in follow(answer)]


def _name(address: str) -> str:
    return "\0" + address[1:] if address.startswith("@") else address


def _unpacked(datagram: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, msgpack.UnpackException):
        item = msgpack.unpackb(datagram)
        if isinstance(item, dict):
            return item
    return None


def state_of(pid: int) -> str:
    """What the kernel says of a process that does not answer, in words that continue "it ..."; "" if nothing."""
    with contextlib.suppress(OSError, IndexError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return _STATES.get(state, "waits in a system call")
    return "has ended"


_STATES = {
    "T": "is stopped by a signal",
    "t": "is held by a debugger",
    "R": "is computing",
    "D": "waits for a disk or another device",
    "Z": "has ended",
}


def silence(pid: int, *, has_desk: bool) -> str:
    """Why a card has not answered, in words that continue "rank 3 ..."; `pid` is 0 where it is not known."""
    state = state_of(pid) if pid else ""
    if not has_desk and state in ("", "has ended"):
        return "is not there: it has not called superpod yet, or has ended"
    if not has_desk:
        return f"has not called superpod yet: it {state} (pid {pid})"
    if state == "is computing":
        state += " in native code that keeps the interpreter's lock"
    return "does not answer" + (f": it {state} (pid {pid})" if pid else ", and may be stopped")
