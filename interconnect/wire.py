"""What a message looks like on any link: a bounded, versioned msgpack header, and the payload as raw bytes. No pickle.

A large payload travels as several frames, its segments, each with a header of its own; `nbytes` is always the whole
message and `offset` says where the frame's payload belongs in it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import msgpack

from superpod.interconnect.errors import BadFrame

VERSION = 1
MAX_HEADER = 16 * 1024  # bytes; the text of a failure is the longest thing in a header
MAX_TEXT = 12 * 1024  # bytes of UTF-8 that encode() keeps
MAX_MESSAGE = 1 << 46  # bytes; nothing on earth sends more, so a larger number is a torn frame


class Kind(IntEnum):
    """What a frame is for."""

    DATA = 1  # a segment of a message
    CREDIT = 2  # nbytes of the stream were consumed: as many more may be sent
    BYE = 3  # the sender leaves in order
    FAIL = 4  # the group has failed; text says how
    PROBE = 5  # the sender waits for this message; text is its own call


_KINDS = {int(kind): kind for kind in Kind}


class Header(NamedTuple):
    """Everything a receiver needs to know before it looks at the payload.

    Attributes:
        kind: what the frame is for.
        group: the group's 64-bit id.
        tag: the stream within the group: messages of one (sender, group, tag) keep their order.
        sequence: the collective's number in its group, from 0.
        step: the schedule's step.
        nbytes: length of the whole message [B].
        offset: where this frame's payload starts in it [B].
        text: the sender's call in words, in a message's first frame; a failure's text in FAIL.
    """

    kind: Kind
    group: int
    tag: int
    sequence: int = 0
    step: int = 0
    nbytes: int = 0
    offset: int = 0
    text: str = ""


def encode(header: Header) -> bytes:
    """The header as bytes; a text above MAX_TEXT is cut, and what UTF-8 cannot express in it becomes "?"."""
    text = header.text
    if len(text) > MAX_TEXT or not text.isascii():
        text = _cut(text)
    fields = (header.group, header.tag, header.sequence, header.step, header.nbytes, header.offset, text)
    packed: bytes = msgpack.packb((VERSION, int(header.kind), *fields))
    return packed


def decode(frame: bytes | memoryview, payload_nbytes: int) -> Header:
    """The header in `frame`, checked against the length of the payload that came with it [B].

    Raises BadFrame saying what is wrong; allocates nothing that a forged length could inflate.
    """
    if len(frame) > MAX_HEADER:
        raise BadFrame(f"header of {len(frame)} B is longer than the {MAX_HEADER} B that superpod sends")
    try:
        fields = msgpack.unpackb(frame, max_str_len=MAX_HEADER, max_array_len=16, max_map_len=0, max_bin_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise BadFrame(f"header is not msgpack: {error or type(error).__name__}") from error
    if not isinstance(fields, list) or len(fields) != 9:
        raise BadFrame("header is not a list of 9 fields; another program's message?")
    version, kind, *numbers, text = fields
    if version != VERSION:
        raise BadFrame(f"header has version {version!r}, this card speaks {VERSION}; install one superpod everywhere")
    if type(text) is not str or {*map(type, numbers)} != {int} or type(kind) is not int:
        raise BadFrame("header has a field of the wrong type")
    if kind not in _KINDS:
        raise BadFrame(f"header has the unknown kind {kind}")
    group, tag, sequence, step, nbytes, offset = numbers
    header = Header(_KINDS[kind], group, tag, sequence, step, nbytes, offset, text)
    _check_bounds(header, payload_nbytes)
    return header


def _check_bounds(header: Header, payload_nbytes: int) -> None:
    if header.sequence < 0 or header.step < 0 or header.offset < 0 or not 0 <= header.nbytes <= MAX_MESSAGE:
        raise BadFrame(f"header has a number out of bounds: {header}")
    if header.kind is not Kind.DATA:
        if payload_nbytes:
            raise BadFrame(f"{header.kind.name} frame carries a payload of {payload_nbytes} B")
        return
    end = header.offset + payload_nbytes
    if end > header.nbytes or (payload_nbytes == 0 and header.nbytes > 0):
        raise BadFrame(
            f"torn frame: payload of {payload_nbytes} B at offset {header.offset} of a message of {header.nbytes} B"
        )


def _cut(text: str) -> str:
    """At most MAX_TEXT bytes of UTF-8, whole characters."""
    raw = text.encode(errors="replace")
    return raw[:MAX_TEXT].decode(errors="ignore") if len(raw) > MAX_TEXT else raw.decode()
