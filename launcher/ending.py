"""How a job is brought to its end: which signal goes out when."""

from __future__ import annotations

import signal

_BY_THEMSELVES = 1.0  # seconds: the abort flag makes cards raise at once, so most need no signal


class Ending:
    """A plan of signals. Times are those of time.monotonic(); a plan can only be replaced by a harder one."""

    def __init__(self) -> None:
        self._plan: list[tuple[float, int]] = []
        self.begun = False

    def after_failure(self, now: float, grace: float) -> None:
        """The cards hear of the failure and end by themselves; SIGTERM for the rest, and SIGKILL `grace` later."""
        self._begin([(now + _BY_THEMSELVES, signal.SIGTERM), (now + _BY_THEMSELVES + grace, signal.SIGKILL)])

    def by_signal(self, signum: int, now: float, grace: float) -> None:
        """The launcher got `signum`: so do the cards, and SIGKILL `grace` seconds later."""
        self._begin([(now, signum), (now + grace, signal.SIGKILL)])

    def at_once(self, now: float) -> None:
        self._plan = [(now, signal.SIGKILL)]
        self.begun = True

    def _begin(self, plan: list[tuple[float, int]]) -> None:
        if not self.begun:
            self._plan, self.begun = plan, True

    def due(self, now: float) -> int | None:
        """The signal whose time has come, once."""
        if self._plan and self._plan[0][0] <= now:
            return self._plan.pop(0)[1]
        return None

    def next_time(self) -> float | None:
        return self._plan[0][0] if self._plan else None
