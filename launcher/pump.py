"""From the cards' pipes to the console, no faster than the console takes it."""

from __future__ import annotations

import selectors
from functools import partial

from superpod.launcher.console import Console
from superpod.launcher.logs import CardStream


class Pump:
    """Keeps `selector` watching what can move: the cards' streams while there is room, the console while it is behind.

    Every key of the selector has as its data a function that is to be called when the key is ready.
    """

    def __init__(self, selector: selectors.BaseSelector, console: Console) -> None:
        self._selector, self._console = selector, console
        self._streams: set[CardStream] = set()
        self._paused = False
        self._awaited: int | None = None  # the console's stream that the selector watches

    def watch(self, stream: CardStream) -> None:
        """Read `stream` whenever it has something, until its end."""
        self._streams.add(stream)
        if not self._paused:
            self._register(stream)

    def _register(self, stream: CardStream) -> None:
        self._selector.register(stream, selectors.EVENT_READ, partial(self._read, stream))

    def _read(self, stream: CardStream) -> None:
        stream.read()
        if not stream.open:
            self._streams.discard(stream)
            self._selector.unregister(stream)

    def balance(self) -> None:
        """To be called after every round of the loop."""
        if self._console.crowded and not self._paused:
            self._paused = True
            for stream in self._streams:
                self._selector.unregister(stream)
        elif self._console.roomy and self._paused:
            self._paused = False
            for stream in self._streams:
                self._register(stream)
        awaited = self._console.waits_for()
        if awaited != self._awaited:
            if self._awaited is not None:
                self._selector.unregister(self._awaited)
            if awaited is not None:
                self._selector.register(awaited, selectors.EVENT_WRITE, self._console.write_ready)
            self._awaited = awaited
