"""torch's way to the short ways of express.py: tensors as they lie in memory, without a numpy array for each."""

from __future__ import annotations

from struct import pack
from typing import Any, TypeAlias

import torch
from torch import Tensor

from superpod.collectives.express import Express, ShortWay
from superpod.collectives.torch_backend_options import GROUPS_OWN, limits
from superpod.collectives.torch_backend_tensors import lies_flat, own_numbers, source

Operand: TypeAlias = "tuple[Tensor | list[Tensor], int]"
"""A tensor, or a list of one for each rank; how many elements it has, or each of them."""


def run_short(way: ShortWay, opts: Any, *operands: Operand) -> bool:
    """Whether a call has gone a short way.

    Args:
        way: the group's for such calls.
        opts: torch's options. None and values of torch's shorter signatures go the long way.
        operands: in the order of ShortWay.run, all of one dtype, the way's.
    """
    if getattr(opts, "asyncOp", True) or limits(opts) is not GROUPS_OWN:
        return False
    tensors = next(iter(operands))[0]
    dtype = (tensors[0] if isinstance(tensors, list) else tensors).dtype
    if not isinstance(way, Express):
        places = [_place(operand, dtype, count) for operand, count in operands]
        return None not in places and way.run(*places)
    arrays = [_array(operand, dtype, count, reduces=way.reduces) for operand, count in operands]
    return not any(array is None for array in arrays) and way.run(*arrays)


def _place(operand: Tensor | list[Tensor], dtype: torch.dtype, count: int) -> int | bytes | None:
    """An address, or the addresses of a list in one; None if compiled code cannot use it."""
    if not isinstance(operand, list):
        return operand.data_ptr() if _fits(operand, dtype, count) else None
    if not all(_fits(tensor, dtype, count) for tensor in operand):
        return None
    return pack(f"{len(operand)}Q", *[tensor.data_ptr() for tensor in operand])


def _array(operand: Tensor | list[Tensor], dtype: torch.dtype, count: int, *, reduces: bool) -> Any:
    """A tensor's memory as an array; None for a list, and for a tensor that would have to be copied."""
    if isinstance(operand, list) or not _fits(operand, dtype, count):
        return None
    return own_numbers(operand) if reduces else source(operand)


def _fits(tensor: Any, dtype: torch.dtype, count: int) -> bool:
    """Whether it is a dense tensor of this dtype and length whose elements lie on the CPU in order."""
    dense = isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.is_cpu
    return dense and tensor.dtype is dtype and tensor.numel() == count and lies_flat(tensor)
