"""One rank's part of a program, through the numpy communicator or through torch; every result is compared at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from chaos_oracle import Array, brought, expected
from chaos_programs import NUMPY, Call, Fault, Program

from superpod.collectives.communicator import Communicator, connect
from superpod.collectives.work import Work
from superpod.interconnect.env import Place, Settings

Wait = Callable[[], None]
Started = tuple[Wait, Callable[[], Any]]
"""How to wait for a call, and what has come of it then: a flat array or tensor, or None."""
SECONDS = 30.0  # of a call; only a fault that nobody notices takes as long


class Wrong(AssertionError):
    """A result is not the oracle's."""


def live(program: Program, place: Place, directory: str) -> int:
    """The life of a rank: its part of the program. Returns how many results it has compared."""
    if program.api == NUMPY:
        card: NumpyCard | Any = NumpyCard(program, place)
    else:
        from chaos_torch import TorchCard

        card = TorchCard(program, place, directory)
    done = Run(program, place.rank, card).all()
    card.close()
    return done


class Run:
    """A program under way on one rank."""

    def __init__(self, program: Program, rank: int, card: Any) -> None:
        self._program, self._rank, self._card = program, rank, card
        self._under_way: dict[int, tuple[Call, Started]] = {}
        self._compared = 0

    def all(self) -> int:
        for call, due in self._program.mine(self._rank):
            for number in due:
                if number in self._under_way:
                    self._finish(number)
            fault = self._program.fault
            if fault is not None and (self._rank, call.number) == (fault.rank, fault.number):
                call = self._go_wrong(fault, call)
            if fault is not None and fault.seconds and self._rank == fault.rank and call is self._program.calls[-1]:
                time.sleep(SECONDS)  # it dies before the last call, which the others need it in
            self._under_way[call.number] = call, self._card.start(call)
            if not call.async_op:
                self._finish(call.number)
        for number in list(self._under_way):
            self._finish(number)
        return self._compared

    def _go_wrong(self, fault: Fault, call: Call) -> Call:
        if fault.instead is not None:
            return fault.instead
        if not fault.seconds:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Timer(fault.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return call

    def _finish(self, number: int) -> None:
        call, (wait, result) = self._under_way.pop(number)
        wait()
        group = self._program.groups[call.group]
        wanted = expected(call, group.index(self._rank), len(group))
        if wanted is not None:
            self._compared += 1
            difference = self._card.difference(call, result(), wanted)
            if difference:
                raise Wrong(f"rank {self._rank}, call {call.number}: {difference}; {call}")


class NumpyCard:
    """Calls on superpod's own communicator."""

    def __init__(self, program: Program, place: Place) -> None:
        self._world = connect(Settings.read(), place, SECONDS)
        made = [self._world.group(ranks) for ranks in program.groups[1:]]
        self._groups: list[Communicator | None] = [self._world, *made]

    def close(self) -> None:
        for group in reversed(self._groups):
            if group is not None:
                group.close()

    def start(self, call: Call) -> Started:
        comm = self._groups[call.group]
        assert comm is not None
        made: Started = getattr(self, f"_{call.kind}")(comm, call)
        return made

    def difference(self, call: Call, result: Array, wanted: Array) -> str:
        """What is wrong with a result, "" if nothing."""
        wanted = wanted.astype(call.dtype)
        flat = np.ascontiguousarray(result).reshape(-1)
        if flat.dtype != wanted.dtype or flat.shape != wanted.shape:
            return f"{flat.size} × {flat.dtype} instead of {wanted.size} × {wanted.dtype}"
        if flat.tobytes() == wanted.tobytes():
            return ""
        at = int(np.flatnonzero(flat != wanted)[0]) if (flat != wanted).any() else 0
        return f"element {at} of {flat.size} is {flat[at]} instead of {wanted[at]}"

    def _array(self, call: Call, comm: Communicator, blocks: int = 1) -> Array:
        """What this rank brings, as blocks along the first axis if there are several."""
        flat = brought(call, comm.rank, blocks * call.count).astype(call.dtype)
        array = flat.reshape(blocks, call.count) if blocks > 1 else flat
        return self._room(call, array.shape, array)

    def _room(self, call: Call, shape: tuple[int, ...], content: Array | None = None) -> Array:
        """An array of that shape; every other element of a longer one if the call wants views."""
        room = (
            np.zeros((*shape[:-1], 2 * shape[-1]), call.dtype)[..., ::2] if call.views else np.zeros(shape, call.dtype)
        )
        if content is not None:
            room[...] = content
        return room

    def _issue(self, call: Call, method: Callable[..., Any], *args: Any, **more: Any) -> Started:
        value = method(*args, async_op=call.async_op, algorithm=call.algorithm, **more)
        results = [None if call.async_op else value]

        def wait() -> None:
            if call.async_op:
                results[0] = value.wait()

        return wait, lambda: results[0]

    def _all_reduce(self, comm: Communicator, call: Call) -> Started:
        return self._issue(call, comm.all_reduce, self._array(call, comm), call.op)

    def _reduce(self, comm: Communicator, call: Call) -> Started:
        return self._issue(call, comm.reduce, self._array(call, comm), call.root, call.op)

    def _broadcast(self, comm: Communicator, call: Call) -> Started:
        return self._issue(call, comm.broadcast, self._array(call, comm), call.root)

    def _all_gather(self, comm: Communicator, call: Call) -> Started:
        return self._issue(call, comm.all_gather, self._array(call, comm))

    def _reduce_scatter(self, comm: Communicator, call: Call) -> Started:
        return self._issue(call, comm.reduce_scatter, self._array(call, comm, comm.world_size), call.op)

    def _all_to_all(self, comm: Communicator, call: Call) -> Started:
        return self._issue(call, comm.all_to_all, self._array(call, comm, comm.world_size))

    def _gather(self, comm: Communicator, call: Call) -> Started:
        return self._issue(call, comm.gather, self._array(call, comm), call.root)

    def _scatter(self, comm: Communicator, call: Call) -> Started:
        source = self._array(call, comm, comm.world_size) if comm.rank == call.root else None
        out = self._room(call, (call.count,))
        if comm.world_size == 1:
            out = out.reshape(1, -1)[0]
        return self._issue(call, comm.scatter, source, call.root, out)

    def _barrier(self, comm: Communicator, call: Call) -> Started:
        wait, _ = self._issue(call, comm.barrier)
        return wait, lambda: np.zeros(0, call.dtype)

    def _message(self, comm: Communicator, call: Call) -> Started:
        if comm.rank == call.sender:
            work = comm.send(self._array(call, comm), call.root, call.tag, async_op=call.async_op)
        elif comm.rank == call.root:
            into = np.zeros(call.count, call.dtype)
            work = comm.recv(into, call.sender, call.tag, async_op=call.async_op)
            return _waiting(work), lambda: into
        else:
            work = None
        return _waiting(work), lambda: None


def _waiting(work: Any) -> Wait:
    """How to wait for a message that is under way."""

    def wait() -> None:
        if isinstance(work, Work):
            work.wait()

    return wait
