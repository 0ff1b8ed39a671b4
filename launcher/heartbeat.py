"""Signs of life on a line: each side speaks at least every half second, and notices when the other does not."""

from __future__ import annotations

import time

EVERY = 0.5  # seconds
BEAT = {"beat": True}


class Heartbeat:
    """Times are those of time.monotonic(). `silence`: seconds after which the other side counts as lost."""

    def __init__(self, silence: float) -> None:
        self.silence = silence
        self._heard = self._spoken = time.monotonic()

    def hear(self) -> None:
        """The other side has said something."""
        self._heard = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to say something; True means that it will be said now."""
        now = time.monotonic()
        if now - self._spoken < EVERY:
            return False
        self._spoken = now
        return True

    def silent_for(self) -> float | None:
        """Seconds since the other side has said something, if they are too many."""
        seconds = time.monotonic() - self._heard
        return seconds if seconds > self.silence else None

    def next_time(self) -> float:
        return min(self._spoken + EVERY, self._heard + self.silence)
