"""torch's view of calls under way: of one, and of several that were made in a coalescing block."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from superpod.collectives.work import Work

_NEVER, _SOON = timedelta(0), timedelta(microseconds=1)


class TorchWork(dist.Work):
    """A superpod Work, or a call that has ended already (None), as a torch.distributed.Work."""

    def __init__(self, work: Work | None, outputs: Any) -> None:
        super().__init__()
        self._work = work
        self._outputs = outputs
        self._future: torch.futures.Future[Any] | None = None

    def wait(self, timeout: timedelta = _NEVER) -> bool:
        """Returns True, or raises what the call raised. A timeout of zero or less means the group's own."""
        if self._work is not None:
            seconds = timeout.total_seconds()
            self._work.wait(seconds if seconds > 0 else None)
        return True

    def synchronize(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        return self._work is None or self._work.is_completed()

    def is_success(self) -> bool:
        return self.is_completed() and self.exception() is None

    def exception(self) -> Any:
        return None if self._work is None else self._work.exception()

    def result(self) -> Any:
        return self._outputs

    def source_rank(self) -> int:
        """Of a receive that has ended: the group rank that sent the message."""
        return -1 if self._work is None or self._work.result is None else int(self._work.result)

    _source_rank = source_rank

    def get_future(self) -> torch.futures.Future[Any]:
        """A future of the output tensors; it carries the call's error to Python and C++ alike."""
        if self._future is None:
            ended: torch.futures.Future[Any] = torch.futures.Future()
            # only an exception inside a callback becomes an error that C++ waiters, such as DDP's reducer, see
            self._future = ended.then(self._outcome)
            if self._work is None:
                ended.set_result(None)
            else:
                self._work.when_done(lambda _: ended.set_result(None))
        return self._future

    def _outcome(self, _: Any) -> Any:
        self.wait()
        return self._outputs


ENDED = TorchWork(None, None)
"""What a synchronous call returns: its caller has the outputs."""


class JointWork(TorchWork):
    """Several calls as one: it ends when all have, and fails if one has."""

    def __init__(self, works: list[TorchWork]) -> None:
        super().__init__(None, [work.result() for work in works])
        self._works = works

    def wait(self, timeout: timedelta = _NEVER) -> bool:
        """As TorchWork.wait; the timeout is for all together."""
        end = time.monotonic() + timeout.total_seconds()
        for work in self._works:
            work.wait(max(timedelta(seconds=end - time.monotonic()), _SOON) if timeout > _NEVER else _NEVER)
        return True

    def _outcome(self, _: Any) -> Any:
        JointWork.wait(self)
        return self._outputs

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def exception(self) -> Any:
        return next((error for work in self._works if (error := work.exception()) is not None), None)

    def get_future(self) -> torch.futures.Future[Any]:
        if self._future is None:
            self._future = torch.futures.collect_all([work.get_future() for work in self._works]).then(self._outcome)
        return self._future


class Block:
    """The calls that one thread makes between `_start_coalescing` and `_end_coalescing`.

    All of them are under way at once, whatever their order: a receive before the send that the peer waits for does
    no harm. So inside the block nobody waits for one of them; their results are there once the block has ended.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._works: list[TorchWork] = []
        self.over = False

    def is_mine(self) -> bool:
        """Whether the calling thread opened it."""
        return self._thread == threading.get_ident()

    def add(self, work: TorchWork) -> TorchWork:
        """Note a call; returns what its caller gets."""
        self._works.append(work)
        return _InBlock(self, work)

    def end(self) -> JointWork:
        """One work for them all."""
        self.over = True
        return JointWork(self._works)


class _InBlock(JointWork):
    """A call of a block that may still be open."""

    def __init__(self, block: Block, work: TorchWork) -> None:
        super().__init__([work])
        self._block, self._outputs = block, work.result()

    def wait(self, timeout: timedelta = _NEVER) -> bool:
        """As TorchWork.wait; while the block is open, returns at once."""
        return True if not self._block.over else super().wait(timeout)

    def source_rank(self) -> int:
        return self._works[0].source_rank()

    _source_rank = source_rank


def last_of(works: list[TorchWork], outputs: Any) -> TorchWork:
    """One work for several calls of a group: they end in issue order, so the last one stands for all."""
    if works and isinstance(works[-1], JointWork):
        return JointWork(works)
    return TorchWork(works[-1]._work if works else None, outputs)
