"""Probes of what torch.distributed offers beside tensors of a dtype: order, objects, groups, works; and their list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import support_probes as p
import torch
import torch.distributed as dist
from support_probes import DTYPES, REDUCTIONS, Case, Pairs

LIMIT = timedelta(seconds=5)


def all_reduce_of_sparse(c: Case) -> Pairs:
    own = torch.sparse_coo_tensor([[c.rank, c.world_size]], [1.0, 2.0], (c.world_size + 1,))
    dist.all_reduce(own, group=c.group)
    yield own.to_dense(), torch.tensor([1.0] * c.world_size + [2.0 * c.world_size])


def barrier(c: Case) -> Pairs:
    dist.barrier(c.group)
    yield 0, 0


def monitored_barrier(c: Case) -> Pairs:
    dist.monitored_barrier(c.group, LIMIT)
    yield 0, 0


def group_monitored_barrier(c: Case) -> Pairs:
    backend = getattr(c.group, "_get_backend", lambda device: c.group)(torch.device("cpu"))
    backend.monitored_barrier(LIMIT)
    yield 0, 0


def async_op_and_future(c: Case) -> Pairs:
    work = dist.all_reduce(own := c.own, group=c.group, async_op=True)
    work.get_future().wait()
    yield own, c.reduced()
    work.wait()
    yield work.is_completed(), True


def sequence_number(c: Case) -> Pairs:
    before = c.group._get_sequence_number_for_group()
    dist.all_reduce(c.own, group=c.group)
    dist.barrier(c.group)
    yield c.group._get_sequence_number_for_group() - before, 2


def all_gather_object(c: Case) -> Pairs:
    objects: list[Any] = [None] * c.world_size
    dist.all_gather_object(objects, {"rank": c.rank}, c.group)
    yield objects, [{"rank": rank} for rank in range(c.world_size)]


def gather_object(c: Case) -> Pairs:
    objects = [None] * c.world_size if c.rank == c.last else None
    dist.gather_object((c.rank,), objects, c.last, c.group)
    if objects is not None:
        yield objects, [(rank,) for rank in range(c.world_size)]


def broadcast_object_list(c: Case) -> Pairs:
    objects = ["a", 1] if c.rank == c.last else [None, None]
    dist.broadcast_object_list(objects, c.last, c.group)
    yield objects, ["a", 1]


def scatter_object_list(c: Case) -> Pairs:
    out: list[Any] = [None]
    objects = [(rank,) for rank in range(c.world_size)] if c.rank == c.last else [None] * c.world_size
    dist.scatter_object_list(out, objects, c.last, c.group)
    yield out, [(c.rank,)]


def send_and_recv_object_list(c: Case) -> Pairs:
    if c.rank == 0:
        dist.send_object_list(["x", 2], c.last, c.group)
    elif c.rank == c.last:
        objects: list[Any] = [None, None]
        dist.recv_object_list(objects, 0, c.group)
        yield objects, ["x", 2]


def new_group(c: Case) -> Pairs:
    part = dist.new_group([0, c.last], timeout=LIMIT, backend=dist.get_backend(c.group))
    if c.rank in (0, c.last):
        dist.all_reduce(own := torch.ones(1), group=part)
        yield own, torch.full((1,), 2.0)


def new_subgroups(c: Case) -> Pairs:
    own, _ = dist.new_subgroups(1, timeout=LIMIT)
    yield dist.get_world_size(own), 1


def device_mesh(c: Case) -> Pairs:
    mesh = dist.init_device_mesh("cpu", (c.world_size, 1), mesh_dim_names=("rows", "columns"))
    dist.all_reduce(own := torch.ones(1), group=mesh.get_group("rows"))
    yield own, torch.full((1,), float(c.world_size))


def split_group(c: Case) -> Pairs:
    part = dist.split_group(c.group, [list(range(c.world_size))], timeout=LIMIT)
    dist.all_reduce(own := torch.ones(1), group=part)
    yield own, torch.full((1,), float(c.world_size))


def group_split_group(c: Case) -> Pairs:
    part = c.group.split_group(list(range(c.world_size)), LIMIT)
    part.allreduce([own := torch.ones(1)]).wait()
    yield own, torch.full((1,), float(c.world_size))


# name in torch → its probe; () follows what a variant is called
REDUCING: dict[str, Callable[[Case], Pairs]] = {
    "all_reduce": p.all_reduce,
    "all_reduce_coalesced": p.all_reduce_coalesced,
    "all_reduce (coalescing block)": p.all_reduce_in_a_coalescing_block,
    "reduce": p.reduce_,
    "reduce_scatter": p.reduce_scatter,
    "reduce_scatter (uneven)": p.reduce_scatter_uneven,
    "reduce_scatter_tensor": p.reduce_scatter_tensor,
    "reduce_scatter_tensor (coalescing block)": p.reduce_scatter_in_a_coalescing_block,
    "functional all_reduce": p.functional_all_reduce,
    "functional reduce_scatter_tensor": p.functional_reduce_scatter_tensor,
}
COPYING: dict[str, Callable[[Case], Pairs]] = {
    "broadcast": p.broadcast,
    "all_gather": p.all_gather,
    "all_gather (uneven)": p.all_gather_uneven,
    "all_gather_into_tensor": p.all_gather_into_tensor,
    "all_gather_into_tensor (coalescing block)": p.all_gather_in_a_coalescing_block,
    "all_gather_coalesced": p.all_gather_coalesced,
    "gather": p.gather,
    "scatter": p.scatter,
    "all_to_all": p.all_to_all,
    "all_to_all_single": p.all_to_all_single,
    "all_to_all_single (uneven)": p.all_to_all_single_uneven,
    "send, recv": p.send_and_recv,
    "isend, irecv (tags)": p.isend_and_irecv_with_tags,
    "recv (from anybody)": p.recv_from_anybody,
    "batch_isend_irecv": p.batch_isend_irecv,
    "functional all_gather_tensor": p.functional_all_gather_tensor,
    "functional broadcast": p.functional_broadcast,
    "functional all_to_all_single": p.functional_all_to_all_single,
}
CALLS: dict[str, Callable[[Case], Pairs]] = {
    "all_reduce (sparse)": all_reduce_of_sparse,
    "barrier": barrier,
    "monitored_barrier": monitored_barrier,
    "monitored_barrier (method of the group)": group_monitored_barrier,
    "async_op, Work.get_future": async_op_and_future,
    "all_gather_object": all_gather_object,
    "gather_object": gather_object,
    "broadcast_object_list": broadcast_object_list,
    "scatter_object_list": scatter_object_list,
    "send_object_list, recv_object_list": send_and_recv_object_list,
    "new_group": new_group,
    "new_subgroups": new_subgroups,
    "init_device_mesh": device_mesh,
    "split_group": split_group,
    "_get_sequence_number_for_group": sequence_number,
    "split_group (method of the group)": group_split_group,
}

Probe = tuple[str, str, str]  # operation, dtype, reduction; the last two are "" where there is none


def probes() -> Iterator[Probe]:
    """Every operation with every dtype and reduction that it could be asked for."""
    yield from ((name, dtype, op) for name in REDUCING for dtype in DTYPES for op in REDUCTIONS)
    yield from ((name, dtype, "") for name in COPYING for dtype in DTYPES)
    yield from ((name, "", "") for name in CALLS)


def run(case: Case, operation: str) -> Pairs:
    """The probe of one operation."""
    return (REDUCING | COPYING | CALLS)[operation](case)
