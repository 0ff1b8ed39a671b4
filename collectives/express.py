"""The short way for a collective that a card makes again and again: what Engine.issue and Engine.run do, in few steps.

A small collective on a board takes a few microseconds; the general way, which finds out anew what kind of call it is,
takes three times as long, and more when 64 cards share the caches. It is for synchronous calls on a board, where
nothing is in the way; all else goes the long way, and both meet at the same board with the same stamps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from threading import get_ident
from typing import Any, Protocol

import numpy as np

from superpod.collectives.agreement import Agreement
from superpod.collectives.call import Prepared
from superpod.collectives.compiled import moves_for
from superpod.collectives.execute import Array, room_for, run
from superpod.collectives.fused import Task
from superpod.collectives.operations import Operation
from superpod.collectives.places import Caller
from superpod.collectives.select import Choice
from superpod.collectives.statistics import Ledger
from superpod.collectives.table import Table
from superpod.collectives.work import Worker


class Host(Protocol):
    """The engine whose calls these are."""

    order: Any
    meeting: int
    worker: Worker
    agreement: Agreement
    ledger: Ledger
    timeout: float
    last: Choice | None
    world_size: int

    def fail(self, error: BaseException, text: str) -> None: ...


class Express:
    """One kind of call, ready: of one collective, length, dtype and operation."""

    __slots__ = (
        "_agreement",
        "_caller",
        "_choice",
        "_engine",
        "_moves",
        "_nbytes",
        "_op",
        "_prepared",
        "_row",
        "_table",
        "_text",
    )

    def __init__(self, engine: Host, prepared: Prepared, table: Table, op: Operation | None) -> None:
        """`prepared`: the call, which is fused; `table`: of all its ranks; `op`: if it reduces, in its dtype."""
        self._engine, self._agreement, self._table = engine, engine.agreement, table
        self._prepared, self._choice, self._op = prepared, prepared.choice, op
        self._text, self._nbytes = prepared.where.text, prepared.call.nbytes
        self._caller = Caller()
        self._moves = moves_for(prepared, table, op)
        self._row = engine.ledger.setdefault((prepared.call.collective, prepared.choice.algorithm), [0, 0, 0.0])

    @property
    def by_address(self) -> bool:
        """Whether a call may be given the address of its array instead of the array."""
        return bool(self._moves) and None not in self._moves and self._prepared.call.collective == "all_reduce"

    def run(self, *spaces: Any, into: Array | None = None) -> bool:
        """Carry the call out on the arrays that Engine.run would be given, or on the address of the only one.

        Returns False, and has done nothing, if something is in the way, such as calls that were issued before.
        """
        engine, agreement = self._engine, self._agreement
        place = self._caller.place()
        with engine.order:
            if engine.meeting or engine.worker.outstanding or agreement.trouble():
                return False
            engine.meeting = get_ident()
            start = time.perf_counter()
            try:
                sequence = agreement.begin(self._text, self._nbytes, start, place)
                for move in self._moves:
                    if move is None:
                        self._across(spaces, sequence)
                    else:
                        self._table.exchange(self._text, sequence, engine.timeout, move(spaces, into))
                if not self._moves:
                    self._meet(spaces, sequence, into)
            except BaseException as error:
                agreement.fail()
                engine.fail(error, self._prepared.call.collective)
                raise
            finally:
                engine.meeting = 0
            ended = time.perf_counter()
            agreement.end(ended)
            engine.last = self._choice
            row = self._row
            row[0] += 1
            row[1] += self._nbytes
            row[2] += ended - start
        return True

    def _across(self, spaces: Sequence[Array], sequence: int) -> None:
        """What goes between hosts."""
        prepared, seconds, reduce = self._prepared, self._engine.timeout, None if self._op is None else self._op.ufunc
        spaces = room_for(prepared.plan, spaces, apart=False)
        with np.errstate(all="ignore"):  # an overflow is a result, the same on every rank
            run(prepared.plan, spaces, prepared.where, sequence=sequence, seconds=seconds, reduce=reduce)

    def _meet(self, spaces: Sequence[Array], sequence: int, into: Array | None) -> None:
        prepared, op, seconds = self._prepared, self._op, self._engine.timeout
        assert prepared.fused is not None
        self._table.call(self._text, sequence, seconds)
        reduce, plan = None if op is None else op.ufunc, prepared.plan
        spaces = room_for(plan, spaces, apart=False)
        with np.errstate(all="ignore"):
            across = partial(run, plan, spaces, prepared.where, sequence=sequence, seconds=seconds, reduce=reduce)
            prepared.fused(self._table, Task(spaces, prepared.banks, reduce, prepared.call.root, across, into))
        if op is not None and prepared.call.collective in ("all_reduce", "reduce_scatter"):
            op.finish(spaces[0] if into is None else into, self._engine.world_size)
