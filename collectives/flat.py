"""The collectives on flat arrays: what each one's arguments mean in slots and blocks. numpy and torch users share them.

Every array here is 1-D and contiguous. What only moves is given as bytes (uint8), so its dtype does not matter; `label`
names the user's dtype in the call's words. Blocks are lengths per group rank, in elements of the array. All functions
run at once and are called from an action that was issued on the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from superpod.collectives import algorithms
from superpod.collectives.engine import Call, Engine
from superpod.collectives.execute import Array, Bounds, Plan, block_bounds, even_bounds
from superpod.collectives.operations import Operation
from superpod.interconnect.errors import InvalidValue

BARRIER = Operation("max", np.maximum, np.dtype(np.uint8))
"""How a barrier combines the byte that every rank brings."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may add to a call: an algorithm by name, and a time limit in seconds."""

    algorithm: str | None = None
    timeout: float | None = None

    @staticmethod
    def of(collective: str, algorithm: str | None, timeout: float | None) -> Options:
        """Raises InvalidValue for an algorithm that the collective has not, and for a time limit of 0 or less."""
        if algorithm is not None:
            algorithms.get(collective, algorithm)
        return NO_OPTIONS if algorithm is None and timeout is None else Options(algorithm, checked_seconds(timeout))


NO_OPTIONS = Options()


def checked_seconds(timeout: float | None) -> float | None:
    """Raises InvalidValue unless it is above 0, or None."""
    if timeout is None:
        return None
    try:
        seconds = 0.0 if isinstance(timeout, str) else float(timeout)
    except (TypeError, ValueError, OverflowError):
        seconds = 0.0
    if not seconds > 0:
        raise InvalidValue(f"timeout={timeout!r} must be above 0 seconds, or None for the communicator's own")
    return seconds


def all_reduce(engine: Engine, array: Array, op: Operation, label: str, options: Options) -> None:
    """Reduce `array` (of op.wide) over all ranks, in place on every rank."""
    _run_even(engine, "all_reduce", array, label, options, op)
    op.finish(array, engine.world_size)


def reduce(engine: Engine, array: Array, op: Operation, root: int, label: str, options: Options) -> None:
    """Reduce `array` (of op.wide) in place at the root; the other ranks' arrays are used up."""
    _run_even(engine, "reduce", array, label, options, op, root)
    if engine.rank == root:
        op.finish(array, engine.world_size)


def broadcast(engine: Engine, array: Array, root: int, label: str, options: Options) -> None:
    """Copy the root's bytes into every rank's."""
    _run_even(engine, "broadcast", array, label, options, None, root)


def barrier(engine: Engine, options: Options) -> None:
    """Return once every rank has entered."""
    _run_even(engine, "barrier", np.zeros(1, np.uint8), "", options, BARRIER)


def all_gather(engine: Engine, out: Array, blocks: Sequence[int], label: str, options: Options) -> None:
    """Fill `out` (bytes), block by block; this rank's own block is in place already."""
    call = Call("all_gather", f"all_gather({label})", out.nbytes, 0, options.algorithm, _equal(blocks))
    _run_blocks(engine, call, (out,), blocks, options)


def reduce_scatter(
    engine: Engine,
    array: Array,
    blocks: Sequence[int],
    op: Operation,
    label: str,
    options: Options,
    into: Array | None = None,
) -> Array:
    """Reduce `array` (of op.wide) over all ranks; returns this rank's block of it. The rest is used up.

    With `into`, of op.wide, the block is there and `array`, which it must not overlap, stays as it is.
    """
    text = f"reduce_scatter({label}, {op.name})"
    call = Call("reduce_scatter", text, array.nbytes, 0, options.algorithm, _equal(blocks))
    _run_blocks(engine, call, (array,), blocks, options, reduce=op.ufunc, into=into)
    start = sum(blocks[: engine.rank])
    own = array[start : start + blocks[engine.rank]] if into is None else into
    op.finish(own, engine.world_size)
    return own


def all_to_all(
    engine: Engine,
    array: Array,
    out: Array,
    blocks: Sequence[int],
    out_blocks: Sequence[int],
    label: str,
    options: Options,
    *,
    equal: bool,
) -> None:
    """Send block q of `array` (bytes) to rank q, and take rank q's into block q of `out`.

    `equal`: all blocks of all ranks have one length. Every rank must say the same, so it can't be found out here.
    """
    nbytes, own = (array.nbytes, 0) if equal else (0, max(array.nbytes, out.nbytes))
    call = Call("all_to_all", f"all_to_all({label})", nbytes, 0, options.algorithm, equal, own)

    def banks(nchunks: int) -> tuple[Bounds, ...]:
        return block_bounds(blocks, nchunks), block_bounds(out_blocks, nchunks)

    key = (call.text, call.algorithm, tuple(blocks), tuple(out_blocks))
    engine.run(key, lambda: call, (array, out), banks, timeout=options.timeout)


def gather(engine: Engine, own: Array, out: Array | None, root: int, label: str, options: Options) -> None:
    """Collect every rank's bytes, all of one length, in the root's `out`."""
    blocks = [own.nbytes] * engine.world_size
    call = Call("gather", f"gather({label}, root {root})", sum(blocks), root, options.algorithm)
    if engine.rank == root:
        assert out is not None
        out[root * own.nbytes : (root + 1) * own.nbytes] = own
        _run_blocks(engine, call, (out,), blocks, options)
    else:
        _run_blocks(engine, call, (), blocks, options, put=own)


def scatter(engine: Engine, array: Array | None, own: Array, root: int, label: str, options: Options) -> None:
    """Give every rank its block of the root's bytes in `own`, all of one length."""
    blocks = [own.nbytes] * engine.world_size
    call = Call("scatter", f"scatter({label}, root {root})", sum(blocks), root, options.algorithm)
    if engine.rank == root:
        assert array is not None
        _run_blocks(engine, call, (array,), blocks, options)
        own[...] = array[root * own.nbytes : (root + 1) * own.nbytes]
    else:
        _run_blocks(engine, call, (), blocks, options, fetch=own)


def _run_even(
    engine: Engine, collective: str, array: Array, label: str, options: Options, op: Operation | None, root: int = -1
) -> None:
    """Run a collective on one array. `root` is -1 where there is none."""
    size, name = array.size, "" if op is None else op.name

    def call() -> Call:
        what = {"broadcast": label, "barrier": ""}.get(collective, f"{size} × {label}, {name}")
        text = f"{collective}({what})" if root < 0 else f"{collective}({what}, root {root})"
        return Call(collective, text, array.nbytes, max(root, 0), options.algorithm)

    engine.run(
        (collective, size, label, name, root, options.algorithm),
        call,
        (array,),
        lambda k: (even_bounds(size, k),),
        reduce=None if op is None else op.ufunc,
        timeout=options.timeout,
    )


def _run_blocks(
    engine: Engine,
    call: Call,
    spaces: tuple[Array, ...],
    blocks: Sequence[int],
    options: Options,
    *,
    reduce: np.ufunc | None = None,
    put: Array | None = None,
    fetch: Array | None = None,
    into: Array | None = None,
) -> None:
    """Run a collective with one block a rank. `put` and `fetch` are this rank's block, which messages have in scratch.

    `into`: see Engine.run.
    """

    def own_block(plan: Plan, spaces: Sequence[Array]) -> Array:
        chunks = plan.nchunks // engine.world_size
        first, last = plan.places[engine.rank * chunks], plan.places[(engine.rank + 1) * chunks - 1]
        block: Array = spaces[first.space][first.start : last.stop]
        return block

    def before(plan: Plan, spaces: Sequence[Array]) -> None:
        if put is not None and put.size and plan.places:
            own_block(plan, spaces)[...] = put

    def after(plan: Plan, spaces: Sequence[Array]) -> None:
        if fetch is not None and fetch.size and plan.places:
            fetch[...] = own_block(plan, spaces)

    layout = tuple(blocks) if not call.equal_blocks else (blocks[0],)
    engine.run(
        (call.text, call.algorithm, len(spaces), layout),
        lambda: call,
        spaces,
        lambda k: (block_bounds(blocks, k),),
        reduce=reduce,
        timeout=options.timeout,
        before=before,
        after=after,
        into=into,
        own=put if fetch is None else fetch,
    )


def _equal(blocks: Sequence[int]) -> bool:
    return all(b == blocks[0] for b in blocks)
