"""Who gets a line to superpod-bench: ranks that know its token, whoever else knocks, and however."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from superpod.benchmarks import lines
from superpod.benchmarks.lines import Door, Line, come_in, proof


@pytest.fixture(params=["", "127.0.0.1", "::1"], ids=["unix", "ipv4", "ipv6"])
def door(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    made = Door(request.param, 2)
    monkeypatch.setenv("SUPERPOD_BENCH", made.token)
    yield made
    made.close()


def knock(door: Door) -> socket.socket:
    """Connect, and say nothing."""
    if not door.address.startswith("tcp:"):
        line = socket.socket(socket.AF_UNIX)
        line.connect(door.address.replace("@", "\0"))
        return line
    host, _, port = door.address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)))


def in_thread(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


def rank(door: Door, number: int) -> threading.Thread:
    """One that comes in, says who it is, and answers one order."""

    def play() -> None:
        line, answer = come_in(door.address)
        with line, contextlib.suppress(ConnectionError):  # hung up on
            line.sendall(json.dumps({"proof": answer, "rank": number}).encode() + b"\n")
            line.sendall(line.makefile().readline().upper().encode())

    return in_thread(play)


def arrived(door: Door, count: int) -> list[tuple[Line, dict[str, Any]]]:
    found: list[tuple[Line, dict[str, Any]]] = []
    for _ in range(200):
        found += door.arrivals(0.05)
        if len(found) >= count:
            break
    return found


def test_ranks_come_in_and_are_spoken_to(door: Door) -> None:
    threads = [rank(door, number) for number in range(2)]
    found = arrived(door, 2)
    assert sorted(hello["rank"] for _, hello in found) == [0, 1]
    for line, _ in found:
        line.send(b'{"a": 1}\n')
        assert line.receive() == {"A": 1}
        line.close()
    for thread in threads:
        thread.join(10)


STRANGERS: dict[str, Callable[[socket.socket], object]] = {
    "silent": lambda line: None,
    "gone": lambda line: line.close(),
    "no proof": lambda line: line.sendall(b'{"rank": 0}\n'),
    "wrong proof": lambda line: line.sendall(json.dumps({"proof": proof("guess", "x"), "rank": 0}).encode() + b"\n"),
    "no text for a proof": lambda line: line.sendall(b'{"proof": {"a": [1]}, "rank": 0}\n'),
    "no object": lambda line: line.sendall(b"[1, 2]\n"),
    "no JSON": lambda line: line.sendall(b"GET / HTTP/1.1\r\n\r\n"),
    "no text": lambda line: line.sendall(bytes(range(128, 256)) + b"\n"),
    "without end": lambda line: in_thread(lambda: _flood(line)),
}


def _flood(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            line.sendall(b"x" * 65536)


@pytest.mark.parametrize("what", STRANGERS)
def test_a_stranger_is_nobody_and_keeps_nobody_out(door: Door, what: str) -> None:
    stranger = knock(door)
    STRANGERS[what](stranger)
    thread = rank(door, 1)
    ((line, hello),) = arrived(door, 1)
    assert hello["rank"] == 1
    line.send(b"{}\n")
    thread.join(10)
    if what not in ("silent", "gone"):
        assert arrived(door, 0) == []
        assert door._strangers == {} or _until(door, lambda: not door._strangers)
    stranger.close()


def _until(door: Door, done: Callable[[], bool]) -> bool:
    for _ in range(100):
        if done():
            return True
        assert door.arrivals(0.05) == []
    return False


def test_who_hesitates_is_hung_up_on(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_HESITATION", 0.0)
    stranger = knock(door)
    assert door.arrivals(5) == []
    assert _until(door, lambda: not door._strangers)
    assert len(stranger.recv(100)) == 33  # the question
    assert stranger.recv(100) == b""


def test_many_strangers_take_no_more_than_so_many_lines(door: Door) -> None:
    before, strangers = len(os.listdir("/proc/self/fd")), []
    for _ in range(60):
        strangers.append(knock(door))
        assert door.arrivals(5) == []
    assert len(door._strangers) == door._most == 20
    assert len(os.listdir("/proc/self/fd")) - before == 60 + 20
    thread = rank(door, 0)
    ((line, _),) = arrived(door, 1)
    line.send(b"{}\n")
    thread.join(10)
    for stranger in strangers:
        stranger.close()


def test_a_rank_without_the_token_is_told_nothing(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUPERPOD_BENCH")
    thread = rank(door, 0)
    for _ in range(3):
        assert door.arrivals(0.1) == []
    thread.join(10)
    assert not thread.is_alive()


def test_the_token_is_never_sent(door: Door) -> None:
    """Of what goes over the line, neither the question nor its answer shows it; and no two questions are the same."""
    questions = []
    for _ in range(2):
        stranger = knock(door)
        door.arrivals(5)
        questions.append(stranger.recv(100))
        stranger.close()
    assert questions[0] != questions[1]
    assert door.token not in f"{questions}{proof(door.token, questions[0].decode())}"


def test_a_door_that_closes_lets_ranks_go(door: Door) -> None:
    stranger = knock(door)
    door.arrivals(5)
    door.close()
    stranger.recv(33)
    assert stranger.recv(1) == b""


def test_a_listener_that_hangs_up_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        in_thread(lambda: listener.accept()[0].close())
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises((EOFError, ConnectionResetError), match=r"superpod-bench at tcp://.* has hung up|reset"):
            come_in(address)
