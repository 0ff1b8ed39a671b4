from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cards import LINKS, REAL, SHM, ZMQ, Card, dictionary, make_links
from shm_cards import HEADER, taken

from superpod.interconnect.shm_link import ShmLink

Join = Callable[..., list[Card]]


@pytest.fixture(params=LINKS)
def kind(request) -> str:
    """Every link."""
    return request.param


@pytest.fixture(params=ZMQ)
def zmq_kind(request) -> str:
    """Every way in which ZeroMQ connects."""
    return request.param


@pytest.fixture(params=REAL)
def real_kind(request) -> str:
    """Every link between processes."""
    return request.param


def _joiner(kind: str, tmp_path, stack: contextlib.ExitStack) -> Join:
    def join(n: int = 2, **settings: Any) -> list[Card]:
        book = dictionary()
        cards = [Card(link, book, **settings) for link in make_links(kind, n, tmp_path)]
        for card in cards:
            stack.callback(card.close)
        return cards

    return join


@pytest.fixture
def join(kind, tmp_path) -> Iterator[Join]:
    """`join(n, **settings)`: n cards in this process, over every link; they are closed after the test."""
    with contextlib.ExitStack() as stack:
        yield _joiner(kind, tmp_path, stack)


@pytest.fixture
def join_zmq(zmq_kind, tmp_path) -> Iterator[Join]:
    """The same over ZeroMQ only."""
    with contextlib.ExitStack() as stack:
        yield _joiner(zmq_kind, tmp_path, stack)


@pytest.fixture
def join_real(real_kind, tmp_path) -> Iterator[Join]:
    """The same over every link between processes."""
    with contextlib.ExitStack() as stack:
        yield _joiner(real_kind, tmp_path, stack)


@pytest.fixture
def join_memory(tmp_path) -> Iterator[Join]:
    """The same over the memory link, for what does not depend on the link."""
    with contextlib.ExitStack() as stack:
        yield _joiner("memory", tmp_path, stack)


@pytest.fixture(params=SHM)
def shm_kind(request) -> str:
    """Every way in which cards come to share memory."""
    return request.param


@pytest.fixture
def links(shm_kind, tmp_path) -> Iterator[Callable[[int], list[ShmLink]]]:
    """`links(n)`: n more links over shared memory; closed after the test."""
    made: list[ShmLink] = []

    def make(n: int) -> list[ShmLink]:
        made.extend(SHM[shm_kind](len(made), tmp_path) for _ in range(n))
        return made[-n:]

    yield make
    for link in made:
        link.close(0)


@pytest.fixture
def pair(links) -> tuple[ShmLink, ShmLink]:
    """Two of them, of which the second has connected to the first and said something."""
    a, b = links(2)
    b.connect(0, a.address)
    b.post(0, HEADER, b"abc")
    assert [event.payload for event in taken(a, 1)] == [b"abc"]
    b.take()  # the answer
    return a, b
