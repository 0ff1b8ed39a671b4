"""One rank's part of a program through torch.distributed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from chaos_cards import SECONDS, Started
from chaos_oracle import Array, brought, parts, uneven
from chaos_programs import Call, Program
from torch import Tensor

from superpod.interconnect.env import Place

_Op: Any = dist.ReduceOp
OPS = {
    "sum": _Op.SUM,
    "avg": _Op.AVG,
    "product": _Op.PRODUCT,
    "min": _Op.MIN,
    "max": _Op.MAX,
    "band": _Op.BAND,
    "bor": _Op.BOR,
    "bxor": _Op.BXOR,
}


class TorchCard:
    """Calls on torch's functions. The list and the tensor form of a collective take turns."""

    def __init__(self, program: Program, place: Place, directory: str) -> None:
        limit = timedelta(seconds=SECONDS)
        dist.init_process_group(
            "superpod", f"file://{directory}/torch", limit, place.world_size, place.rank, device_id=None
        )
        self._ranks = program.groups
        self._rank = place.rank
        world: Any = dist.group.WORLD
        self._groups: list[Any] = [world, *(dist.new_group(list(r), limit) for r in program.groups[1:])]

    def close(self) -> None:
        dist.destroy_process_group()

    def start(self, call: Call) -> Started:
        ranks = self._ranks[call.group]
        kind: Callable[..., Started] = getattr(self, f"_{call.kind}")
        return kind(call, self._groups[call.group], ranks.index(self._rank), ranks)

    def difference(self, call: Call, result: Tensor, wanted: Array) -> str:
        """What is wrong with a result, "" if nothing."""
        right = torch.from_numpy(np.ascontiguousarray(wanted)).to(_dtype(call))
        flat = torch.cat([result.reshape(-1), right[:0]])  # whose memory is in one piece, whatever torch thinks it is
        if flat.dtype != right.dtype or flat.shape != right.shape:
            return f"{flat.numel()} × {flat.dtype} instead of {right.numel()} × {right.dtype}"
        if not flat.numel() or torch.equal(flat.view(torch.uint8), right.view(torch.uint8)):
            return ""
        each = flat.element_size()
        at = int((flat.view(torch.uint8) != right.view(torch.uint8)).nonzero()[0, 0]) // each
        return f"element {at} of {flat.numel()} is {flat[at]} instead of {right[at]}"

    def _own(self, call: Call, rank: int, count: int, part: int = 0) -> Tensor:
        """What this rank brings."""
        flat = torch.from_numpy(brought(call, rank, count, part)).to(_dtype(call))
        return self._room(call, count).copy_(flat)

    def _room(self, call: Call, count: int) -> Tensor:
        """A tensor; every other element of a longer one if the call wants views."""
        return torch.zeros(2 * count if call.views else count, dtype=_dtype(call))[:: 2 if call.views else 1]

    def _blocks(self, call: Call, rank: int, counts: list[int]) -> list[Tensor]:
        """What this rank brings, one tensor a rank."""
        return [self._room(call, t.numel()).copy_(t) for t in self._flat(call, rank, counts).split(counts)]

    def _flat(self, call: Call, rank: int, counts: list[int]) -> Tensor:
        return torch.from_numpy(brought(call, rank, sum(counts))).to(_dtype(call))

    def _all_reduce(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        tensor = self._own(call, rank, call.count)
        return _started(call, dist.all_reduce(tensor, OPS[call.op], group, call.async_op), tensor)

    def _reduce(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        tensor = self._own(call, rank, call.count)
        return _started(call, dist.reduce(tensor, ranks[call.root], OPS[call.op], group, call.async_op), tensor)

    def _broadcast(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        tensor = self._own(call, rank, call.count)
        return _started(call, dist.broadcast(tensor, ranks[call.root], group, call.async_op), tensor)

    def _all_gather(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        counts = call.blocks(len(ranks))
        own = self._own(call, rank, counts[rank])
        if call.uneven or call.number % 2:
            blocks = [self._room(call, count) for count in counts]
            work = dist.all_gather(blocks, own, group, call.async_op)
            return _started(call, work, lambda: torch.cat(blocks))
        out = self._room(call, sum(counts))
        return _started(call, dist.all_gather_into_tensor(out, own, group, call.async_op), out)

    def _reduce_scatter(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        counts, op = call.blocks(len(ranks)), OPS[call.op]
        out = self._room(call, counts[rank])
        if call.uneven or call.number % 2:
            blocks = self._blocks(call, rank, counts)
            return _started(call, dist.reduce_scatter(out, blocks, op, group, call.async_op), out)
        whole = self._own(call, rank, sum(counts))
        return _started(call, dist.reduce_scatter_tensor(out, whole, op, group, call.async_op), out)

    def _all_to_all(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        n = len(ranks)
        sent = [uneven(call, rank, r) for r in range(n)]
        taken = [uneven(call, r, rank) for r in range(n)]
        if call.number % 2:
            outputs = [self._room(call, count) for count in taken]
            work = dist.all_to_all(outputs, self._blocks(call, rank, sent), group, call.async_op)
            return _started(call, work, lambda: torch.cat(outputs))
        out, splits = self._room(call, sum(taken)), (taken, sent) if call.uneven else (None, None)
        source = self._own(call, rank, sum(sent))
        return _started(call, dist.all_to_all_single(out, source, *splits, group, call.async_op), out)

    def _gather(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        blocks = [self._room(call, call.count) for _ in ranks] if rank == call.root else None
        work = dist.gather(self._own(call, rank, call.count), blocks, ranks[call.root], group, call.async_op)
        return _started(call, work, lambda: torch.cat(blocks or []))

    def _scatter(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        blocks = self._blocks(call, rank, [call.count] * len(ranks)) if rank == call.root else None
        out = self._room(call, call.count)
        return _started(call, dist.scatter(out, blocks, ranks[call.root], group, call.async_op), out)

    def _barrier(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        return _started(call, dist.barrier(group, call.async_op), torch.zeros(0, dtype=_dtype(call)))

    def _coalesced(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        tensors = [self._own(call, rank, count, part) for part, count in enumerate(parts(call))]
        if call.number % 2 and not _dtype(call).is_complex:
            work = dist.all_reduce_coalesced(tensors, OPS[call.op], group, call.async_op)
            if isinstance(work, torch.futures.Future):
                return (lambda: work.wait() and None), lambda: torch.cat(tensors)
        else:
            with dist.distributed_c10d._coalescing_manager(group, async_ops=call.async_op) as work:
                for tensor in tensors:
                    dist.all_reduce(tensor, OPS[call.op], group)
        return _started(call, work, lambda: torch.cat(tensors))

    def _message(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        work, into = None, torch.zeros(0)
        if rank == call.sender:
            own, peer = self._own(call, rank, call.count), ranks[call.root]
            work = (dist.isend if call.async_op else dist.send)(own, peer, group, call.tag)
        elif rank == call.root:
            into, peer = self._room(call, call.count), ranks[call.sender]
            work = (dist.irecv if call.async_op else dist.recv)(into, peer, group, call.tag)
        return _started(call, work, into)

    def _anyone(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        """`root` takes from whoever comes first; the messages, not their order, must be right."""
        tag = 1000 + call.number
        if rank != call.root:
            own = self._own(call, rank, call.count)
            dist.send(own, ranks[call.root], group, tag)
            return _started(call, None, None)
        found: dict[int, Tensor] = {}
        for _ in ranks[1:]:
            into = self._room(call, call.count)
            found[dist.recv(into, None, group, tag)] = into
        wanted = [r for r in ranks if r != ranks[rank]]
        return _started(call, None, torch.cat([found[r] for r in wanted]))

    def _batch(self, call: Call, group: Any, rank: int, ranks: tuple[int, ...]) -> Started:
        n, into = len(ranks), self._room(call, call.count)
        own, tag = self._own(call, rank, call.count), 1000 + call.number
        ops = [
            dist.P2POp(dist.isend, own, ranks[(rank + 1) % n], group, tag),
            dist.P2POp(dist.irecv, into, ranks[(rank - 1) % n], group, tag),
        ]
        works = dist.batch_isend_irecv(ops[:: -1 if rank % 2 else 1])

        def wait() -> None:
            for work in works:
                work.wait()

        if not call.async_op:
            wait()
        return wait if call.async_op else _nothing, lambda: into


def _dtype(call: Call) -> torch.dtype:
    found: torch.dtype = getattr(torch, call.dtype)
    return found


def _started(call: Call, work: Any, result: Any) -> Started:
    def wait() -> None:
        if work is not None and call.async_op:
            work.wait()

    return wait, result if callable(result) else lambda: result


def _nothing() -> None:
    pass
