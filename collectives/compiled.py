"""What compiled code does of the reader on a board: a whole call, if it takes one meeting, or two.

It gives and takes what the function in fused.py would, and comes to the same meetings with the same stamps, so cards
with compiled code and cards without meet.
"""

from __future__ import annotations

from superpod.collectives.call import Prepared
from superpod.collectives.execute import even_bounds
from superpod.collectives.fused import FUSED, reads, takes_one_meeting
from superpod.collectives.operations import Operation
from superpod.collectives.relay import is_relay, pieces
from superpod.collectives.table import Table
from superpod.interconnect.exchange import KINDS, Exchange, Reading, Relay

Moves = tuple[Exchange | Relay | Reading | None, ...]
"""A card's meetings; None: here comes what goes between hosts. Array 0 is the call's first, array 1 the other one."""


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
        return _two_shot(table, nbytes, op.wide.itemsize, kind)
    if kind and (call.collective, algorithm) == ("reduce_scatter", "direct_ordered") and is_relay(n, nbytes):
        assert op is not None
        own = rank * (nbytes // n)
        return _relay(table, nbytes, op.wide.itemsize, kind, 1, (own, own + nbytes // n))
    block = nbytes if call.collective in ("all_reduce", "reduce", "broadcast", "barrier") else nbytes // n
    if table.windows and reads(call.collective, n, block):
        return (_reading(call.collective, n, rank, call.root, block),)
    if not takes_one_meeting(call.collective, algorithm, n, table.slot, block):
        return ()
    own, root = rank * block, call.root
    match call.collective:
        case "barrier":
            return (Exchange(),)
        case "broadcast" if rank == root:
            return (Exchange(give=0, given=block),)
        case "broadcast":
            return (Exchange(into=0, nbytes=block, root=root),)
        case "gather" if rank == root:
            return (Exchange(give=0, given=block, into=1, nbytes=block),)
        case "scatter" if rank == root:
            return (Exchange(give=0, given=nbytes, into=1, offset=own, nbytes=block, root=root),)
        case "scatter":
            return (Exchange(into=0, offset=own, nbytes=block, root=root),)
        case "reduce" if kind and rank == root:
            return (Exchange(give=0, given=nbytes, kind=kind, into=1, nbytes=nbytes),)
        case "gather" | "reduce" if kind or call.collective == "gather":
            return (Exchange(give=0, given=block),)
        case "all_gather":
            return (Exchange(give=0, given=block, into=1, nbytes=block),)
        case "all_to_all":
            return (Exchange(give=0, given=nbytes, into=1, offset=own, nbytes=block),)
        case "all_reduce" if kind:
            return (Exchange(give=0, given=nbytes, kind=kind, into=0, nbytes=nbytes),)
        case "reduce_scatter" if kind:
            return (Exchange(give=0, given=nbytes, kind=kind, into=1, offset=own, nbytes=block),)
    return ()


def _two_shot(table: Table, nbytes: int, itemsize: int, kind: int) -> Moves:
    """Each card adds up the chunk that is its own; then all hand theirs to all. Or a relay, as in fused.py."""
    n, rank = table.world_size, table.rank
    if n > 2 and is_relay(n, nbytes):
        return _relay(table, nbytes, itemsize, kind, 0, (0, nbytes))
    if n == 2 or not 0 < nbytes <= table.slot:
        return ()
    base, longer = divmod(nbytes // itemsize, n)
    first, last = even_bounds(nbytes // itemsize, n)[rank : rank + 2]
    at, chunk, each = first * itemsize, (last - first) * itemsize, base * itemsize
    return (
        Exchange(give=0, given=nbytes, kind=kind, into=0, at=at, offset=at, nbytes=chunk),
        Exchange(give=0, start=at, given=chunk, into=0, nbytes=each, longer=longer, more=itemsize),
    )


def _relay(table: Table, nbytes: int, itemsize: int, kind: int, into: int, bounds: tuple[int, int]) -> Moves:
    piece, window = pieces(table, itemsize)
    return (Relay(kind, 0, into, itemsize, nbytes, *bounds, piece * itemsize, window),)


def _reading(collective: str, n: int, rank: int, root: int, block: int) -> Reading:
    """Each card takes what it wants from where it lies."""
    match collective:
        case "all_gather":
            return Reading(show=0, shown=block, start=0, step=0, into=1, root=-1, stride=block, nbytes=block)
        case "all_to_all":
            return Reading(show=0, shown=n * block, start=0, step=block, into=1, root=-1, stride=block, nbytes=block)
        case "scatter" if rank == root:
            return Reading(show=0, shown=n * block, start=0, step=block, into=1, root=root, stride=0, nbytes=block)
    return Reading(show=-1, shown=0, start=0, step=0, into=0, root=root, stride=0, nbytes=block)


def _leaders(n: int, rank: int, nbytes: int, kind: int, slot: int) -> Moves:
    """The first card of a host adds up, and hands out what comes from between the hosts."""
    if not 0 < nbytes <= slot or is_relay(n, nbytes):
        return ()
    own = Exchange(give=0, given=nbytes)
    if rank > 0:
        return (own, Exchange(into=0, nbytes=nbytes, root=0))
    return (own._replace(kind=kind, into=0, nbytes=nbytes), None, own)
