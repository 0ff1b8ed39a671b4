"""Ranks that disagree in calls in which nobody, or hardly anybody, waits: all that go on are told nevertheless."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from superpod.collectives.communicator import Communicator, in_memory
from superpod.interconnect.env import Settings
from superpod.interconnect.errors import CollectiveMismatch, SuperpodError
from superpod.interconnect.wire import Kind, decode
from superpod.launcher.testing import run_ranks

NOTICED = 3.0  # seconds
LINKS = pytest.mark.parametrize("link", ["memory", "zmq", "shm"])


def ones(count: int) -> Any:
    return np.ones(count, "f4")


def outcome(*calls: Callable[[], Any]) -> tuple[str, str, float]:
    """The class and text of the first error of the calls, and how long it took."""
    start = time.monotonic()
    try:
        for call in calls:
            call()
    except SuperpodError as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return "", "", time.monotonic() - start


def assert_told(results: list[tuple[str, str, float]], pattern: str) -> None:
    for kind, text, seconds in results:
        assert kind == "CollectiveMismatch", text
        assert re.fullmatch(pattern, text), text
        assert seconds < NOTICED


ROOTS = (
    r"in group world: rank \d called broadcast\(3 × float32, root [01]\) by direct \(#(\d+)\) in .*, "
    r"but rank \d called broadcast\(3 × float32, root [01]\) by direct \(#\1\) in .*"
)


@LINKS
@pytest.mark.parametrize("n", [2, 3, 4])
def test_broadcasts_from_different_roots(n: int, link: str) -> None:
    """The roots never wait, and whoever receives gets what it asked for."""

    def card(comm: Communicator) -> tuple[str, str, float]:
        def casts() -> None:
            for _ in range(100):
                comm.broadcast(ones(3), comm.rank % 2, algorithm="direct")

        return outcome(casts, comm.barrier)

    assert_told(run_ranks(n, card, link=link), ROOTS)


@LINKS
@pytest.mark.parametrize("n", [2, 4])
def test_a_leaf_that_reduces_while_the_others_broadcast(n: int, link: str) -> None:
    def card(comm: Communicator) -> tuple[str, str, float]:
        def one() -> None:
            if comm.rank == 1:
                comm.reduce(ones(10), 0, algorithm="direct")
            else:
                comm.broadcast(ones(10), 0, algorithm="direct")

        return outcome(one, comm.barrier)

    root, other = (
        r"rank [02-9] called broadcast\(.*\) by direct \(#0\) in .*",
        r"rank 1 called reduce\(.*\) by direct .*",
    )
    assert_told(run_ranks(n, card, link=link), f"in group world: ({root}, but {other}|{other}, but {root})")


def test_a_third_card_learns_that_two_others_disagree_before_it_calls_anything() -> None:
    """Both have sent to it; what it then calls agrees with one of them, so that it hears of the other one later."""
    for order in ((0, 1), (1, 0)):
        cards = in_memory(3)
        for rank in order:
            cards[rank].broadcast(ones(3), rank, algorithm="direct")
        kind, text, seconds = outcome(partial(cards[2].broadcast, ones(3), 0, algorithm="direct"), cards[2].barrier)
        assert (kind, seconds < NOTICED) == ("CollectiveMismatch", True)
        assert "rank 1 called broadcast(3 × float32, root 1) by direct (#0)" in text
        assert "but rank 2 called broadcast(3 × float32, root 0) by direct (#0)" in text
        for card in cards:
            card.close()


def test_messages_that_come_before_the_group_is_made_are_compared_when_it_is() -> None:
    cards = in_memory(2)
    cards[1].recv(ones(1), 0, async_op=True)
    early = cards[0].group([0, 1])
    assert early is not None
    early.broadcast(ones(3), 0, algorithm="direct")
    assert cards[1]._engine.mesh.streams.early(early._engine.group.ident) == []
    cards[0].send(ones(1), 1)
    cards[1].recv(ones(1), 0, timeout=5, async_op=True).is_completed()
    late = cards[1].group([0, 1])
    assert late is not None
    with pytest.raises(CollectiveMismatch, match=r"rank 1 called reduce\(3 × float32, sum, root 0\) by direct \(#0\)"):
        late.reduce(ones(3), 0, algorithm="direct")
    for card in cards:
        card.close()


@LINKS
def test_senders_that_are_starved_of_credit_ask(link: str) -> None:
    """Each sends to the other more than a stream may hold."""

    def card(comm: Communicator) -> tuple[str, str, float]:
        return outcome(lambda: comm.broadcast(ones(5 << 20), comm.rank % 2, algorithm="direct"))

    calls = r"rank 0 called broadcast\(.*root 0\) by direct \(#0\) in .*, but rank 1 called broadcast\(.*root 1\).*"
    assert_told(run_ranks(2, card, link=link), f"in group world: {calls}")


def test_agreement_is_not_disturbed_by_messages_that_come_early() -> None:
    """The root is far ahead of the others."""
    cards = in_memory(3, Settings())
    for number in range(200):
        cards[0].broadcast(np.full(3, number), 0, algorithm="direct")
    for comm in cards[1:]:
        for number in range(200):
            assert comm.broadcast(np.zeros(3, int), 0, algorithm="direct")[0] == number
    assert not cards[1]._engine.agreement._asked
    for card in cards:
        card.close()


def test_who_leaves_says_what_no_call_will_say_any_more(caplog: pytest.LogCaptureFixture) -> None:
    a, b = in_memory(2)
    a.broadcast(ones(3), 0, algorithm="direct")
    b.broadcast(ones(3), 1, algorithm="direct")  # neither waits, and there is no next call
    b.close()
    assert (
        "rank 1: in group world: rank 0 called broadcast(3 × float32, root 0) by direct (#0), but rank 1" in caplog.text
    )
    a.close()


def test_who_leaves_answers_those_that_have_asked() -> None:
    """The question came after its last call."""
    a, b = in_memory(2)
    a.all_reduce(np.ones(0), algorithm="ring")  # nothing to send, so nobody waits
    b.all_reduce(np.ones(0), algorithm="ring")
    results: list[tuple[str, str, float]] = []
    asking = threading.Thread(target=lambda: results.append(outcome(lambda: a.all_reduce(ones(10), algorithm="ring"))))
    b.all_gather(np.ones(0), algorithm="ring")
    asking.start()
    link: Any = b._engine.mesh.link
    end = time.monotonic() + 10
    while not any(decode(event.header, len(event.payload)).kind is Kind.PROBE for event in list(link._events)):
        assert time.monotonic() < end, "it never asked"
        time.sleep(0.001)
    b.close()
    asking.join(10)
    assert [kind for kind, _, _ in results] == ["CollectiveMismatch"]
    a.close()
