"""Ranks that disagree: within two seconds both sides know which two ranks made which two calls."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from superpod.collectives.communicator import Communicator
from superpod.interconnect.errors import CollectiveMismatch, DeadlineExceeded, PeerLost, RemoteError, SuperpodError
from superpod.launcher.testing import run_ranks

Call = Callable[[Communicator], Any]
NOTICED = 2.0  # seconds


def ones(count: int, dtype: str = "f4") -> Any:
    return np.ones(count, dtype)


@dataclass
class Disagreement:
    """What one rank calls, what all others do, and both calls in words as they must stand in the error."""

    odd: Call
    others: Call
    odd_text: str
    others_text: str


DISAGREEMENTS = {
    "count": Disagreement(
        lambda c: c.all_reduce(ones(10), algorithm="ring"),
        lambda c: c.all_reduce(ones(12), algorithm="ring"),
        "all_reduce(10 × float32, sum) by ring (#0)",
        "all_reduce(12 × float32, sum) by ring (#0)",
    ),
    "nothing to do": Disagreement(
        lambda c: c.all_reduce(ones(0)),
        lambda c: c.all_reduce(ones(10)),
        "all_reduce(0 × float32, sum)",
        "all_reduce(10 × float32, sum)",
    ),
    "collective": Disagreement(
        lambda c: c.broadcast(ones(10)),
        lambda c: c.all_reduce(ones(10)),
        "broadcast(10 × float32, root 0)",
        "all_reduce(10 × float32, sum)",
    ),
    "dtype": Disagreement(
        lambda c: c.all_gather(ones(10, "f4")),
        lambda c: c.all_gather(ones(10, "i4")),
        "all_gather(10 × float32)",
        "all_gather(10 × int32)",
    ),
    "operation": Disagreement(
        lambda c: c.reduce_scatter(ones(48), "max"),
        lambda c: c.reduce_scatter(ones(48), "min"),
        "reduce_scatter(48 × float32, max)",
        "reduce_scatter(48 × float32, min)",
    ),
    "algorithm": Disagreement(
        lambda c: c.all_reduce(ones(48), algorithm="ring"),
        lambda c: c.all_reduce(ones(48), algorithm="two_shot"),
        "all_reduce(48 × float32, sum) by ring",
        "all_reduce(48 × float32, sum) by two_shot",
    ),
    "root": Disagreement(
        lambda c: c.reduce(ones(10), 0),
        lambda c: c.reduce(ones(10), 1),
        "reduce(10 × float32, sum, root 0)",
        "reduce(10 × float32, sum, root 1)",
    ),
    "one call more": Disagreement(
        lambda c: (c.barrier(), c.all_reduce(ones(10))),
        lambda c: c.all_reduce(ones(10)),
        "barrier()",
        "all_reduce(10 × float32, sum)",
    ),
    "blocks": Disagreement(
        lambda c: c.all_to_all(ones(48)),
        lambda c: c.all_to_all(ones(24)),
        "all_to_all(48 × float32)",
        "all_to_all(24 × float32)",
    ),
    "barrier": Disagreement(
        lambda c: c.barrier(), lambda c: c.gather(ones(8), 0), "barrier()", "gather(8 × float32, root 0)"
    ),
}


PLACE = re.compile(r" in \S+\(\) at \S*test_mismatch\.py:\d+")


def outcome(comm: Communicator, *calls: Call, places: bool = False) -> tuple[str, str, float]:
    """The class and text of the first error of the calls, without `places` in this file, and how long it took."""
    start = time.monotonic()
    try:
        for call in calls:
            call(comm)
    except SuperpodError as error:
        text = str(error) if places else PLACE.sub("", str(error))
        return type(error).__name__, text, time.monotonic() - start
    return "", "", time.monotonic() - start


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("case", DISAGREEMENTS.values(), ids=DISAGREEMENTS)
def test_two_ranks_that_disagree_both_learn_of_both_calls(case: Disagreement, n: int, link: str) -> None:
    odd = n - 1

    def card(comm: Communicator) -> tuple[str, str, float]:
        # a rank that has only sent has ended its call, and learns of it in the next one
        return outcome(comm, case.odd if comm.rank == odd else case.others, Communicator.barrier)

    results = run_ranks(n, card, link=link)
    kind, text, _ = results[odd]
    assert kind == "CollectiveMismatch"
    named = re.fullmatch(rf"in group world: rank (\d) called (.*), but rank {odd} called (.*)", text)
    assert named is not None
    assert results[int(named[1])][0] == kind
    assert named[2].startswith(case.others_text)
    assert named[3].startswith(case.odd_text)
    assert {kind for kind, _, _ in results} <= {"CollectiveMismatch", "PeerLost", "RemoteError"}  # of third parties
    assert max(seconds for _, _, seconds in results) < NOTICED


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
def test_ranks_that_wait_for_one_another_without_a_message(link: str) -> None:
    """Each awaits the other's broadcast."""
    results = run_ranks(2, lambda comm: outcome(comm, lambda c: c.broadcast(ones(3), 1 - c.rank)), link=link)
    expected = (
        "in group world: rank 0 called broadcast(3 × float32, root 1) by direct (#0), "
        "but rank 1 called broadcast(3 × float32, root 0) by direct (#0)"
    )
    for kind, text, seconds in results:
        assert (kind, text) == ("CollectiveMismatch", expected)
        assert seconds < NOTICED


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
def test_ranks_that_only_send_learn_of_it_in_the_next_call(link: str) -> None:
    """Each sends to the other and has ended its call. The error names those calls, not the next one."""
    by = "star" if link == "shm" else "direct"
    expected = (
        f"in group world: rank 0 called reduce(3 × float32, sum, root 1) by {by} (#0), "
        f"but rank 1 called reduce(3 × float32, sum, root 0) by {by} (#0)"
    )

    def card(comm: Communicator) -> tuple[str, str, float]:
        return outcome(comm, lambda c: c.reduce(ones(3), 1 - c.rank), lambda c: c.all_reduce(ones(3)))

    for kind, text, seconds in run_ranks(2, card, link=link):
        assert (kind, text) == ("CollectiveMismatch", expected)
        assert seconds < NOTICED


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
def test_messages_of_different_length(link: str) -> None:
    def card(comm: Communicator) -> tuple[str, str, float]:
        if comm.rank == 0:
            return outcome(comm, lambda c: c.send(ones(10), 1, 4), Communicator.barrier)
        return outcome(comm, lambda c: c.recv(ones(12), 0, 4))

    expected = (
        "in group world: rank 0 called send/recv(10 × float32, tag 4) (#0), "
        "but rank 1 called send/recv(12 × float32, tag 4) (#0)"
    )
    for kind, text, seconds in run_ranks(2, card, link=link):
        assert (kind, text) == ("CollectiveMismatch", expected)
        assert seconds < NOTICED


def line_of(call: Call) -> int:
    return call.__code__.co_firstlineno


REDUCES: Call = lambda c: c.all_reduce(ones(10))  # noqa: E731  a line of its own
CASTS: Call = lambda c: c.broadcast(ones(10))  # noqa: E731
SENDS: Call = lambda c: c.send(ones(10), 1, 4)  # noqa: E731
RECEIVES: Call = lambda c: c.recv(ones(12), 0, 4)  # noqa: E731


def place_of(call: Call) -> str:
    return rf" in <lambda>\(\) at \S*test_mismatch\.py:{line_of(call)}"


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_every_rank_learns_where_in_the_code_both_calls_were_made(n: int, link: str) -> None:
    def card(comm: Communicator) -> tuple[str, str, float]:
        return outcome(comm, CASTS if comm.rank == n - 1 else REDUCES, Communicator.barrier, places=True)

    pattern = (
        rf"in group world: rank \d called all_reduce\(.*\) by [\w ]+ \(#0\){place_of(REDUCES)}, "
        rf"but rank {n - 1} called broadcast\(.*\) by [\w ]+ \(#0\){place_of(CASTS)}"
    )
    for kind, text, _ in run_ranks(n, card, link=link):
        assert kind == "CollectiveMismatch"
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
def test_both_ends_of_a_message_are_found_in_the_code(link: str) -> None:
    def card(comm: Communicator) -> tuple[str, str, float]:
        return outcome(comm, SENDS if comm.rank == 0 else RECEIVES, Communicator.barrier, places=True)

    pattern = (
        rf"in group world: rank 0 called send/recv\(10 × float32, tag 4\) \(#0\){place_of(SENDS)}, "
        rf"but rank 1 called send/recv\(12 × float32, tag 4\) \(#0\){place_of(RECEIVES)}"
    )
    for kind, text, _ in run_ranks(2, card, link=link):
        assert kind == "CollectiveMismatch"
        assert re.fullmatch(pattern, text), text


def test_without_a_record_a_mismatch_is_told_without_places() -> None:
    def card(comm: Communicator) -> tuple[str, str, float]:
        return outcome(comm, CASTS if comm.rank else REDUCES, Communicator.barrier, places=True)

    for kind, text, _ in run_ranks(2, card, env={"SUPERPOD_RECORD": "0"}):
        assert kind == "CollectiveMismatch"
        assert re.fullmatch(
            r"in group world: rank 0 called all_.* by [\w ]+ \(#0\), but rank 1 called bro.* \(#0\)", text
        )


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
@pytest.mark.parametrize("n", [3, 8])
def test_two_groups_do_not_disturb_one_another(n: int, link: str) -> None:
    def card(comm: Communicator) -> tuple[str, int]:
        pair = comm.group([0, 1])
        kind = "" if pair is None else outcome(pair, lambda c: c.all_reduce(ones(3 + c.rank)))[0]
        return kind, int(comm.all_reduce(np.array(1)))

    assert run_ranks(n, card, link=link) == [("CollectiveMismatch", n)] * 2 + [("", n)] * (n - 2)


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_rank_that_calls_nothing_is_named_at_the_deadline(n: int, link: str) -> None:
    silent = n - 1

    def card(comm: Communicator) -> tuple[str, str, float]:
        if comm.rank != silent:
            return outcome(comm, lambda c: c.all_reduce(ones(10), algorithm="ring", timeout=1.0))
        return outcome(comm, lambda c: c.recv(ones(1), 0))  # it is alive, and does something else

    results = run_ranks(n, card, link=link)
    assert {kind for kind, _, _ in results} <= {"DeadlineExceeded", "RemoteError"}
    assert any(kind == "DeadlineExceeded" for kind, _, _ in results)
    for _, text, seconds in results:
        assert "Timed out after 1.0 s waiting for rank " in text
        assert seconds < 1.0 + NOTICED
    waited_for = {
        text.split("waiting for ")[1].split(" in ")[0] for kind, text, _ in results if kind == "DeadlineExceeded"
    }
    assert f"rank {silent}" in waited_for or n > 2


@pytest.mark.parametrize("link", ["memory", "zmq", "shm"])
def test_a_rank_that_makes_one_call_more_than_the_others_is_told_that_they_left(link: str) -> None:
    def card(comm: Communicator) -> tuple[str, str, float]:
        comm.all_reduce(ones(3))
        if comm.rank == 0:
            return outcome(comm, lambda c: c.barrier(algorithm="dissemination"))
        comm.close()
        return "", "", 0.0

    kind, text, seconds = run_ranks(3, card, link=link)[0]
    assert kind == "PeerLost"
    assert re.fullmatch(r"rank [12] left the job, but rank 0 needs it in barrier\(\) by dissemination \(#1\)", text)
    assert seconds < NOTICED


def test_other_errors_have_another_class() -> None:
    assert not issubclass(CollectiveMismatch, (PeerLost, RemoteError, DeadlineExceeded))
