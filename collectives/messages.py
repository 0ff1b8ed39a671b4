"""A group's messages between two cards, on this card: started, waited for, recorded, counted.

A *form* keeps what messages of one peer, tag and length have in common: their words, and their header, ready to be
sent. Most calls are over when they return: a send for which there is room, a receive that its caller waits for. Those
need no handle.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Protocol

import numpy as np

from superpod.collectives.call import message_text
from superpod.collectives.execute import Array
from superpod.collectives.places import Caller
from superpod.collectives.recorder import DONE, FAILED, POSTED, RECV, SEND, WAITING, Recorder
from superpod.collectives.statistics import CallClock, Statistics
from superpod.collectives.work import MessageWork
from superpod.interconnect.errors import SuperpodError
from superpod.interconnect.group import Group
from superpod.interconnect.mesh import Mesh
from superpod.interconnect.passage import NO_PASSAGE, NoPassage, Passage
from superpod.interconnect.streams import Pending, Receive, StreamKey
from superpod.interconnect.wire import Header, Kind, encode

SMALL = 4096  # bytes; up to here what has no passage is sent as a copy, which costs less than a view of any array
_FORMS = 512  # that are kept
_OPERATIONS = {SEND: "send", RECV: "recv"}


class Host(Protocol):
    """The engine whose messages these are."""

    mesh: Mesh
    group: Group
    ranks: tuple[int, ...]
    timeout: float
    statistics: Statistics


@dataclass(slots=True)
class Form:
    """What messages of one peer, tag and length have in common.

    Attributes:
        key: their stream.
        text: they in words, the same at both ends.
        header: theirs, as bytes.
        passage: their short way, once there is one.
    """

    key: StreamKey
    text: str
    sent: str  # as a call of the sender's
    received: str  # and of the receiver's
    nbytes: int
    header: bytes
    passage: Passage | NoPassage | None = None


class Messages:
    """One card's side of them."""

    def __init__(self, engine: Host, recorder: Recorder, recorded: int, clock: CallClock | None) -> None:
        """`recorded`: the group's number in the recorder. `clock` counts the group's calls for the modelled clock."""
        self._engine, self._mesh, self._group = engine, engine.mesh, engine.group
        self._statistics, self._recorder, self._recorded, self._clock = engine.statistics, recorder, recorded, clock
        self._numbers = count()
        self._senders, self._receivers = Caller(), Caller()
        self._forms: dict[Any, Form] = {}

    def form(self, key: Any) -> Form | None:
        """The form that was opened under this key, unless it has been forgotten."""
        return self._forms.get(key)

    def new_form(self, key: Any, peer: int, tag: int, label: str, nbytes: int) -> Form:
        """A form, kept under `key` (None: not kept), which tells messages apart by peer, tag and label.

        Args:
            peer: a group rank.
            label: length and dtype in words; nbytes: of a message.
        Raises:
            InvalidValue: there is no such tag.
        """
        text, rank, group = message_text(label, tag), self._engine.ranks[peer], self._group.ident
        tag = int(tag)
        header = encode(Header(Kind.DATA, group, tag, 0, 0, nbytes, 0, text))
        form = Form((rank, group, tag), text, f"{text} to rank {peer}", f"{text} from rank {peer}", nbytes, header)
        if key is not None:
            if len(self._forms) >= _FORMS:
                self._forms.clear()
            self._forms[key] = form
        return form

    # Over when they return

    def send_now(self, form: Form, array: Array) -> bool:
        """Send an array, if nothing is in the way. False, and nothing is done, where only `send` can tell what is."""
        place, start = self._senders.place(), time.perf_counter()
        if self._clock is not None:
            return False
        if not (form.passage or self._passage(form)).send(array):
            small = form.nbytes <= SMALL
            if not small or not self._mesh.post(self._group, form.key, form.header, array.tobytes()):
                return False
        ended, number, nbytes = time.perf_counter(), next(self._numbers), form.nbytes
        self._recorder.begin(self._recorded, number, form.sent, nbytes, start, place, SEND, DONE, ended)
        self._statistics.message_ended("send", nbytes, ended - start)
        return True

    def recv_now(self, form: Form, array: Array) -> bool:
        """Receive a flat array. What keeps it from coming in the group's time is a failure of the group.

        False, and nothing is done, where the modelled clock wants to know of it: so only `recv` will do.
        """
        if self._clock is not None:
            return False
        place, start, recorder, mesh = self._receivers.place(), time.perf_counter(), self._recorder, self._mesh
        if (form.passage or self._passage(form)).recv(array):
            ended, number, nbytes = time.perf_counter(), next(self._numbers), form.nbytes
            recorder.begin(self._recorded, number, form.received, nbytes, start, place, RECV, DONE, ended)
            self._statistics.message_ended("recv", nbytes, ended - start)
            return True
        into = array.reshape(-1).view(np.uint8)
        receive = Receive(form.key, into, None, 0, 0, form.text)
        mesh.expect(self._group, receive)
        number, pendings, seconds = next(self._numbers), (receive,), self._engine.timeout
        serial = recorder.begin(self._recorded, number, form.received, form.nbytes, start, place, RECV, WAITING)
        try:
            if not mesh.advance(pendings, self._group, seconds=seconds):
                raise mesh.too_late(pendings, seconds, form.received)
        except SuperpodError as error:
            recorder.end(serial, time.perf_counter(), FAILED)
            mesh.cancel(pendings)
            mesh.fail_group(self._group, error, tell=receive.awaited)
            raise
        ended = time.perf_counter()
        recorder.end(serial, ended)
        self._statistics.message_ended("recv", form.nbytes, ended - start)
        return True

    def _passage(self, form: Form) -> Passage | NoPassage:
        form.passage = self._mesh.passage(self._group, form.key, form.header, form.nbytes)
        return form.passage or NO_PASSAGE

    # Under way

    def send(self, form: Form, array: Array, timeout: float | None) -> MessageWork:
        """Start sending bytes."""
        (peer, _, tag), seconds = form.key, self._seconds(timeout)
        send = self._mesh.send(self._group, peer, tag, array.data, text=form.text, seconds=seconds)
        return self._work(SEND, form.sent, send, form.nbytes, seconds, _nothing, self._senders)

    def recv(self, form: Form, array: Array, timeout: float | None, finish: Callable[[], Any]) -> MessageWork:
        """Start receiving bytes; the work's result is what `finish` returns."""
        receive = Receive(form.key, array, None, 0, 0, form.text)
        passage = form.passage or self._passage(form)
        self._mesh.expect(self._group, receive)
        work = self._work(RECV, form.received, receive, form.nbytes, self._seconds(timeout), finish, self._receivers)
        if self._clock is None:
            work.fetch = partial(passage.fetch, receive)
        return work

    def recv_any(self, array: Array, tag: int, label: str, finish: Callable[[int], Any]) -> MessageWork:
        """Start receiving bytes from whoever sends first; the result is what `finish(its group rank)` returns."""
        text, ranks = message_text(label, tag), self._engine.ranks
        receive = self._mesh.receive_any(self._group, ranks, tag, array, text)
        ended = partial(_finish_any, receive, ranks, finish)
        return self._work(
            RECV, f"{text} from anyone", receive, array.nbytes, self._seconds(None), ended, self._receivers
        )

    def _seconds(self, timeout: float | None) -> float:
        return self._engine.timeout if timeout is None else timeout

    def _work(
        self,
        kind: int,
        what: str,
        pending: Pending,
        nbytes: int,
        seconds: float,
        finish: Callable[[], Any],
        caller: Caller,
    ) -> MessageWork:
        place, number, start, record = caller.place(), next(self._numbers), time.perf_counter(), self._recorder
        serial = record.begin(self._recorded, number, what, nbytes, start, place, kind, POSTED)
        note: Callable[[int], None] = _Notes(record, serial, self._statistics, _OPERATIONS[kind], nbytes, start)
        if self._clock is not None:
            note = self._clock.message(pending, nbytes, note)
        work = MessageWork(what, self._mesh, self._group, (pending,), seconds, finish, note)
        if pending.done:
            work.carry_out(finish)
        return work


class _Notes:
    """Where the states of a message are noted: in its record, and that it is done in the statistics."""

    __slots__ = ("_nbytes", "_operation", "_record", "_serial", "_start", "_statistics")

    def __init__(
        self, record: Recorder, serial: int, statistics: Statistics, operation: str, nbytes: int, start: float
    ) -> None:
        self._record, self._serial, self._statistics = record, serial, statistics
        self._operation, self._nbytes, self._start = operation, nbytes, start

    def __call__(self, state: int) -> None:
        self._record.note(self._serial, state)
        if state == DONE:
            self._statistics.message_ended(self._operation, self._nbytes, time.perf_counter() - self._start)


def _finish_any(receive: Receive, ranks: tuple[int, ...], finish: Callable[[int], Any]) -> Any:
    return finish(ranks.index(receive.peer))


def _nothing() -> None:
    pass
