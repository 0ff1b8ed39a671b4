"""One rank of a program that is compared with others: it waits for its turn, plays it, and says how long it took.

All programs take part at once, each in processes of its own, and all but one of them sleep in `recv` on a socket: so a
turn has the machines to itself. A program needs numpy here and what it is made of, no more.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

import numpy as np

from superpod.benchmarks.cases import Case, Setup
from superpod.benchmarks.lines import come_in
from superpod.benchmarks.point_to_point import EVERY

IN_PLACE = ("all_reduce", "broadcast", "reduce")  # as torch has them; the others have two buffers
_KEPT = 16 << 20  # bytes of arrays that are kept from turn to turn: larger ones of all programs may fill the memory
Order = Mapping[str, Any]


class Player(Protocol):
    """How one program carries a case out."""

    def call(self, case: Case) -> Callable[[], object]:
        """What is timed: the case's call, with nothing left to prepare."""

    def meet(self) -> None:
        """A barrier."""


class Turns(Protocol):
    """Something that can be timed in turns: see `CaseTurns`."""

    def turn(self, order: Order) -> tuple[float, int]:
        """(mean seconds of a call here, wrong elements here)."""


class CaseTurns:
    """Turns of a player with the cases of superpod-bench."""

    def __init__(self, rank: int, world_size: int, player: Player) -> None:
        self._rank, self._world_size, self._player = rank, world_size, player
        self._last: tuple[Any, Case, Callable[[], object]] | None = None

    def turn(self, order: Order) -> tuple[float, int]:
        """Calls that follow one another, after a few to warm up; then one more on fresh data, not timed but checked."""
        case, call = self._made(order)
        calls = order["calls"]
        case.prepare()
        for _ in range(order["warmup"]):
            call()
        self._player.meet()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        seconds = (time.perf_counter() - start) / calls / case.messages
        wrong = self._wrong(case, call) if order["check"] else 0
        if case.send.nbytes + case.recv.nbytes > _KEPT:
            self._last = None
        return seconds, wrong

    def _wrong(self, case: Case, call: Callable[[], object]) -> int:
        """Wrong elements after one more call on fresh data."""
        case.prepare()
        self._player.meet()
        call()
        return case.wrong()

    def _made(self, order: Order) -> tuple[Case, Callable[[], object]]:
        """The case and its call, those of the last turn if it was the same."""
        what = collective, count, dtype, op, root = [order[k] for k in ("collective", "count", "dtype", "op", "root")]
        if self._last is None or what != self._last[0]:
            setup = Setup(self._rank, self._world_size, count, np.dtype(dtype), op, root)
            case = EVERY[collective](setup, in_place=collective in IN_PLACE)
            self._last = what, case, self._player.call(case)
        return self._last[1:]


def play(address: str, rank: int, players: Mapping[str, Turns]) -> None:
    """Take turns as superpod-bench asks for them, until it has had enough or is no more.

    Args:
        address: where it listens, see lines.py.
        players: all that can be timed in this process, by name.
    """
    line, proof = come_in(address)
    with line, np.errstate(all="ignore"):  # in place, results pile up and overflow
        orders = line.makefile("r")
        answer = {"proof": proof, "rank": rank, "players": list(players), "ready": time.monotonic()}
        while (order := _ask(line, orders, answer)) is not None:
            seconds, wrong = players[order["player"]].turn(order)
            answer = {"seconds": seconds, "wrong": wrong}


def _ask(line: socket.socket, orders: TextIO, answer: dict[str, Any]) -> dict[str, Any] | None:
    """Give the answer to the last order, and wait for the next one; None if superpod-bench has gone."""
    try:
        line.sendall(json.dumps(answer).encode() + b"\n")
        text = orders.readline()
    except ConnectionError:  # in the middle of a turn
        return None
    order: dict[str, Any] | None = json.loads(text) if text.endswith("\n") else None
    return order
