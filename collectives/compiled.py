"""What compiled code does of the reader on a board: a whole call, if it takes one meeting, or two.

It gives and takes what the function in fused.py would, and comes to the same meetings with the same stamps, so cards
with compiled code and cards without meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from superpod.collectives.call import Prepared
from superpod.collectives.execute import Array, even_bounds
from superpod.collectives.fused import FUSED, is_relay, star_is_relay, takes_one_meeting
from superpod.collectives.operations import Operation
from superpod.collectives.table import Table
from superpod.interconnect.board import KINDS, Exchange

Move = Callable[[Sequence[Any], Array | None], Exchange]
"""The arrays of a call, or the address of the only one, and where its block goes → what this card does at a meeting."""
Moves = tuple[Move | None, ...]
"""A card's meetings; None: here comes what goes between hosts."""


def moves_for(prepared: Prepared, table: Table, op: Operation | None) -> Moves:
    """How a card carries a call out, meeting by meeting; none if it has to go through fused.py. `op`: if it reduces."""
    call, algorithm = prepared.call, prepared.choice.algorithm
    n, rank, nbytes = table.world_size, table.rank, call.nbytes
    kind = 0 if op is None or op.name != "sum" or not op.wide.isnative else KINDS.get(op.wide.name, 0)
    if table.native and table.among_hosts and kind and (call.collective, algorithm) == ("all_reduce", "leaders"):
        return _leaders(n, rank, nbytes, kind, table.slot)
    if not table.native or not call.equal_blocks or prepared.fused is not FUSED.get((call.collective, algorithm)):
        return ()
    if kind and (call.collective, algorithm) == ("all_reduce", "two_shot_ordered"):
        assert op is not None
        return _two_shot(n, rank, nbytes, op.wide.itemsize, kind, table.slot)
    block = nbytes // n if call.collective in ("all_gather", "all_to_all", "reduce_scatter") else nbytes
    if not takes_one_meeting(call.collective, algorithm, n, table.slot, block):
        return ()
    own, root = rank * block, call.root
    match call.collective:
        case "barrier":
            return (lambda spaces, into: Exchange(None, 0, 0, None, 0, 0),)
        case "broadcast" if rank == root:
            return (lambda spaces, into: Exchange(spaces[0], block, 0, None, 0, 0),)
        case "broadcast":
            return (lambda spaces, into: Exchange(None, 0, 0, spaces[0], 0, block, root),)
        case "all_gather":
            return (lambda spaces, into: Exchange(spaces[0][own : own + block], block, 0, spaces[0], 0, block),)
        case "all_to_all":
            return (lambda spaces, into: Exchange(spaces[0], nbytes, 0, spaces[1], own, block),)
        case "all_reduce" if kind:
            return (lambda spaces, into: Exchange(spaces[0], nbytes, kind, spaces[0], 0, nbytes),)
        case "reduce_scatter" if kind:
            return (lambda spaces, into: Exchange(spaces[0], nbytes, kind, into, own, block),)
    return ()


def _two_shot(n: int, rank: int, nbytes: int, itemsize: int, kind: int, slot: int) -> Moves:
    """Each card adds up the chunk that is its own; then all hand theirs to all."""
    if n == 2 or not 0 < nbytes <= slot or is_relay(n, nbytes):
        return ()
    base, longer = divmod(nbytes // itemsize, n)
    first, last = even_bounds(nbytes // itemsize, n)[rank : rank + 2]
    offset, chunk, each = first * itemsize, (last - first) * itemsize, base * itemsize

    def own(array: Any) -> Any:
        return array + offset if isinstance(array, int) else array[first:last]

    return (
        lambda spaces, into: Exchange(spaces[0], nbytes, kind, own(spaces[0]), offset, chunk),
        lambda spaces, into: Exchange(own(spaces[0]), chunk, 0, spaces[0], 0, each, -1, longer, itemsize),
    )


def _leaders(n: int, rank: int, nbytes: int, kind: int, slot: int) -> Moves:
    """The first card of a host adds up, and hands out what comes from between the hosts."""
    if nbytes > slot or star_is_relay(n, nbytes):
        return ()
    if rank > 0:
        return (
            lambda spaces, into: Exchange(spaces[0], nbytes, 0, None, 0, 0),
            lambda spaces, into: Exchange(None, 0, 0, spaces[0], 0, nbytes, 0),
        )
    return (
        lambda spaces, into: Exchange(spaces[0], nbytes, kind, spaces[0], 0, nbytes),
        None,
        lambda spaces, into: Exchange(spaces[0], nbytes, 0, None, 0, 0),
    )
