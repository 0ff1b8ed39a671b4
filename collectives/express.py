"""The short way for a collective that a card makes again and again: what Engine.issue and Engine.run do, in few steps.

A small collective on a board takes a few microseconds; the general way, which finds out anew what kind of call it is,
takes ten times as long, and more when 64 cards share the caches. It is for synchronous calls on a board, where
nothing is in the way; all else goes the long way, and both meet at the same board with the same stamps.

There are two: a Lane (_express.c) for what compiled code does from end to end, and Express for the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from threading import get_ident
from typing import Any, NoReturn, Protocol, TypeAlias

import numpy as np

from superpod.collectives.agreement import Agreement
from superpod.collectives.arrays import lies_flat
from superpod.collectives.call import Prepared
from superpod.collectives.compiled import Moves, moves_for
from superpod.collectives.execute import Array, room_for, run
from superpod.collectives.fused import Task
from superpod.collectives.operations import Operation
from superpod.collectives.places import Caller
from superpod.collectives.select import Choice
from superpod.collectives.statistics import Ledger
from superpod.collectives.table import Table
from superpod.collectives.work import Worker
from superpod.interconnect.exchange import Exchange, Reading, Relay

try:
    from superpod.collectives._express import Lane
except ImportError:  # there was no C compiler where superpod was installed
    Lane = None  # type: ignore[assignment, misc]


class Host(Protocol):
    """The engine whose calls these are."""

    order: Any
    meeting: int
    worker: Worker
    agreement: Agreement
    ledger: Ledger
    timeout: float
    last: Choice | None
    rank: int
    world_size: int

    def fail(self, error: BaseException, text: str) -> None: ...


def short_way(engine: Host, prepared: Prepared, table: Table, op: Operation | None) -> ShortWay | None:
    """One kind of call, ready: of one collective, length, dtype and operation. None: there is no short way.

    Args:
        prepared: the call, which is fused.
        table: of all its ranks on this host.
        op: if it reduces, in its dtype.
    """
    moves = () if Lane is None else moves_for(prepared, table, op)
    if not moves and prepared.call.collective in ("reduce", "gather", "scatter"):
        return None  # whose arrays are others in Python's way
    if not moves or None in moves:
        return Express(engine, prepared, table, op, moves)
    call, text = prepared.call, prepared.where.text
    return Lane(
        engine=engine,
        worker=engine.worker,
        acquire=engine.order.acquire,
        release=engine.order.release,
        place=Caller().place,
        text=text,
        nbytes=call.nbytes,
        choice=prepared.choice,
        row=row_of(engine, prepared),
        late=partial(_late, table, text, engine),
        late_for=partial(_late_for, table, text, engine),
        unreadable=partial(_unreadable, table, text, engine),
        failed=partial(failed, engine, call.collective),
        moves=moves,
        arrays=1 + max(_arrays(moves)),
        **engine.agreement.compiled(text),
        **table.compiled(text),
    )


def _arrays(moves: Moves) -> Iterator[int]:
    """The numbers of the arrays that they are about; -1: none."""
    for move in moves:
        if isinstance(move, Relay):
            yield from (move.array, move.into)
        elif isinstance(move, Reading):
            yield from (move.show, move.into)
        elif move is not None:
            yield from (move.give, move.into)


def row_of(engine: Host, prepared: Prepared) -> list[float]:
    """Where calls of this kind are counted."""
    return engine.ledger.setdefault((prepared.call.collective, prepared.choice.algorithm), [0, 0, 0.0])


def _late(table: Table, text: str, engine: Host, sequence: int, started: float) -> None:
    table.late(text, sequence, engine.timeout, started)


def _late_for(table: Table, text: str, engine: Host, sequence: int, started: float, rank: int, count: int) -> None:
    table.late_for(text, sequence, engine.timeout, started, rank, count)


def _unreadable(table: Table, text: str, engine: Host, sequence: int, started: float, rank: int, code: int) -> NoReturn:
    table.call(text, sequence, engine.timeout)
    table.unreadable(rank, OSError(code, os.strerror(code)))


def failed(engine: Host, collective: str, error: BaseException) -> None:
    """The call that had begun raised this."""
    engine.agreement.fail()
    engine.fail(error, collective)


class Express:
    """The short way in Python."""

    __slots__ = ("_caller", "_engine", "_moves", "_op", "_prepared", "_row", "_table")

    def __init__(self, engine: Host, prepared: Prepared, table: Table, op: Operation | None, moves: Moves) -> None:
        """Arguments as for `short_way`; `moves`: its meetings, if compiled code does them."""
        self._engine, self._table, self._prepared, self._op, self._moves = engine, table, prepared, op, moves
        self._caller, self._row = Caller(), row_of(engine, prepared)

    def run(self, *arrays: Array) -> bool:
        """Carry the call out.

        Args:
            arrays: what a communicator's method of this name is given, in whole, and then its `out`, if that is another
                array; the way knows their lengths.
        Returns:
            False, and has done nothing, if something is in the way, such as calls that were issued before, or an array
            that is not contiguous.
        """
        if not all(map(lies_flat, arrays)):
            return False
        spaces = tuple(array.reshape(-1) if self._op else array.reshape(-1).view(np.uint8) for array in arrays)
        engine, agreement, prepared = self._engine, self._engine.agreement, self._prepared
        place = self._caller.place()
        with engine.order:
            if engine.meeting or engine.worker.outstanding or agreement.trouble():
                return False
            engine.meeting = get_ident()
            start = time.perf_counter()
            try:
                sequence = agreement.begin(prepared.where.text, prepared.call.nbytes, start, place)
                for move in self._moves:
                    if move is None:
                        self._across(spaces, sequence)
                    elif isinstance(move, Exchange):
                        self._table.exchange(prepared.where.text, sequence, engine.timeout, start, move, spaces)
                if not self._moves:
                    self._meet(spaces, sequence)
            except BaseException as error:
                failed(engine, prepared.call.collective, error)
                raise
            finally:
                engine.meeting = 0
            self._count(start)
        return True

    @property
    def reduces(self) -> bool:
        return self._op is not None

    def _count(self, start: float) -> None:
        """The call that had begun at `start` has ended well."""
        ended, prepared, row = time.perf_counter(), self._prepared, self._row
        self._engine.agreement.end(ended)
        self._engine.last = prepared.choice
        row[0] += 1
        row[1] += prepared.call.nbytes
        row[2] += ended - start

    def _across(self, spaces: Sequence[Array], sequence: int) -> None:
        """What goes between hosts."""
        prepared, seconds, reduce = self._prepared, self._engine.timeout, None if self._op is None else self._op.ufunc
        spaces = room_for(prepared.plan, spaces, apart=False)
        with np.errstate(all="ignore"):  # an overflow is a result, the same on every rank
            run(prepared.plan, spaces, prepared.where, sequence=sequence, seconds=seconds, reduce=reduce)

    def _meet(self, spaces: Sequence[Array], sequence: int) -> None:
        prepared, op, seconds = self._prepared, self._op, self._engine.timeout
        into = None
        match prepared.call.collective:
            case "all_gather":
                spaces = own_in_place(spaces, self._engine.rank)
            case "reduce_scatter":
                *spaces, into = spaces
        assert prepared.fused is not None
        self._table.call(prepared.where.text, sequence, seconds)
        reduce, plan = None if op is None else op.ufunc, prepared.plan
        spaces = room_for(plan, spaces, apart=False)
        with np.errstate(all="ignore"):
            across = partial(run, plan, spaces, prepared.where, sequence=sequence, seconds=seconds, reduce=reduce)
            prepared.fused(self._table, Task(spaces, prepared.banks, reduce, prepared.call.root, across, into))
        if op is not None and prepared.call.collective in ("all_reduce", "reduce_scatter"):
            op.finish(spaces[0] if into is None else into, self._engine.world_size)


def own_in_place(spaces: Sequence[Array], rank: int) -> Sequence[Array]:
    """The arrays of an all_gather on which a plan runs: the second one, with this rank's block of the first."""
    own, out = spaces
    out[rank * own.size : (rank + 1) * own.size] = own
    return (out,)


ShortWay: TypeAlias = "Express | Lane"
