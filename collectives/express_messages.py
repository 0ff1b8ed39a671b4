"""The short way of a collective that goes by messages, where there is no board: see express.py.

What a card does between two messages counts most where 64 cards take turns on few cores and find their caches cold.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from superpod.collectives.arrays import lies_flat
from superpod.collectives.call import Prepared
from superpod.collectives.execute import Array, room_for, run
from superpod.collectives.express import Express, Host, failed, own_in_place, row_of
from superpod.collectives.operations import Operation
from superpod.collectives.places import Caller

_COLLECTIVES = ("all_reduce", "all_gather", "all_to_all", "barrier", "broadcast")
"""Those whose plans run on the arrays that they are given; of the others, blocks are moved before or after."""


class MessageExpress(Express):
    """One kind of call, ready, as an Express."""

    __slots__ = ()

    def __init__(self, engine: Host, prepared: Prepared, op: Operation | None) -> None:
        """`prepared`: the call, which is not fused, and which `possible` is true of; `op`: if it reduces."""
        self._engine, self._prepared, self._op = engine, prepared, op
        self._caller, self._row = Caller(), row_of(engine, prepared)

    @staticmethod
    def possible(prepared: Prepared) -> bool:
        """Whether calls like this one, which is not fused, can go the short way."""
        return prepared.call.collective in _COLLECTIVES

    def run(self, *arrays: Array) -> bool:
        """As of an Express."""
        if not all(map(lies_flat, arrays)):
            return False
        engine, prepared, op = self._engine, self._prepared, self._op
        agreement, plan = engine.agreement, prepared.plan
        place = self._caller.place()
        with engine.order:
            if engine.meeting or engine.worker.outstanding or agreement.trouble():
                return False
            start = time.perf_counter()
            try:
                spaces: Sequence[Array] = arrays
                if op is None or arrays[0].ndim != 1 or plan.scratch:
                    spaces = self._spaces(arrays)
                sequence = agreement.begin(prepared.where.text, prepared.call.nbytes, start, place)
                reduce = None if op is None else op.ufunc
                run(plan, spaces, prepared.where, sequence=sequence, seconds=engine.timeout, reduce=reduce)
                if op is not None and prepared.call.collective == "all_reduce":
                    op.finish(spaces[0], engine.world_size)
            except BaseException as error:
                failed(engine, prepared.call.collective, error)
                raise
            self._count(start)
        return True

    def _spaces(self, arrays: Sequence[Array]) -> Sequence[Array]:
        flat = [array if array.ndim == 1 else array.reshape(-1) for array in arrays]
        spaces: Sequence[Array] = flat if self._op is not None else [array.view(np.uint8) for array in flat]
        if self._prepared.call.collective == "all_gather":
            spaces = own_in_place(spaces, self._engine.rank)
        return room_for(self._prepared.plan, spaces, apart=False)
