"""monitored_barrier: rank 0 hears from everybody, and says which ranks it has not heard from in time.

2(n−1) messages of n bytes, all from or to rank 0: a tool for finding out who is late, not for speed. Its words are
those of gloo's, which programs and torch's own tests look for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

import numpy as np

from superpod.collectives.engine import Engine
from superpod.collectives.messages import Form
from superpod.collectives.torch_backend_tensors import Array
from superpod.collectives.work import Work
from superpod.interconnect.errors import DeadlineExceeded, SuperpodError

LAST_TAG = (1 << 31) - 1
TAGS = 1 << 16
"""The tags of a group that a monitored barrier uses: LAST_TAG and those below it, a new one each time."""

_GRACE = 2.0  # seconds that a rank waits beyond its limit for rank 0, which says who was late when its own is over


def monitored_barrier(engine: Engine, number: int, seconds: float, wait_all_ranks: bool) -> None:
    """Return once every rank of the group has entered. The group can be used afterwards, whatever is raised.

    Args:
        number: how many of the group's monitored barriers came before this one; the same on all ranks.
        seconds: how long rank 0 waits for the others.
        wait_all_ranks: name all ranks that are late, not only the first.
    Raises:
        DeadlineExceeded: on rank 0, naming the late; on the others, with what rank 0 has said or that it said nothing.
        PeerLost, RemoteError, CollectiveMismatch: what else ended the group, with its cause.
    """
    barrier = _Barrier(engine, number, seconds)
    if engine.rank != 0:
        barrier.report()
    elif engine.world_size > 1:
        barrier.monitor(wait_all_ranks)


class _Barrier:
    """One monitored barrier as one rank sees it."""

    def __init__(self, engine: Engine, number: int, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds
        self._tag = LAST_TAG - number % TAGS
        self._label = f"monitored_barrier #{number}"
        self._end = time.monotonic() + seconds

    def monitor(self, wait_all_ranks: bool) -> None:
        """Rank 0's part."""
        if self._seconds <= 0:
            raise DeadlineExceeded(f"Rank 0 timed out in monitoredBarrier after {_ms(self._seconds)}")
        room = np.zeros((self._engine.world_size, self._engine.world_size), np.uint8)
        awaited = {rank: self._recv(room[rank], rank) for rank in range(1, self._engine.world_size)}
        late: dict[int, SuperpodError] = {}
        for rank, work in awaited.items():
            try:
                work.wait(max(self._end - time.monotonic(), 1e-6))
            except SuperpodError as error:
                late[rank] = error
                if not (wait_all_ranks and isinstance(error, DeadlineExceeded)):
                    break
        verdict = room[0]
        verdict[list(late)] = 1
        self._tell(verdict, [rank for rank, work in awaited.items() if work.is_completed() and rank not in late])
        if late:
            raise self._error(list(late), next(iter(late.values())))

    def report(self) -> None:
        """The part of every rank but 0."""
        verdict = np.zeros(self._engine.world_size, np.uint8)
        try:
            work = self._recv(verdict, 0)
            self._send(np.zeros_like(verdict), 0, self._limit)
            work.wait(self._limit)
        except DeadlineExceeded as error:
            raise self._unheard(DeadlineExceeded(f"it said nothing within {_ms(self._seconds)}")) from error
        except SuperpodError as error:
            raise self._unheard(error) from error
        if verdict.any():
            raise self._unheard(self._error(np.flatnonzero(verdict).tolist(), None))

    def _unheard(self, error: SuperpodError) -> SuperpodError:
        return type(error)(
            f"Rank {self._engine.rank} successfully reached monitoredBarrier, but received errors while waiting for "
            f"send/recv from rank 0: {error}"
        )

    @property
    def _limit(self) -> float:
        return max(self._end - time.monotonic(), 0.0) + _GRACE

    def _recv(self, array: Array, rank: int) -> Work:
        return self._engine.messages.recv(self._form(array, rank), array, None, lambda: None)

    def _send(self, array: Array, rank: int, seconds: float) -> None:
        self._engine.messages.send(self._form(array, rank), array, seconds).wait(seconds)

    def _form(self, array: Array, rank: int) -> Form:
        return self._engine.messages.new_form(None, rank, self._tag, self._label, array.nbytes)

    def _tell(self, verdict: Array, ranks: Sequence[int]) -> None:
        for rank in ranks:
            with contextlib.suppress(SuperpodError):  # it has gone since
                self._send(verdict, rank, _GRACE)

    def _error(self, late: list[int], cause: SuperpodError | None) -> SuperpodError:
        who = f"Ranks {', '.join(map(str, late))}" if len(late) > 1 else f"Rank {late[0]}"
        text = f"{who} failed to pass monitoredBarrier in {_ms(self._seconds)}"
        if cause is None or isinstance(cause, DeadlineExceeded):
            return DeadlineExceeded(text)
        return type(cause)(f"{text}: {cause}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
