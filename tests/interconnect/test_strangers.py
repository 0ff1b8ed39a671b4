"""How long a card waits for others that have not joined: all of them together no longer than it was told to."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from superpod.interconnect import mesh
from superpod.interconnect.errors import DeadlineExceeded
from superpod.interconnect.streams import Send
from superpod.interconnect.wire import Header, Kind


def message(card, peer: int, text: str = "a call") -> Send:
    key = (peer, card.group.ident, -1)
    return Send(key, Header(Kind.DATA, card.group.ident, -1, 3, 0, 1, 0, text), memoryview(b"x"))


def test_the_call_that_needs_a_stranger_is_named(join_memory):
    (card,) = join_memory(1)
    with pytest.raises(
        DeadlineExceeded,
        match=r"^rank 5 has not joined within 0\.1 s: it was .*, or it is dead, but rank 0 needs it in a call \(#3\)$",
    ):
        card.mesh.start(card.group, [message(card, 5)], 0.1)


def test_several_strangers_share_the_time(join_memory, monkeypatch):
    card, _, _ = join_memory(3)
    late = iter([0.75, 0.0])  # seconds until they join
    now, given = [time.monotonic()], []

    def find(peer, seconds, check, name=""):
        given.append(seconds)
        now[0] += next(late)
        return f"memory:{peer}"

    monkeypatch.setattr(mesh, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(card.mesh._peers, "find", find)
    card.mesh.start(card.group, [message(card, 1), message(card, 2)], 1.0)
    assert given == pytest.approx([1.0, 0.25])
