"""Orders and events as bytes, for agents on other hosts: msgpack, bounded, nothing in it that could run code."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgpack

from superpod.collectives.standing import Standing, standing_from
from superpod.launcher.survey import Standings

MAX_MESSAGE = 16 << 20  # bytes
_MOST_CALLS = 20_000  # of one card's flight record that travel, some 300 B each


def pack(message: Mapping[str, Any]) -> bytes:
    """A message, at most MAX_MESSAGE long when each part of it is: see `unpack`."""
    if message.get("standings"):
        message = {**message, "standings": {rank: _packable(s) for rank, s in message["standings"].items()}}
    packed: bytes = msgpack.packb(message, unicode_errors="backslashreplace")
    return packed


def unpack(data: bytes | memoryview) -> dict[str, Any] | None:
    """The message in `data`; None for what is none. Allocates nothing that a forged length could inflate."""
    with contextlib.suppress(ValueError, TypeError, msgpack.UnpackException):
        message = msgpack.unpackb(data, strict_map_key=False)
        if isinstance(message, dict):
            if isinstance(found := message.get("standings"), dict):
                message["standings"] = _standings(found)
            return message
    return None


def _packable(standing: Standing) -> dict[str, Any]:
    return {
        "calls": [asdict(call) for call in standing.calls[-_MOST_CALLS:]],
        "groups": dict(standing.groups),
        "awaited": dict(standing.awaited),
        "stack": [list(frame) for frame in standing.stack],
        "silent": standing.silent,
    }


def _standings(found: dict[Any, Any]) -> Standings:
    return {
        rank: standing_from(rank, answer)
        for rank, answer in found.items()
        if isinstance(rank, int) and isinstance(answer, dict)
    }


def split(standings: Standings | None) -> list[Standings]:
    """Standings in portions that fit into messages: one card each."""
    return [{rank: standing} for rank, standing in standings.items()] if standings else []
