"""An interrupt in the middle of a post: what is posted after it arrives whole."""

from __future__ import annotations

import contextlib

import pytest
from cards import eventually, make_links

from superpod.interconnect.link import Arrival, Refused


@pytest.mark.parametrize("size", [10, 10_000])
@pytest.mark.parametrize("parts", [0, 1, 2, 3])
def test_an_interrupt_between_the_parts_of_a_message(zmq_kind, tmp_path, size, parts):
    """After 0 to 3 of them; a message has three, or two if it is small."""
    a, b = make_links(zmq_kind, 2, tmp_path)
    a.connect(1, b.address)
    sent, send = [], a._send

    def interrupted(*part):
        if len(sent) == parts:
            raise KeyboardInterrupt
        sent.append(part)
        send(*part)
        if len(sent) == parts:
            raise KeyboardInterrupt

    a._send = interrupted
    with contextlib.suppress(KeyboardInterrupt):
        a.post(1, b"first", bytes(size))
    a._send = send
    a.post(1, b"second", b"x" * size)
    came = []

    def second() -> bool:
        while (event := b.take()) is not None:
            came.append(event)
        return any(isinstance(event, Arrival) and bytes(event.header) == b"second" for event in came)

    eventually(second)
    assert bytes(came[-1].payload) == b"x" * size
    for event in came[:-1]:  # the torn one: refused, or for the mesh to refuse, or it was whole
        assert isinstance(event, Refused) or (bytes(event.header), len(event.payload)) in [
            (b"first", 0),
            (b"first", size),
        ]
    for link in (a, b):
        link.close(1)
