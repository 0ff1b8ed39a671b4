"""The flight recorder: the last calls of a card, in memory that outlives it when somebody else holds its descriptor.

A ring of slots of fixed size, packed in place: to note that a call begins and ends takes 0.5 µs together. The memory is
a memfd, which the launcher holds too: it can read what a card did last even if the card is stopped, stuck in native
code, or was killed. Layout: a header, the slots, and behind them, appended, the groups as a stream of msgpack maps.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from types import CodeType
from typing import Any

import msgpack

from superpod.collectives.places import Place, words

POSTED, WAITING, DONE, FAILED = 1, 2, 3, 4
STATES = {POSTED: "posted", WAITING: "waiting", DONE: "done", FAILED: "failed"}
COLLECTIVE, SEND, RECV = 0, 1, 2
KINDS = {COLLECTIVE: "collective", SEND: "send", RECV: "recv"}

_NAME = "superpod-record"  # of the memory, as /proc has it
_MAGIC = b"superpod record 1"
_HEADER = struct.Struct("<24sQd24x")  # magic, slots, epoch: add it to a slot's times for seconds since 1970
_TEXT, _PLACE = 112, 88  # bytes of UTF-8
_SLOT = struct.Struct(f"<QQQddBBH4x{_TEXT}s{_PLACE}s")  # serial + 1, number, nbytes, start, end, state, kind, group ...
_END = struct.Struct("<dB")
_HEAD, _SIZE = _HEADER.size, _SLOT.size
_END_AT, _STATE_AT = 32, 40  # where in a slot end and state stand
_pack, _pack_end = _SLOT.pack_into, _END.pack_into
_MOST_TEXTS = 4096  # encoded texts that are kept


@dataclass(frozen=True, slots=True)
class Record:
    """One call as it was recorded.

    Attributes:
        group: the group's name; kind: collective, send or recv.
        number: the collective's number in its group, from 0; of a message, how many of its kind came before it.
        call: the call in words, with its algorithm; with "…" where it was cut to 112 bytes.
        nbytes: S, as selection counts it [B]; of a message its length.
        started, ended: seconds since the epoch; ended is None while the call is under way.
        state: posted (a message that nobody waits for yet), waiting (under way), done or failed.
        place: "step() at train.py:88", in the user's code, its beginning cut off; "" if there is none.
    """

    group: str
    kind: str
    number: int
    call: str
    nbytes: int
    started: float
    ended: float | None
    state: str
    place: str

    @property
    def title(self) -> str:
        """The call with its number, as errors name it."""
        return f"{self.call} (#{self.number})" if self.kind == "collective" else self.call

    @property
    def waits(self) -> bool:
        return self.state == "waiting"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Recorder:
    """The calls of one card. Any thread."""

    def __init__(self, slots: int, *, shared: bool = False) -> None:
        """`slots`: how many calls are remembered, 0 for none. `shared`: the memory gets a descriptor, `fd`."""
        self.slots = slots
        self.fd: int | None = None
        self._serials = count()
        self._latest = 0
        self._texts: dict[str, bytes] = {}
        self._places: dict[
            tuple[int, int], tuple[bytes, CodeType]
        ] = {}  # the code is kept so that its id stays its own
        self._seen: tuple[Place | None, bytes] = None, b""  # the latest place, with its words
        self._groups: list[dict[str, Any]] = []
        size = _HEAD + slots * _SIZE
        if shared and slots:
            self.fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size)
            self._memory = mmap.mmap(self.fd, size)
        else:
            self._memory = mmap.mmap(-1, size)
        _HEADER.pack_into(self._memory, 0, _MAGIC, slots, time.time() - time.perf_counter())

    def group(self, name: str, ranks: Sequence[int]) -> int:
        """A number for a group with these ranks, to be given to `begin`."""
        self._groups.append({"name": name, "ranks": list(ranks)})
        if self.fd is not None:
            os.pwrite(self.fd, msgpack.packb(self._groups[-1]), os.fstat(self.fd).st_size)
        return min(len(self._groups) - 1, 0xFFFF)

    def begin(
        self, group: int, number: int, text: str, nbytes: int, started: float, place: Place | None,
        kind: int = COLLECTIVE, state: int = WAITING, ended: float = 0.0,
    ) -> int:  # fmt: skip
        """A call begins at `started`, by time.perf_counter(). Returns what `end` wants to know it by.

        `state` and `ended` say if it has ended already.
        """
        if not self.slots:
            return 0
        self._latest = serial = next(self._serials)
        seen = self._seen
        if place is not seen[0]:  # most calls of a loop come from one place
            seen = self._seen = place, self.place_bytes(place)
        what = self._texts.get(text) or self.text_bytes(text)
        at = _HEAD + serial % self.slots * _SIZE
        _pack(self._memory, at, serial + 1, number, nbytes, started, ended, state, kind, group, what, seen[1])
        return serial

    def end(self, serial: int, ended: float, state: int = DONE) -> None:
        """The call has ended, at `ended` by time.perf_counter(); a call so old that it was forgotten stays so."""
        if self._latest - serial < self.slots:
            _pack_end(self._memory, _END_AT + _HEAD + serial % self.slots * _SIZE, ended, state)

    def note(self, serial: int, state: int) -> None:
        """The call has this state from now on."""
        if state in (DONE, FAILED):
            self.end(serial, time.perf_counter(), state)
        elif self._latest - serial < self.slots:
            self._memory[_STATE_AT + _HEAD + serial % self.slots * _SIZE] = state

    def compiled(self, text: str) -> dict[str, Any]:
        """What compiled code needs to note that calls of these words begin and end: see _express.c."""
        memory = {"memory": self._memory, "head": _HEAD, "serials": self._serials}
        return {"recorder": self, "label": self.text_bytes(text), "words": self.place_bytes} | memory

    def place_bytes(self, place: Place | None) -> bytes:
        """A place as a slot has it."""
        if place is None:
            return b""
        code, offset = place
        known = self._places.get((id(code), offset))
        if known is None:
            if len(self._places) > _MOST_TEXTS:
                self._places.clear()
            known = self._places[id(code), offset] = _cut_front(words(place), _PLACE), code
        return known[0]

    def text_bytes(self, text: str) -> bytes:
        """A call in words as a slot has it."""
        if len(self._texts) > _MOST_TEXTS:
            self._texts.clear()
        raw = self._texts[text] = _cut(text, _TEXT)
        return raw

    def records(self) -> list[Record]:
        """All that is remembered, the oldest first."""
        return _records(self._memory[:], self._groups)

    def groups(self) -> dict[str, list[int]]:
        """The groups by name, with their ranks."""
        return {group["name"]: group["ranks"] for group in self._groups}

    def place_of(self, kind: int, group: str, call: str, number: int | None = None) -> str:
        """Where the latest call of this kind, text and number was made; "" if that has been forgotten."""
        text = _cut(call, _TEXT).decode()
        same = (r for r in reversed(self.records()) if (r.kind, r.group) == (KINDS[kind], group))
        return next((r.place for r in same if number in (None, r.number) and r.call.startswith(text)), "")

    def close(self) -> None:
        """Forget everything; nothing is recorded any more."""
        self.slots = 0
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def read_record(fd: int) -> tuple[list[Record], dict[str, list[int]]]:
    """The records, oldest first, and the groups with their ranks, in a recorder's memory. ([], {}) if it is none.

    Its owner may be writing, or may never have finished: what makes no sense is left out.
    """
    with contextlib.suppress(OSError, struct.error):
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        magic, slots, _ = _HEADER.unpack_from(data)
        end = _HEAD + slots * _SIZE
        if magic.rstrip(b"\0") == _MAGIC and end <= len(data):
            groups = list(_groups_in(data[end:]))
            return _records(data[:end], groups), {group["name"]: group["ranks"] for group in groups}
    return [], {}


def read_record_of(pid: int) -> tuple[list[Record], dict[str, list[int]]]:
    """As `read_record`, of a process of this host and user that does not answer, such as a stopped one."""
    with contextlib.suppress(OSError):
        links = Path(f"/proc/{pid}/fd").iterdir()
        for link in sorted(links, key=lambda link: -int(link.name)):  # the latest first: a fork has its parent's, too
            if os.readlink(link).startswith(f"/memfd:{_NAME} "):
                fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    return read_record(fd)
                finally:
                    os.close(fd)
    return [], {}


def _groups_in(data: bytes) -> Any:
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    unpacker.feed(data)
    with contextlib.suppress(ValueError, msgpack.UnpackException):
        for item in unpacker:
            if isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("ranks"), list):
                yield item


def _records(data: bytes, groups: Sequence[dict[str, Any]]) -> list[Record]:
    _, slots, epoch = _HEADER.unpack_from(data)
    found = []
    for at in range(_HEAD, _HEAD + slots * _SIZE, _SIZE):
        serial, number, nbytes, started, ended, state, kind, group, text, place = _SLOT.unpack_from(data, at)
        if serial and group < len(groups) and kind in KINDS and state in STATES:
            record = Record(
                groups[group]["name"],
                KINDS[kind],
                number,
                _words(text),
                nbytes,
                round(epoch + started, 6),
                round(epoch + ended, 6) if ended else None,
                STATES[state],
                _words(place),
            )
            found.append((serial, record))
    return [record for _, record in sorted(found, key=lambda item: item[0])]


def _words(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _cut_front(text: str, room: int) -> bytes:
    """As `_cut`, but it is the end that stays: of a place, file and line."""
    return _cut(text[::-1], room).decode()[::-1].encode()


def _cut(text: str, room: int) -> bytes:
    """At most `room` bytes of UTF-8, whole characters, with "…" where something is missing."""
    raw = text.encode(errors="replace")
    if len(raw) <= room:
        return raw
    mark = "…".encode()
    return raw[: room - len(mark)].decode(errors="ignore").encode() + mark
