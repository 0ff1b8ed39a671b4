"""What a forked child must be told, because it inherits objects that only its parent can use."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_methods: list[weakref.WeakMethod[Callable[[], Any]]] = []


def call_in_child(method: Callable[[], Any]) -> None:
    """Call a bound method in every child that is forked as long as its object lives."""
    _methods[:] = [weak for weak in _methods if weak() is not None]
    _methods.append(weakref.WeakMethod(method))


def _after_fork() -> None:
    for weak in _methods:
        if (method := weak()) is not None:
            method()


os.register_at_fork(after_in_child=_after_fork)
