"""Rings and inboxes in shared memory, without sockets: order, room, and what a peer that writes nonsense can do."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shm_cards import shared_mappings

from superpod.interconnect import shm_ring
from superpod.interconnect.errors import BadFrame
from superpod.interconnect.shm_inbox import MOST_SLOTS, NBYTES, Inbox, PeersInbox
from superpod.interconnect.shm_memory import Memory
from superpod.interconnect.shm_ring import HEAD, LINE, room_of

try:
    from superpod.interconnect import _ring
except ImportError:
    _ring = None  # type: ignore[assignment]

Ends = Callable[..., tuple[Any, Any, memoryview]]
MODULES = {"python": shm_ring, "compiled": _ring}
BOTH = [
    pytest.param((a, b), id=f"{a}-to-{b}")
    for a in MODULES
    for b in MODULES
    if _ring is not None or (a, b) == ("python", "python")
]


def ends_of(which: tuple[str, str], nbytes: int = 1 << 16) -> tuple[Any, Any, memoryview]:
    """A sender's end, a receiver's end, each in Python or in C, and their memory."""
    view = memoryview(bytearray(HEAD + nbytes))
    return MODULES[which[0]].Outgoing(view), MODULES[which[1]].Incoming(view), view


@pytest.fixture(params=BOTH)
def which(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def ends(which: tuple[str, str]) -> Ends:
    return partial(ends_of, which)


def taken(incoming: Any) -> tuple[bytes, bytes] | None:
    frame = incoming.read()
    return None if frame is None else (frame[0], bytes(frame[1]))


FRAMES = st.tuples(st.integers(0, 200), st.sampled_from([0, 1, 8, 63, 64, 65, 500, 2048, 2049, 5000]))
ACTIONS = st.lists(st.one_of(FRAMES, st.just("read"), st.just("release")), max_size=300)


@given(which=st.sampled_from([p.values[0] for p in BOTH]), lines=st.integers(10, 400), actions=ACTIONS)
@settings(max_examples=200, deadline=None)
def test_what_goes_in_comes_out_in_order(which, lines, actions):
    """Whatever the order of writing, reading and releasing; and a frame that finds no room changes nothing."""
    outgoing, incoming, _ = ends_of(which, lines * LINE)
    inside: list[tuple[bytes, bytes]] = []
    for number, action in enumerate(actions):
        if action == "read":
            assert taken(incoming) == (inside.pop(0) if inside else None)
        elif action == "release":
            incoming.release()
        else:
            frame = (bytes([number % 256]) * action[0], bytes([~number % 256]) * action[1])
            if outgoing.write(*frame):
                inside.append(frame)
            elif not inside:
                incoming.release()
                room = room_of(*action)
                assert outgoing.write(*frame) == (room <= lines * LINE)
                inside += [frame] if room <= lines * LINE else []
    for frame in inside:
        assert taken(incoming) == frame
    assert taken(incoming) is None


def test_payloads_lie_where_vectors_can_be_loaded(which):
    memory, descriptor = Memory.create(1 << 16)
    os.close(descriptor)
    outgoing, incoming = MODULES[which[0]].Outgoing(memory.view), MODULES[which[1]].Incoming(memory.view)
    for nbytes in (1, 100, 3000):
        assert outgoing.write(b"h" * nbytes, bytes(nbytes))
        payload = np.frombuffer(incoming.read()[1], np.uint8)
        assert payload.ctypes.data % LINE == 0


def test_a_receiver_who_keeps_up_leaves_the_ring_untouched(ends):
    outgoing, incoming, view = ends(1 << 20)
    for _ in range(10_000):
        assert outgoing.write(b"header", b"payload")
        assert taken(incoming) == (b"header", b"payload")
        incoming.release()
    assert not any(view[HEAD + (16 << 10) :]), "more than 16 KiB was written to"


def test_a_payload_stays_until_it_is_released(ends):
    outgoing, incoming, _ = ends(8192)
    assert outgoing.write(b"", b"a" * 3000)
    _, payload = incoming.read()
    while outgoing.write(b"", b"b" * 1000):
        pass
    assert bytes(payload) == b"a" * 3000
    assert incoming.read() is not None
    incoming.release()
    assert outgoing.write(b"", b"c" * 3000)
    assert bytes(payload) == b"c" * 3000


def test_a_ring_that_was_left(ends):
    outgoing, incoming, _ = ends(4096)
    while outgoing.write(b"h", b"p" * 100):
        pass
    outgoing.leave()
    while (frame := taken(incoming)) is not None:
        assert frame == (b"h", b"p" * 100)
        assert not incoming.left
        incoming.release()
    assert incoming.left
    assert taken(incoming) is None


# Nonsense from the other side


@pytest.mark.parametrize("tail", [1, 63, 65, 8192, 1 << 40, (1 << 64) - 64])
def test_a_tail_that_cannot_be(tail, ends):
    _, incoming, view = ends(4096)
    view[:8] = struct.pack("<Q", tail)
    with pytest.raises(BadFrame, match=rf"^torn ring: written up to {tail} B after 0 of 4096 B$"):
        incoming.read()


def test_a_tail_that_goes_back(ends):
    outgoing, incoming, view = ends(4096)
    outgoing.write(b"h", b"p")
    assert taken(incoming) == (b"h", b"p")
    view[:8] = bytes(8)
    with pytest.raises(BadFrame, match="torn ring: written up to 0 B after 128"):
        incoming.read()


@pytest.mark.parametrize("base", [4096, 4096 * 5, 64, (1 << 64) - 4096])
def test_a_base_that_cannot_be(base, ends):
    outgoing, incoming, view = ends(4096)
    outgoing.write(b"h", b"p")
    view[8:16] = struct.pack("<Q", base)
    if base % 4096 == 0:
        with pytest.raises(BadFrame, match="torn ring: written up to 128 B"):
            incoming.read()
    else:
        assert taken(incoming) == (b"h", b"p")


@pytest.mark.parametrize(
    "prefix", [(1 << 31, 0), (0, 1 << 31), (0xFFFFFFFD, 0xFFFFFFFF), (100, 100), (0xFFFFFFFF, 0), (0, 129)]
)
def test_a_frame_that_is_longer_than_what_was_written(prefix, ends):
    outgoing, incoming, view = ends(4096)
    outgoing.write(b"h", b"p")
    view[HEAD : HEAD + 8] = struct.pack("<II", *prefix)
    with pytest.raises(BadFrame, match=r"^torn ring: (frame of|goes on at)"):
        incoming.read()


def test_a_farewell_to_the_ring_with_more_behind_it(ends):
    outgoing, incoming, view = ends(4096)
    outgoing.write(b"h", b"p")
    view[HEAD : HEAD + 8] = struct.pack("<II", 0xFFFFFFFE, 0)
    with pytest.raises(BadFrame, match=r"^torn ring: goes on at 64 of 128 B$"):
        incoming.read()


def test_a_head_that_cannot_be(ends):
    outgoing, _, view = ends(4096)
    view[LINE : LINE + 8] = struct.pack("<Q", 1 << 30)
    with pytest.raises(BadFrame, match=rf"^torn ring: it was read up to {1 << 30} of 0 B$"):
        outgoing.write(b"", bytes(5000))


@pytest.mark.parametrize("module", [module for module in MODULES.values() if module is not None])
@given(content=st.binary(min_size=HEAD + 640, max_size=HEAD + 640), lines=st.integers(1, 20))
@settings(deadline=None)
def test_any_bytes_are_read_or_refused(module, content, lines):
    """With a tail that may be, so that reading goes as far as it can."""
    view = memoryview(bytearray(struct.pack("<Q", lines * LINE) + bytes(HEAD - 8) + content[HEAD:]))
    incoming = module.Incoming(view)
    try:
        while (frame := incoming.read()) is not None:
            assert len(frame[0]) + len(frame[1]) <= 640
            incoming.release()
    except BadFrame:
        pass


def test_who_was_stopped_reads_nothing_more(ends):
    outgoing, incoming, _ = ends()
    outgoing.write(b"h", b"p")
    incoming.stop()
    outgoing.write(b"h", b"p")
    assert incoming.read() is None
    incoming.release()


# Memory


def test_memory_is_sealed_and_shared():
    memory, descriptor = Memory.create(5000)
    other = Memory.adopt(descriptor, 4096, 1 << 20)
    assert (memory.nbytes, other.nbytes) == (8192, 8192)
    memory.words[3] = 1 << 63 | 5
    assert other.view[24:32].tobytes() == struct.pack("<Q", 1 << 63 | 5)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 4096)
    os.close(descriptor)


def test_views_outlive_the_memory_and_the_memory_goes_with_them():
    before = shared_mappings()
    memory, descriptor = Memory.create(1 << 20)
    os.close(descriptor)
    view = memory.view[4096:8192]
    del memory
    view[:5] = b"still"
    assert shared_mappings() == before + 1
    del view
    assert shared_mappings() == before


@pytest.mark.parametrize("kind", ["pipe", "plain", "unsealed", "small", "large"])
def test_other_memory_is_refused(kind, tmp_path):
    if kind == "pipe":
        descriptor, other = os.pipe()
        os.close(other)
    elif kind == "plain":
        (tmp_path / "file").write_bytes(bytes(8192))
        descriptor = os.open(tmp_path / "file", os.O_RDWR)
    elif kind == "unsealed":
        descriptor = os.memfd_create("superpod", os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, 8192)
    else:
        descriptor = Memory.create({"small": 4096, "large": 1 << 30}[kind])[1]
    with pytest.raises(BadFrame, match=r"shared memory (of \d+ B must have|whose size is not)|not of shared memory"):
        Memory.adopt(descriptor, 8192, 1 << 20)
    os.close(descriptor)


# Inbox


@pytest.fixture
def inbox():
    inbox = Inbox()
    yield inbox
    inbox.close()


def writer(inbox: Inbox, slot: int) -> PeersInbox:
    return PeersInbox(inbox.descriptors[0], os.dup(inbox.bell), slot)


def test_news_names_the_slots_that_have_changed(inbox):
    slots = [inbox.take_slot() for _ in range(70)]
    peers = [writer(inbox, slot) for slot in slots]
    assert (inbox.has_news(), inbox.news()) == (False, [])
    for slot in (0, 3, 64, 69):
        peers[slot].tell(1)
    assert inbox.has_news()
    assert inbox.news() == [0, 3, 64, 69]
    peers[3].tell(1 << 40)
    assert inbox.news() == [3]
    assert not inbox.has_news()
    for peer in peers:
        peer.close()


def test_a_bell_is_rung_once_and_only_for_who_sleeps(inbox):
    a, b = (writer(inbox, inbox.take_slot()) for _ in range(2))
    a.tell(1)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(inbox.bell)
    assert not inbox.fall_asleep()  # there is news
    inbox.wake_up()
    inbox.news()
    assert inbox.fall_asleep()
    a.tell(2)
    b.tell(1)
    assert os.eventfd_read(inbox.bell) == 1
    a.close()
    b.close()


def test_a_slot_that_does_not_exist(inbox):
    for slot in (-1, MOST_SLOTS):
        with pytest.raises(BadFrame, match=f"slot {slot} does not exist"):
            PeersInbox(inbox.descriptors[0], inbox.bell, slot)
    assert NBYTES >= 8 * MOST_SLOTS
