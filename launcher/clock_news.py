"""The cards' clocks as they come in, piece by piece."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpod.collectives.clock_log import Log


class ClockNews:
    """What the cards have told of their calls so far."""

    def __init__(self) -> None:
        self.shape = {"frames": 0, "on_time": 0, "asked": 0.0, "took": 0.0}  # of all links, see ShapedLink.report
        self._pieces: dict[int, list[bytes]] = {}  # rank → of the log that is coming in
        self._logs: dict[int, list[bytes]] = {}  # rank → its logs, one after the other

    def hear(self, rank: int, item: dict[str, Any]) -> None:
        """An item of the news: a piece of a log, or what a shaped link reports; anything else is left out."""
        match item:
            case {"frames": int(frames), "on_time": int(on_time), "asked": float(asked), "took": float(took)}:
                for key, value in (("frames", frames), ("on_time", on_time), ("asked", asked), ("took", took)):
                    self.shape[key] += value
            case {"part": int(part), "parts": int(parts), "data": bytes(data)}:
                pieces = self._pieces.setdefault(rank, [])
                if part != len(pieces):  # one was lost, and with it this log
                    self._pieces[rank] = []
                    return
                pieces.append(data)
                if len(pieces) == parts:
                    self._logs.setdefault(rank, []).append(b"".join(self._pieces.pop(rank)))

    def logs(self) -> dict[int, Log]:
        """Rank → all its calls; without the cards that have told nothing, or nonsense."""
        from superpod.collectives.clock_log import Log

        found: dict[int, Log] = {}
        for rank, parts in sorted(self._logs.items()):
            for data in parts:
                try:
                    log = Log.unpacked(data)
                except (ValueError, KeyError, TypeError, zlib.error):
                    continue
                found[rank] = found[rank].then(log) if rank in found else log
        return found
