"""A call's timeout holds for all its steps together."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from superpod.collectives import execute
from superpod.collectives.communicator import in_memory


def test_every_step_has_what_the_steps_before_it_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """By this clock, whoever looks at it takes a second."""
    clock = itertools.count()
    monkeypatch.setattr(execute, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    cards = in_memory(4)
    given: list[float] = []
    mesh = cards[0]._engine.mesh
    original = mesh.wait

    def wait(pendings: Sequence[Any], group: Any, *, seconds: float, **how: Any) -> None:
        given.append(seconds)
        original(pendings, group, seconds=seconds, **how)

    monkeypatch.setattr(mesh, "wait", wait)

    def call(rank: int) -> None:
        cards[rank].all_reduce(np.ones(10), algorithm="recursive_doubling", timeout=1000)

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(given) == 2
    assert 1000 > given[0] > given[1]
    for card in cards:
        card.close()
