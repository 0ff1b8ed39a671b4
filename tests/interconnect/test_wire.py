from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from superpod.interconnect.errors import BadFrame
from superpod.interconnect.wire import MAX_HEADER, MAX_MESSAGE, MAX_TEXT, VERSION, Header, Kind, decode, encode

IDENT = st.integers(-(1 << 63), (1 << 64) - 1)
COUNT = st.integers(0, (1 << 64) - 1)
NBYTES = st.integers(0, MAX_MESSAGE)
TEXT = st.text(max_size=200)
SCALAR = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary()
ANYTHING = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
)


@st.composite
def headers(draw) -> tuple[Header, int]:
    """A header that superpod may send, and the length of the payload beside it."""
    kind, nbytes = draw(st.sampled_from(Kind)), draw(NBYTES)
    offset, payload = 0, 0
    if kind is Kind.DATA and nbytes:
        offset = draw(st.integers(0, nbytes - 1))
        payload = draw(st.integers(1, nbytes - offset))
    return Header(kind, draw(IDENT), draw(IDENT), draw(COUNT), draw(COUNT), nbytes, offset, draw(TEXT)), payload


def is_in_bounds(header: Header, payload: int) -> bool:
    return (
        isinstance(header.kind, Kind)
        and all(type(number) is int for number in header[1:7])
        and isinstance(header.text, str)
        and min(header.sequence, header.step, header.offset, header.nbytes) >= 0
        and header.nbytes <= MAX_MESSAGE
        and (header.offset + payload <= header.nbytes if header.kind is Kind.DATA else payload == 0)
    )


def accepted(frame: bytes, payload: int) -> bool:
    """Whether `decode` takes a frame; anything but a right header and BadFrame fails the test."""
    try:
        header = decode(frame, payload)
    except BadFrame:
        return False
    assert is_in_bounds(header, payload)
    return True


@given(headers())
def test_a_header_comes_back_as_it_was(case):
    header, payload = case
    assert decode(encode(header), payload) == header
    assert decode(memoryview(encode(header)), payload) == header


@pytest.mark.parametrize(
    "header", [Header(Kind.DATA, 0, 0), Header(Kind.BYE, 0, 0), Header(Kind.FAIL, 1, -1, text="x")]
)
def test_short_headers_are_short(header):
    assert len(encode(header)) < 16


# What is refused


@given(st.binary(max_size=200), st.integers(0, 100))
@example(b"", 0)
@example(b"\xc1", 0)
@example(b"\xdc\xff\xff", 0)
@example(b"\x99" * 600, 0)
@example(b"\xd6\xff\0\0\0\0", 0)
def test_arbitrary_bytes_are_refused(frame, payload):
    accepted(frame, payload)


@given(ANYTHING, st.integers(0, 10))
@example([True, True, 0, 0, 0, 0, 0, 0, ""], 0)
@example([1, [], 0, 0, 0, 0, 0, 0, ""], 0)
@example([1, 1.0, 0, 0, 0, 0, 0, 0, ""], 0)
@example([[[]] * 9, 1, 0, 0, 0, 0, 0, 0, ""], 0)
def test_messages_of_any_shape_are_refused(value, payload):
    accepted(msgpack.packb(value), payload)


@given(st.lists(SCALAR | st.lists(SCALAR), min_size=7, max_size=7), st.integers(0, 10))
def test_fields_of_any_type_are_refused(values, payload):
    accepted(msgpack.packb([VERSION, 1, *values]), payload)


@given(headers(), st.data())
def test_a_torn_header_is_refused_or_still_in_bounds(case, data):
    header, payload = case
    frame = bytearray(encode(header))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    accepted(bytes(frame), payload)
    assert not accepted(encode(header)[: data.draw(st.integers(0, len(frame) - 1))], payload)
    assert not accepted(encode(header) + b"\0", payload)


def fields(**changes: object) -> bytes:
    values = {"version": VERSION, "kind": 1, "group": 0, "tag": 0, "sequence": 0, "step": 0, "nbytes": 8, "offset": 0}
    return msgpack.packb([*(values | changes | {"text": ""}).values()])


@pytest.mark.parametrize(
    ("frame", "payload", "why"),
    [
        (
            bytes(MAX_HEADER + 1),
            8,
            rf"header of {MAX_HEADER + 1} B is longer than the {MAX_HEADER} B that superpod sends",
        ),
        (b"\xc1", 8, "header is not msgpack: "),
        (msgpack.packb("x"), 8, "header is not a list of 9 fields; another program's message"),
        (msgpack.packb([1] * 8), 8, "header is not a list of 9 fields"),
        (fields(version=2), 8, "header has version 2, this card speaks 1; install one superpod everywhere"),
        (fields(version="1"), 8, "header has version '1', this card speaks 1"),
        (fields(group=None), 8, "header has a field of the wrong type"),
        (fields(step=True), 8, "header has a field of the wrong type"),
        (fields(kind=6), 8, "header has the unknown kind 6"),
        (fields(kind=0), 8, "header has the unknown kind 0"),
        (fields(sequence=-1), 8, r"header has a number out of bounds: Header\("),
        (fields(offset=-8), 8, "header has a number out of bounds"),
        (fields(nbytes=1 << 60), 8, "header has a number out of bounds"),
        (fields(nbytes=MAX_MESSAGE + 1), 8, "header has a number out of bounds"),
        (fields(kind=2), 8, "CREDIT frame carries a payload of 8 B"),
        (fields(), 9, "torn frame: payload of 9 B at offset 0 of a message of 8 B"),
        (fields(offset=9), 8, "torn frame: payload of 8 B at offset 9 of a message of 8 B"),
        (fields(), 0, "torn frame: payload of 0 B at offset 0 of a message of 8 B"),
    ],
)
def test_what_is_wrong_is_said(frame, payload, why):
    with pytest.raises(BadFrame, match=why):
        decode(frame, payload)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1 fields
        b"\xdf\xff\xff\xff\xff",  # a map
        b"\xdb\xff\xff\xff\xff",  # a text
        b"\xc6\xff\xff\xff\xff",  # bytes
        b"\xc9\xff\xff\xff\xff\1",  # an extension
        b"\xdc\x30\x00" * 5000,  # arrays of 12288 in arrays
        b"\x9f" * 15_000,
        fields(nbytes=1 << 60),
    ],
)
def test_a_forged_length_allocates_nothing(frame):
    tracemalloc.start()
    try:
        with pytest.raises(BadFrame):
            decode(frame, 8)
        assert tracemalloc.get_traced_memory()[1] < 256 * 1024
    finally:
        tracemalloc.stop()


# Texts


@pytest.mark.parametrize("text", ["x" * MAX_TEXT, "ü" * (MAX_TEXT // 2), "😀" * (MAX_TEXT // 4), "a\0b\n"])
def test_a_text_that_fits_is_kept(text):
    assert decode(encode(Header(Kind.FAIL, 1, 0, text=text)), 0).text == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * (MAX_TEXT + 1), "x" * MAX_TEXT),
        ("x" * 1_000_000, "x" * MAX_TEXT),
        ("x" + "ü" * MAX_TEXT, "x" + "ü" * (MAX_TEXT // 2 - 1)),  # whole characters
        ("😀" * MAX_TEXT, "😀" * (MAX_TEXT // 4)),
        ("file \udcff", "file ?"),  # a name that is not UTF-8, as Python keeps it
    ],
)
def test_a_text_that_does_not_fit_is_cut(text, kept):
    frame = encode(Header(Kind.FAIL, (1 << 64) - 1, -(1 << 63), 1 << 63, 1 << 63, 1 << 46, 0, text))
    assert len(frame) <= MAX_HEADER
    assert decode(frame, 0).text == kept


def test_a_header_that_is_known_is_still_held_against_its_payload():
    header = Header(Kind.DATA, 1, 3, nbytes=8, text="a message")
    frame = encode(header)
    for _ in range(2):
        assert decode(frame, 8) == header
        for nbytes in (0, 9):
            with pytest.raises(BadFrame, match="torn frame"):
                decode(frame, nbytes)
        assert decode(frame, 4) == header  # a segment of it
