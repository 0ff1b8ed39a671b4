"""Groups of ranks as the mesh sees them, and how their failure is put into words and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from math import inf
from typing import NamedTuple, TypeVar

from superpod.interconnect.control import Failure
from superpod.interconnect.errors import (
    CollectiveMismatch,
    InvalidValue,
    LinkClosed,
    PeerLost,
    RemoteError,
    SuperpodError,
)
from superpod.interconnect.peers import LEFT_JOB
from superpod.interconnect.streams import Pending, Receive, Send
from superpod.interconnect.wire import Header, Kind, encode

T = TypeVar("T")
ProbeHandler = Callable[[int, Header], None]

_BETTER_ERROR = 0.3  # seconds that a card waits for what others may say of a failure
_KEPT = 1024  # groups that were closed, or failed before they were opened, that a card remembers: the latest


class Group:
    """What the mesh knows of a group: id on the wire, name for people, who hears its probes, whether it has failed."""

    def __init__(self, ident: int, name: str, on_probe: ProbeHandler, life: int = 1) -> None:
        self.ident = ident
        self.life = life  # how often it was made, under one name: its peers count alike
        self.left: dict[int, str] = {}  # the peers that have closed it → how, in words that continue "rank 3 ..."
        self.name = name
        self.on_probe = on_probe
        self.place: Callable[[int, int, str], str] = lambda tag, number, text: ""  # where the user's code made a call
        self.text: Callable[[int], str] = lambda number: ""  # what it was, "" if that has been forgotten
        self.parting: Callable[[bool], None] = lambda job: None  # called when it is closed here, with the job or alone
        self.failure: SuperpodError | None = None
        self.told = False  # this card's caller knows of it
        self.due = inf  # when the suspicion counts [s]
        self.suspicion: SuperpodError | None = None
        self._weak = False
        self._missed: int | None = None  # the peer whose loss is suspected

    def leaves(self, peer: int, *, job: bool = False) -> None:
        """`peer` has closed the group, or (job) all of them."""
        how = LEFT_JOB if job else f"has closed group {self.name}"
        known, self.left[peer] = self.left.get(peer), how
        if known != how and self._missed == peer:  # a connection to it was refused, and here is why
            self.suspicion, self.due, self._missed = None, inf, None

    def judge(self, rank: int, receive: Receive, header: Header) -> bytes:
        """A message is not the one that `rank` awaits: suspect a mismatch, and return the complaint to its sender.

        The sender knows where in its code it made the call, and will fail the group with the better error. The two
        calls that the message names need not be those on which the ranks disagree: when one of them is ahead of the
        other, it knows what it called before; then the complaint is about two calls of one number.
        """
        number, mine, tag = receive.sequence, receive.text, receive.key[2]
        if header.sequence < number and self.text(header.sequence) not in ("", header.text):
            return self.dispute(rank, receive.peer, header, self.text(header.sequence))
        self.suspect(wrong_message(self, rank, receive, header))
        return self._complaint(tag, number, receive.step, mine, header.text)

    def dispute(self, rank: int, peer: int, header: Header, mine: str) -> bytes:
        """As `judge`, for `peer`'s message with the number under which `rank` called `mine`."""
        ours = f"{mine} (#{header.sequence}){at(self.place(header.tag, header.sequence, mine))}"
        self.suspect(mismatch(self, (peer, f"{header.text} (#{header.sequence})"), (rank, ours)))
        return self._complaint(header.tag, header.sequence, header.step, mine, header.text)

    def _complaint(self, tag: int, number: int, step: int, mine: str, theirs: str) -> bytes:
        words = Complaint(mine, self.place(tag, number, mine), theirs).packed()
        return encode(Header(Kind.PROBE, self.ident, tag, number, step, text=words))

    def suspect(self, error: SuperpodError, *, weak: bool = False, missed: int | None = None) -> None:
        """The group has failed, but somebody may give a better error soon. Only the first suspicion counts.

        A weak one gives way to another one. `missed`: the peer whose loss is all that it says.
        """
        if self.suspicion is None:
            self.due, self.suspicion, self._weak = time.monotonic() + _BETTER_ERROR, error, weak
            self._missed = missed
        elif self._weak and not weak:
            self.suspicion, self._weak, self._missed = error, False, missed

    def confirmed(self) -> SuperpodError | None:
        """The suspicion, if nobody has given a better error in time."""
        return self.suspicion if time.monotonic() >= self.due else None


class Groups:
    """The groups that are open on a card, and what it remembers of the others. One thread at a time."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._open: dict[int, Group] = {}
        self._failed: dict[int, SuperpodError] = {}  # failures of groups that this card has not opened yet
        self._ended: dict[int, int] = {}  # the groups that were closed here, and how often they had been made

    def open(self, ident: int, name: str, on_probe: ProbeHandler) -> Group:
        """A new group; if its others have heard of a failure already, it has failed. Raises InvalidValue."""
        if ident in self._open:
            raise InvalidValue(f"group {name} exists on rank {self._rank}; give the new one another name")
        group = self._open[ident] = Group(ident, name, on_probe, self._ended.pop(ident, 0) + 1)
        group.failure = self._failed.pop(ident, None)
        return group

    def __iter__(self) -> Iterator[Group]:
        """Those that are open."""
        return iter(list(self._open.values()))

    def get(self, ident: int) -> Group | None:
        return self._open.get(ident)

    def close(self, group: Group, *, job: bool = False) -> bool:
        """From now on the group's failure is that it was closed here, as all are about to be (job). Was it open?"""
        if self._open.pop(group.ident, None) is None:
            return False
        group.parting(job)
        group.parting = lambda job: None
        _remember(self._ended, group.ident, group.life)
        group.failure = group.failure or LinkClosed(
            f"rank {self._rank} has closed group {group.name}; make a new communicator or process group"
        )
        return True

    def part(self) -> None:
        """Tell whoever is to hear it elsewhere than in a message that all are about to be closed."""
        for group in self._open.values():
            group.parting(True)

    def close_all(self, why: str) -> None:
        for group in self._open.values():
            group.failure = group.failure or LinkClosed(why)

    def have_ended(self, ident: int) -> bool:
        """Whether this group was closed here, so that whatever still arrives for it is to be dropped."""
        return ident in self._ended

    def farewell(self, ident: int) -> bytes | None:
        """The frame that tells a peer that this card has closed a group, if it has."""
        life = self._ended.get(ident)
        return None if life is None else encode(Header(Kind.BYE, ident, 0, life))

    def remember_failure(self, ident: int, error: SuperpodError) -> None:
        """A group that this card has not opened yet has failed."""
        _remember(self._failed, ident, error)


def _remember(latest: dict[int, T], ident: int, value: T) -> None:
    latest[ident] = value
    if len(latest) > _KEPT:
        del latest[next(iter(latest))]


def wrong_message(group: Group, rank: int, receive: Receive, header: Header) -> CollectiveMismatch:
    """The error for a message that is not the one that `rank` awaits."""
    theirs, ours = f"{header.text} (#{header.sequence})", receive.call()
    if theirs == ours:
        theirs += f" with {header.nbytes} B at {header.offset} in step {header.step}"
        ours += f" with {receive.into.nbytes} B at {receive.got} in step {receive.step}"
    return mismatch(group, (receive.peer, theirs), (rank, ours))


def mismatch(group: Group, one: tuple[int, str], other: tuple[int, str]) -> CollectiveMismatch:
    """The error for two ranks, each with its call in words, that disagree in `group`."""
    (a, call_a), (b, call_b) = sorted((one, other))
    return CollectiveMismatch(f"in group {group.name}: rank {a} called {call_a}, but rank {b} called {call_b}")


def again(error: SuperpodError) -> SuperpodError:
    """A fresh copy: one failure is raised in many threads, each with a traceback of its own."""
    return type(error)(*error.args)


class Complaint(NamedTuple):
    """The text of a probe: what its sender called, where in its code, and which other call it was sent instead."""

    call: str
    place: str = ""
    instead: str = ""

    def packed(self) -> str:
        return "\n".join(self).rstrip("\n")

    @staticmethod
    def unpacked(text: str) -> Complaint:
        return Complaint(*text.split("\n")[:3])


def at(place: str) -> str:
    """A place in the user's code, to stand behind a call."""
    return f" in {place}" if place else ""


def probe_frame(pending: Pending, group: Group | None = None) -> bytes:
    """The frame that tells a peer what it is awaited in, and where in the code a call of the group was made."""
    _, ident, tag = pending.key
    call = pending.header if isinstance(pending, Send) else pending
    place = ""
    if group is not None and (tag < 0 or isinstance(pending, Receive)):
        place = group.place(tag, call.sequence, call.text)
    return encode(Header(Kind.PROBE, ident, tag, call.sequence, call.step, text=Complaint(call.text, place).packed()))


def fail_frame(group: Group, rank: int, error: SuperpodError) -> bytes:
    """The frame that tells a peer that a group has failed; `error_from` reads its text."""
    return encode(Header(Kind.FAIL, group.ident, 0, text=f"{type(error).__name__}\n{rank}\n{error}"))


def error_of(failure: Failure) -> SuperpodError:
    """The error for the card that the launcher says has failed: what concerns all keeps its class here, too."""
    kind, _, message = failure.cause.removeprefix("raised ").partition(": ")
    return CollectiveMismatch(message) if kind == CollectiveMismatch.__name__ else PeerLost(str(failure))


def error_from(text: str) -> SuperpodError:
    """The error that another card reports: what concerns all keeps its class, the rest becomes a RemoteError."""
    kind, _, rest = text.partition("\n")
    rank, _, message = rest.partition("\n")
    for known in (CollectiveMismatch, PeerLost, RemoteError):
        if kind == known.__name__:
            return known(message)
    return RemoteError(f"rank {rank} failed with {kind}: {message}")
