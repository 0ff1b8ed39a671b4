"""How the communicator's tests run their cards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from superpod.launcher.testing import run_ranks

LONG = 30.0  # seconds that nothing here takes

links = pytest.mark.parametrize("link", ["memory", "zmq", "shm"])


def cards(n: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
    """`fn(comm, *args)` on n cards that are threads of this process."""
    return run_ranks(n, fn, *args, link="memory")


def ended(event: threading.Event) -> None:
    assert event.wait(LONG)
