"""all_reduce of sparse tensors: gather everybody's entries, add up what lies in one place in the ranks' order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from superpod.collectives import flat
from superpod.collectives.engine import Engine
from superpod.collectives.flat import Options
from superpod.collectives.torch_backend_tensors import Array, dtype_name, source
from superpod.interconnect.errors import InvalidValue


def check_sparse(tensor: Tensor, op: str) -> None:
    """Raises InvalidValue for what `all_reduce` below cannot do."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.sparse_coo or op != "sum":
        raise InvalidValue(
            f"{op} of a tensor with layout {tensor.layout} on {tensor.device}: of sparse tensors superpod can only sum "
            "those in COO layout on the CPU; make it dense with .to_dense()"
        )


def all_reduce(engine: Engine, tensor: Tensor, options: Options) -> None:
    """Sum COO tensors of one shape over all ranks, in place; what lies in one place is added in the ranks' order.

    Sends (n−1)/n of all ranks' indices and values together; small floats are added up in float32.
    """
    own = tensor.detach().coalesce()
    shape, name = tuple(own.shape), dtype_name(own.dtype)
    counts = _gather(engine, np.array([own._nnz()], np.int64), [8] * engine.world_size, f"sparse {shape}", options)
    rows = [int(c) for c in counts.view(np.int64)]
    indices = source(own.indices().t())
    values = own.values()
    row_nbytes = values.element_size() * int(np.prod(values.shape[1:], dtype=np.int64))
    all_indices = _gather(engine, indices, [r * 8 * own.sparse_dim() for r in rows], f"indices {shape}", options)
    all_values = _gather(engine, source(values), [r * row_nbytes for r in rows], f"{shape} × {name}", options)
    total = sum(rows)
    gathered = torch.empty((total, *values.shape[1:]), dtype=own.dtype)
    if all_values.size:
        gathered = torch.from_numpy(all_values).view(own.dtype).view(gathered.shape)
    places = torch.from_numpy(all_indices.view(np.int64).reshape(total, own.sparse_dim())).t()
    wide = torch.float32 if own.dtype.is_floating_point and own.dtype.itemsize < 4 else own.dtype
    result = torch.sparse_coo_tensor(places, gathered.to(wide), shape, check_invariants=False).coalesce()
    with torch.no_grad():  # a detached tensor would not see that the number of entries changes
        tensor.copy_(result.to(own.dtype))


def _gather(engine: Engine, own: Array, blocks: list[int], what: str, options: Options) -> Array:
    """Every rank's bytes, one rank's after the other."""
    out = np.empty(sum(blocks), np.uint8)
    start = sum(blocks[: engine.rank])
    out[start : start + blocks[engine.rank]] = own.view(np.uint8)
    flat.all_gather(engine, out, blocks, f"{what} of a sparse all_reduce", options)
    return out
