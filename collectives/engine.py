"""One card's end of a group: numbers its collectives, chooses algorithms, runs plans, and notices disagreement.

It knows arrays as flat spaces and calls as words; what a user's arguments mean is the communicator's business.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from threading import RLock, get_ident
from typing import Any

import numpy as np

from superpod.collectives import algorithms
from superpod.collectives.agreement import Agreement
from superpod.collectives.call import Call as Call
from superpod.collectives.call import Prepared, interrupted, words_of
from superpod.collectives.execute import COLLECTIVE_TAG, Array, Bounds, Circumstances, Plan, bind, room_for, run
from superpod.collectives.express import ShortWay, short_way
from superpod.collectives.express_messages import MessageExpress
from superpod.collectives.fused import Fused, Task, fused
from superpod.collectives.fused_hosts import on_hosts
from superpod.collectives.hosts import Layout, OnHosts
from superpod.collectives.messages import Messages
from superpod.collectives.operations import Operation
from superpod.collectives.places import Caller, Place
from superpod.collectives.recorder import Recorder
from superpod.collectives.select import Choice, Selector
from superpod.collectives.statistics import CallClock, Statistics
from superpod.collectives.table import Table
from superpod.collectives.work import Work, Worker
from superpod.interconnect.errors import InvalidValue, SuperpodError
from superpod.interconnect.forked import call_in_child
from superpod.interconnect.mesh import Mesh

log = logging.getLogger("superpod")

_PREPARED = 512  # calls whose plans are kept


class Engine:
    """A group's end on this card."""

    def __init__(
        self,
        mesh: Mesh,
        ranks: Sequence[int],
        name: str,
        selector: Selector,
        statistics: Statistics,
        timeout: float,
        recorder: Recorder | None = None,
        *,
        board: bool = False,
        clock: CallClock | None = None,
    ) -> None:
        """This card's end of a new group.

        Args:
            ranks: the members' ranks in the mesh, in group order.
            timeout: of a call [s].
            board: members who share a host meet on a board when it is of use.
            clock: counts this group's calls for the modelled clock.
        """
        self.mesh = mesh
        self.ranks = tuple(ranks)
        self.rank, self.world_size = self.ranks.index(mesh.rank), len(self.ranks)
        self.name = name
        self.timeout = timeout
        self.last: Choice | None = None
        self.statistics, self.ledger = statistics, statistics.open_ledger()
        self._clock, self._issued = clock, 0  # the place in its order of the call that is carried out
        self._selector = selector
        self._prepared: OrderedDict[Any, Prepared] = OrderedDict()
        self._latest: Prepared | None = None  # that was run last
        self.expresses: dict[Any, ShortWay] = {}  # short ways, by what their users know the calls by
        self._recorder = recorder or Recorder(0)
        self.meeting = 0  # the thread that is at the board
        self._caller = Caller()
        self.place: Place | None = None  # in the user's code, of the call that is carried out
        self._told = False  # the neighbours know that the group has failed
        self.order = RLock()  # held by whoever carries out a synchronous collective
        call_in_child(self._disown)
        self._board = board and self.world_size > 1
        self._table: Table | None = None  # made by the first call that needs it
        self.worker = Worker(f"superpod {name}")
        self.agreement = Agreement(mesh, self.ranks, name, self._recorder)
        self.group = self.agreement.group
        self.messages = Messages(self, self._recorder, self.agreement.recorded, clock)
        self._hosts = OnHosts(mesh, self.group, self.ranks, timeout)

    def _disown(self) -> None:
        """In a forked child: what the parent's threads held and had under way is theirs."""
        self.order, self._table = RLock(), None
        self.expresses.clear()
        self.agreement.disown()

    # Issuing

    def issue(self, text: str, action: Callable[[], Any], *, async_op: bool) -> Any:
        """Carry out `action`, one collective, after those issued before it.

        Returns its result, or with `async_op` a Work. A synchronous call runs in the caller's thread unless
        asynchronous ones are before it in the queue. One that comes from a callback of the queue runs at once: what
        is queued behind that callback cannot begin before it has returned.
        """
        place = self._caller.place()
        with self.order:
            if self.meeting == get_ident():
                raise interrupted(text, self.name, self.mesh.rank)
            issued = 0 if self._clock is None else self._clock.place()
            if not async_op and (self.worker.outstanding == 0 or self.worker.is_current_thread() or self._over):
                return self._carry_out(text, action, place, issued)
            work, carry_out = Work(text), partial(self._carry_out, text, action, place, issued)
            if self._over:
                work.carry_out(carry_out)
            else:
                self.worker.put(work, carry_out)
        return work if async_op else work.wait()

    @property
    def _over(self) -> bool:
        """Nothing goes on in a failed group, so nobody need wait for the worker to say so."""
        return self.group.failure is not None

    def _carry_out(self, text: str, action: Callable[[], Any], place: Place | None, issued: int) -> Any:
        """Run `action`. What it raises ends the group, unless it refused its arguments before it began."""
        before, self.place, self._issued, latest = self.agreement.next, place, issued, self._latest
        try:
            return action()
        except BaseException as error:
            self.agreement.fail()
            if self.agreement.next != before or not isinstance(error, InvalidValue):
                self.fail(error, text)
            raise
        finally:
            self._latest = latest  # what a signal's handler calls in the middle of an action is not the action's own

    def fail(self, error: BaseException, text: str) -> None:
        """The group is over: `error` was raised in one of its collectives, which `text` names."""
        cause = error if isinstance(error, SuperpodError) else SuperpodError(f"{words_of(error)} in {text}")
        self.mesh.fail_group(self.group, cause, tell=self._neighbours())

    def _neighbours(self) -> list[int]:
        """Those who hear of a failure at first hand, and tell theirs: 2^k ranks up or down, so that all soon know.

        Once: later calls only meet the same failure again.
        """
        if self._told:
            return []
        self._told = True
        steps = [1 << k for k in range(self.world_size.bit_length())]
        return list({self.ranks[(self.rank + sign * s) % self.world_size] for s in steps for sign in (1, -1)})

    def run(
        self,
        key: tuple[Any, ...],
        call: Callable[[], Call],
        spaces: Sequence[Array],
        banks: Callable[[int], tuple[Bounds, ...]],
        *,
        reduce: np.ufunc | None = None,
        timeout: float | None = None,
        after: Callable[[Plan, Sequence[Array]], None] | None = None,
        before: Callable[[Plan, Sequence[Array]], None] | None = None,
        into: Array | None = None,
        own: Array | None = None,
    ) -> None:
        """Run a collective on `spaces`; call this from an action that was issued.

        Args:
            key: everything that the call and the layout of its arrays follow from. Hashable.
            call: makes the call, when there is none for this key yet.
            spaces: the given 1-D contiguous arrays of one dtype (none: bytes); the plan's scratch is added.
            banks: number of chunks → chunk bounds of the banks (see `bind`).
            before, after: called with the plan and all spaces, to move blocks into and out of scratch.
            into: where this rank's block of a reduce_scatter goes; then the array stays as it is.
            own: see Task.
        """
        start = time.perf_counter()
        seconds = self.timeout if timeout is None else timeout
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = self._prepare(key, call(), len(spaces), banks)
        plan, self.last, self._latest = prepared.plan, prepared.choice, prepared
        spaces = room_for(plan, spaces, apart=into is not None and not prepared.spares)
        if before is not None:
            before(plan, spaces)
        sequence = self.agreement.begin(prepared.where.text, prepared.call.nbytes, start, self.place)
        if prepared.fused is not None:
            across = partial(run, plan, spaces, prepared.where, sequence=sequence, seconds=seconds, reduce=reduce)
            task = Task(spaces, prepared.banks, reduce, prepared.call.root, across, into, own)
            self._meet(prepared.fused, task, prepared.where.text, sequence, seconds)
        else:
            run(plan, spaces, prepared.where, sequence=sequence, seconds=seconds, reduce=reduce)
        if into is not None and not prepared.spares:
            into[...] = spaces[0][prepared.banks[0][self.rank * plan.nchunks // self.world_size] :][: into.size]
        if after is not None:
            after(plan, spaces)
        self._count(prepared, start)

    def _count(self, prepared: Prepared, start: float) -> None:
        ended, call, algorithm = time.perf_counter(), prepared.call, prepared.choice.algorithm
        self.agreement.end(ended)
        self.statistics.count(call.collective, algorithm, call.nbytes, ended - start)
        if self._clock is not None:
            self._clock.count(call, algorithm, self._issued)

    def _prepare(
        self, key: tuple[Any, ...], call: Call, given: int, banks: Callable[[int], tuple[Bounds, ...]]
    ) -> Prepared:
        """Choose an algorithm and bind its schedule; the ranks must agree on it, so its name is in the text."""
        choice, layout, shape = self._choose(call), self.layout(), ""
        if layout is not None:
            schedule = layout.build(call.collective, choice.algorithm, call.root)
        else:
            build = algorithms.build if self._clock is None else self._clock.schedule
            schedule = build(call.collective, choice.algorithm, self.world_size, call.root)
            shape = "" if self._clock is None else self._clock.words(call.collective, choice.algorithm)
        bounds = banks(schedule.nchunks)
        way, plan = None, Plan((), 0, {}, schedule.nchunks, self.rank)
        if self._board and layout is not None and layout.count > 1:
            if (on_boards := on_hosts(schedule, layout, self.rank)) is not None:
                way, plan = on_boards.fused, bind(on_boards.across, self.rank, bounds, given)
        elif self._board:
            way = fused(call.collective, choice.algorithm, equal_blocks=call.equal_blocks)
        if way is None:
            plan = bind(schedule, self.rank, bounds, given)
        text = f"{call.text} by {choice.algorithm}{shape}"
        where = Circumstances(self.mesh, self.group, self.ranks, text)
        prepared = self._prepared[key] = Prepared(call, choice, plan, where, way, bounds)
        if len(self._prepared) > _PREPARED:
            self._prepared.popitem(last=False)
        if self.rank == 0:
            place = f"{call.text} of group {self.name}, {self.world_size} ranks"
            log.info("%s: %s, %s", place, choice.algorithm, choice.reason)
        return prepared

    def _meet(self, fused: Fused, task: Task, text: str, sequence: int, seconds: float) -> None:
        table = self._table or self._sit(text, sequence, seconds)
        table.call(text, sequence, seconds)
        self.meeting = get_ident()
        try:
            with np.errstate(all="ignore"):  # an overflow is a result, the same on every rank
                fused(table, task)
        finally:
            self.meeting = 0

    def keep(self, key: tuple[Any, ...], op: Operation | None = None) -> None:
        """Keep a short way, in `expresses` under `key`, for calls like the one just `run`, if there can be one.

        `op`: how it reduced, if it did. Call this from the action that has run it.
        """
        prepared = self._latest
        if key in self.expresses or prepared is None or self._clock is not None:
            return
        by_messages = prepared.fused is None and MessageExpress.possible(prepared)
        if not by_messages and (prepared.fused is None or self._table is None):
            return
        if prepared.call.collective == "reduce_scatter" and not prepared.spares:
            return
        if op is None or op.factor is None:
            if len(self.expresses) >= _PREPARED:
                self.expresses.clear()
            if by_messages:
                self.expresses[key] = MessageExpress(self, prepared, op)
            elif self._table is not None and (way := short_way(self, prepared, self._table, op)) is not None:
                self.expresses[key] = way

    def _sit(self, text: str, sequence: int, seconds: float) -> Table:
        """Meet the others at the group's board for the first time, for the call of these words and this number."""
        layout = self.layout()
        here = self.ranks if layout is None else [self.ranks[rank] for rank in layout.with_rank(self.rank)]
        among_hosts = len(here) < self.world_size
        self._table = Table(self.mesh, self.group, here, text, sequence, seconds, among_hosts=among_hosts)
        return self._table

    def _choose(self, call: Call) -> Choice:
        if call.algorithm is None:
            return self._selector.choose(
                call.collective,
                call.nbytes,
                self.world_size,
                equal_blocks=call.equal_blocks,
                layout=self.layout(),
            )
        wanted = self._selector.admit(call.collective, call.algorithm)
        if wanted.equal_blocks and not call.equal_blocks:
            raise InvalidValue(f"algorithm={call.algorithm!r} needs blocks of one length; {call.text} has several")
        return Choice(call.algorithm, "asked for in the call")

    def algorithm_for(self, collective: str, nbytes: int) -> str:
        """The algorithm that a call of S = `nbytes` runs by, with equal blocks and unless it asks for another."""
        return self._selector.choose(collective, nbytes, self.world_size, layout=self.layout()).algorithm

    def layout(self) -> Layout | None:
        """Which ranks share a host; None in a job of one. The first look waits for the group's first rank."""
        layout = self._hosts.layout()
        if layout is not None and self._clock is not None:
            self._clock.hosts = layout.hosts
        return layout

    # Its end

    def awaited(self) -> list[int]:
        """The ranks, in the mesh, that the collective under way waits for. From any thread."""
        absent = self._table.absent() if self._table is not None else []
        return absent or self.mesh.streams.awaited(self.group.ident, COLLECTIVE_TAG)

    def abort(self, error: SuperpodError) -> None:
        """The group is over, here and for its other ranks, who get `error`."""
        self.mesh.fail_group(self.group, error, tell=self._neighbours())

    def close(self, *, job: bool = False) -> None:
        """End the worker and forget the group. `job`: the card is about to leave the job."""
        self._told = True  # whoever calls it after this makes a mistake that is nobody else's business
        self.worker.stop(timeout=1.0)
        self.expresses.clear()
        self.statistics.close_ledger(self.ledger)
        self.mesh.close_group(self.group, job=job)
        if self._table is not None:
            self._table.leave()
            self._table = None
