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
    BYE = 3  # the sender leaves in order: group 0 is the job, sequence how often it has made another group
    FAIL = 4  # the group has failed; text says how
    PROBE = 5  # the sender waits for this message; text is its own call


_KINDS = {int(kind): kind for kind in Kind}
_MOST_KNOWN = 512
_known: dict[bytes, Header] = {}  # of whole messages between two cards, whose headers do not number them, checked
_latest: tuple[bytes, Header | None] = (
    b"",
    None,
)  # of a whole message of a collective, whose peers send the same, checked
_pack = msgpack.Packer(autoreset=True).pack


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
    if len(header.text) > MAX_TEXT // 4:  # characters of up to 4 bytes
        header = header._replace(text=_cut(header.text))
    try:
        packed: bytes = _pack((VERSION, *header))
    except UnicodeEncodeError:
        packed = _pack((VERSION, *header._replace(text=_cut(header.text))))
    return packed


def decode(frame: bytes | memoryview, payload_nbytes: int) -> Header:
    """The header in `frame`, checked against the length of the payload that came with it [B].

    Raises BadFrame saying what is wrong; allocates nothing that a forged length could inflate.
    """
    global _latest
    if type(frame) is not bytes:
        return _decoded(frame, payload_nbytes)
    latest = _latest
    known = latest[1] if frame == latest[0] else _known.get(frame)
    if known is not None and known.nbytes == payload_nbytes:
        return known
    header = _decoded(frame, payload_nbytes)
    if header.kind is Kind.DATA and header.nbytes == payload_nbytes:
        if header.tag < 0:
            _latest = frame, header
        else:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[frame] = header
    return header


def _decoded(frame: bytes | memoryview, payload_nbytes: int) -> Header:
    if len(frame) > MAX_HEADER:
        raise BadFrame(f"header of {len(frame)} B is longer than the {MAX_HEADER} B that superpod sends")
    try:
        fields = msgpack.unpackb(frame, max_str_len=MAX_HEADER, max_array_len=16, max_map_len=0, max_bin_len=0)
    except (ValueError, msgpack.UnpackException) as error:
        raise BadFrame(f"header is not msgpack: {error or type(error).__name__}") from error
    if type(fields) is not list or len(fields) != 9:
        raise BadFrame("header is not a list of 9 fields; another program's message?")
    version, kind, group, tag, sequence, step, nbytes, offset, text = fields
    if version != VERSION:
        raise BadFrame(f"header has version {version!r}, this card speaks {VERSION}; install one superpod everywhere")
    integers = type(kind) is type(group) is type(tag) is type(sequence) is type(step) is type(nbytes) is type(offset)
    if not integers or type(kind) is not int or type(text) is not str:
        raise BadFrame("header has a field of the wrong type")
    if kind not in _KINDS:
        raise BadFrame(f"header has the unknown kind {kind}")
    header = Header(_KINDS[kind], group, tag, sequence, step, nbytes, offset, text)
    if sequence < 0 or step < 0 or offset < 0 or not 0 <= nbytes <= MAX_MESSAGE:
        raise BadFrame(f"header has a number out of bounds: {header}")
    if kind != Kind.DATA:
        if payload_nbytes:
            raise BadFrame(f"{header.kind.name} frame carries a payload of {payload_nbytes} B")
    elif offset + payload_nbytes > nbytes or (payload_nbytes == 0 and nbytes > 0):
        raise BadFrame(f"torn frame: payload of {payload_nbytes} B at offset {offset} of a message of {nbytes} B")
    return header


def _cut(text: str) -> str:
    """At most MAX_TEXT bytes of UTF-8, whole characters."""
    raw = text.encode(errors="replace")
    return raw[:MAX_TEXT].decode(errors="ignore") if len(raw) > MAX_TEXT else raw.decode()
