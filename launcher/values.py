"""The store in which the cards of all hosts meet: the head keeps what they set, and answers the hosts that ask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any


class Values:
    """Keys and values. Every host's agent has a branch of it (StoreServer's `upstream`), which remembers answers."""

    def __init__(self, order: Callable[[int, dict[str, Any]], None]) -> None:
        """`order(number, order)` tells the agent of host `number`."""
        self._order = order
        self._values: dict[str, bytes] = {}
        self._waiting: dict[str, set[int]] = defaultdict(set)  # key → hosts

    def handle(self, number: int, operation: str, key: str, value: bytes) -> None:
        """What host `number` sets, or asks for: then it gets the value as soon as somebody has set it."""
        if operation == "set":
            self._values[key] = value
            for waiter in self._waiting.pop(key, ()):
                self._send(waiter, key)
        elif operation == "get" and key in self._values:
            self._send(number, key)
        elif operation == "get":
            self._waiting[key].add(number)

    def _send(self, number: int, key: str) -> None:
        self._order(number, {"do": "value", "key": key, "value": self._values[key]})
