"""torch's view of a call under way."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from superpod.collectives.work import Work


class TorchWork(dist.Work):
    """A superpod Work, or a call that has ended already (None), as a torch.distributed.Work."""

    def __init__(self, work: Work | None, outputs: Any) -> None:
        super().__init__()
        self._work = work
        self._outputs = outputs
        self._future: torch.futures.Future[Any] | None = None

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
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


def last_of(works: list[TorchWork], outputs: Any) -> TorchWork:
    """One work for several calls of a group: they end in issue order, so the last one stands for all."""
    return TorchWork(works[-1]._work if works else None, outputs)
