"""A group's collectives on this card, numbered, and held against what its peers say that they are in."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Any

from superpod.collectives.call import group_ident
from superpod.collectives.execute import COLLECTIVE_TAG
from superpod.collectives.places import Place
from superpod.collectives.recorder import COLLECTIVE, DONE, FAILED, RECV, SEND, Recorder
from superpod.interconnect.errors import SuperpodError
from superpod.interconnect.group import Complaint, again, at, mismatch
from superpod.interconnect.mesh import Mesh
from superpod.interconnect.wire import Header, Kind

_HISTORY = 1024  # calls that a card remembers, those alike in a row as one, to answer who still waits in one of them


class Agreement:
    """One card's side of it.

    Attributes:
        group: the mesh's.
        next: the number of the next collective.
        under_way: the record of the collective that has begun and not ended.
        recorded: the group's number in the recorder.
    """

    def __init__(self, mesh: Mesh, ranks: Sequence[int], name: str, recorder: Recorder) -> None:
        """Open the group of this name; `ranks` are its members' in the mesh."""
        self._mesh, self._recorder = mesh, recorder
        self.recorded = recorder.group(name, ranks)
        self.next = 0
        self.under_way: int | None = None
        self._called = ""  # what this card called last
        self._history: deque[tuple[int, str]] = deque(maxlen=_HISTORY)  # (number, what it has called from there on)
        self._asked: dict[int, dict[str, tuple[int, Header]]] = {}  # number to come → peers' calls → who and how
        self.group = mesh.open_group(group_ident(name, ranks), name, self._on_probe)
        self.group.place, self.group.text = self.place_of, lambda number: self._text_of(number) or ""

    def trouble(self) -> bool:
        """Whether `begin` would raise, or has to look closer before it knows."""
        group = self.group
        return group.failure is not None or group.due < inf or bool(self._asked)

    def compiled(self, text: str) -> dict[str, Any]:
        """What compiled code needs to begin and end calls of these words: see _express.c."""
        own = {"agreement": self, "group": self.group, "asked": self._asked, "recorded": self.recorded}
        return own | self._recorder.compiled(text)

    def begin(self, text: str, nbytes: int, started: float, place: Place | None) -> int:
        """Number a collective that this card now calls.

        Raises the group's failure, and CollectiveMismatch if a peer that waits in this number called something else.
        """
        if self.group.failure is not None:
            raise again(self.group.failure)
        if self.group.due < inf:
            self._mesh.settle(self.group)
        sequence = self.next
        if text is not self._called:
            self._history.append((sequence, text))
            self._called = text
        self.next = sequence + 1  # from now on _text_of has it, also in other threads
        self.under_way = self._recorder.begin(self.recorded, sequence, text, nbytes, started, place)
        if self._asked and (asked := self._asked.pop(sequence, None)) is not None:
            self._compare(asked, text)
        return sequence

    def _text_of(self, number: int) -> str | None:
        """What this card called under a number; None if it has not yet, or has forgotten it."""
        if number >= self.next:
            return None
        return next((text for first, text in reversed(self._history.copy()) if first <= number), None)

    def end(self, ended: float) -> None:
        """The collective that had begun has ended, at `ended` by time.perf_counter()."""
        if self.under_way is not None:
            self._recorder.end(self.under_way, ended, DONE)
            self.under_way = None

    def fail(self) -> None:
        """The collective that had begun, if one had, has failed."""
        if self.under_way is not None:
            self._recorder.end(self.under_way, time.perf_counter(), FAILED)
            self.under_way = None

    def disown(self) -> None:
        """In a forked child: what was under way is the parent's."""
        self.under_way = None

    def _compare(self, asked: dict[str, tuple[int, Header]], called: str) -> None:
        """Raise CollectiveMismatch if peers have called something else than what this card calls now."""
        asked.pop(called, None)
        for peer, header in asked.values():
            if header.kind is Kind.DATA:  # it does not say where in its code the peer made the call, but the peer will
                self._mesh.dispute(self.group, peer, header, called)
            raise self._mismatch(peer, Complaint.unpacked(header.text), called, header.sequence)

    def _on_probe(self, peer: int, header: Header) -> None:
        """`peer` waits for this card in a collective, or has sent a message of one that this card has not called.

        Compare its call with this card's of the same number, now or when it is made.
        """
        complaint = Complaint.unpacked(header.text)
        if header.tag != COLLECTIVE_TAG:
            if complaint.instead:  # a message of this card's
                place = self._recorder.place_of(SEND, self.group.name, complaint.instead)
                theirs, mine = f"{complaint.call} (#0){at(complaint.place)}", f"{complaint.instead} (#0){at(place)}"
                error = mismatch(self.group, (peer, theirs), (self._mesh.rank, mine))
                self._mesh.fail_group_locked(self.group, error)
            return
        called = self._text_of(header.sequence)
        if called is None and header.sequence >= self.next:
            self._asked.setdefault(header.sequence, {}).setdefault(complaint.call, (peer, header))
            called = self._text_of(header.sequence)  # another thread may just have begun it
        if called is not None and called != complaint.call:
            self._mesh.fail_group_locked(self.group, self._mismatch(peer, complaint, called, header.sequence))

    def _mismatch(self, peer: int, complaint: Complaint, called: str, number: int) -> SuperpodError:
        theirs = f"{complaint.call} (#{number}){at(complaint.place)}"
        mine = f"{called} (#{number}){at(self.place_of(COLLECTIVE_TAG, number, called))}"
        return mismatch(self.group, (peer, theirs), (self._mesh.rank, mine))

    def place_of(self, tag: int, number: int, text: str) -> str:
        """Where in the user's code this card made a call that waits, or a collective."""
        if tag == COLLECTIVE_TAG:
            return self._recorder.place_of(COLLECTIVE, self.group.name, text, number)
        return self._recorder.place_of(RECV, self.group.name, text)
