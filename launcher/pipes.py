"""The launcher's ends of what the cards of a host print into, and how they are kept from being read too fast."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from functools import partial
from typing import Protocol

_AT_ONCE = 1 << 16  # bytes of one read: what a pipe holds


class CardPipe:
    """One stream of one card, or of a zygote. `give(rank, stream, data)` gets what arrives; b"": its end."""

    def __init__(self, rank: int, stream: int, give: Callable[[int, int, bytes], None]) -> None:
        self.rank, self.stream = rank, stream
        self._give = give
        self._fd, self.card_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        self.open = True

    def fileno(self) -> int:
        return self._fd

    def close_card_end(self) -> None:
        """The card has its end now; only then does the pipe tell that the card has closed it."""
        os.close(self.card_end)

    def read(self, *, all_there_is: bool = False) -> None:
        """Pass on what has arrived; `open` turns False at the end of the stream."""
        while self.open:
            try:
                data = os.read(self._fd, _AT_ONCE)
            except BlockingIOError:
                return
            self.open = bool(data)
            self._give(self.rank, self.stream, data)
            if not all_there_is:
                return

    def close(self) -> None:
        self.open = False
        os.close(self._fd)


class Readable(Protocol):
    """What a Pump reads. Attributes: open: whether more may come."""

    open: bool

    def fileno(self) -> int: ...

    def read(self) -> None: ...


class Pump:
    """Reads streams whenever they have something, unless somebody holds it.

    Every key of the selector has as its data a function that is to be called when the key is ready.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._streams: set[Readable] = set()
        self._holders: set[str] = set()

    def watch(self, stream: Readable) -> None:
        """Read `stream` whenever it has something, until its end."""
        self._streams.add(stream)
        if not self._holders:
            self._register(stream)

    def forget(self, stream: Readable) -> None:
        """Stop reading `stream`. Idempotent."""
        if stream in self._streams:
            self._streams.discard(stream)
            if not self._holders:
                self._selector.unregister(stream)

    def hold(self, holder: str, held: bool) -> None:
        """`holder` cannot take more, or can again. Whoever writes to the streams then waits in the writing."""
        before = bool(self._holders)
        (self._holders.add if held else self._holders.discard)(holder)
        if bool(self._holders) != before:
            for stream in self._streams:
                (self._selector.unregister if held else self._register)(stream)

    def _register(self, stream: Readable) -> None:
        self._selector.register(stream, selectors.EVENT_READ, partial(self._read, stream))

    def _read(self, stream: Readable) -> None:
        stream.read()
        if not stream.open:
            self.forget(stream)


class Sink(Protocol):
    """What takes data without ever blocking: the console, a line to another host."""

    @property
    def crowded(self) -> bool: ...

    @property
    def roomy(self) -> bool: ...

    def waits_for(self) -> int | None:
        """The descriptor that must become writable for its queue to move on, or None when the queue is empty."""
        ...

    def write_ready(self) -> None: ...


class Drain:
    """Keeps `selector` watching a sink while it is behind; `hold(True)` when it is crowded, `hold(False)` after it."""

    def __init__(self, selector: selectors.BaseSelector, sink: Sink, hold: Callable[[bool], None]) -> None:
        self._selector, self._sink, self._hold = selector, sink, hold
        self._held = False
        self._awaited: int | None = None  # what the selector watches

    def balance(self) -> None:
        """To be called after every round of the loop."""
        if self._sink.crowded and not self._held:
            self._held = True
            self._hold(True)
        elif self._sink.roomy and self._held:
            self._held = False
            self._hold(False)
        self._watch(self._sink.waits_for())

    def _watch(self, awaited: int | None) -> None:
        if awaited != self._awaited:
            if self._awaited is not None:
                self._selector.unregister(self._awaited)
            if awaited is not None:
                self._selector.register(awaited, selectors.EVENT_WRITE, self._sink.write_ready)
            self._awaited = awaited

    def close(self) -> None:
        self._watch(None)
