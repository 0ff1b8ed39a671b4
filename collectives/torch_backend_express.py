"""torch's way to the short ways of express.py: tensors as they lie in memory, without a numpy array for each."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from superpod.collectives.engine import Engine
from superpod.collectives.express import Express
from superpod.collectives.torch_backend_options import GROUPS_OWN, limits
from superpod.collectives.torch_backend_tensors import lies_flat, own_numbers, source

Operand: TypeAlias = "tuple[Tensor | tuple[Tensor, ...], int]"
"""A tensor, or one for each rank; how many elements it has, or each of them. A tuple, unlike a caller's list, keeps its
tensors in memory until the call has ended."""
Short: TypeAlias = "tuple[Any, torch.dtype, tuple[Operand, ...]]"
"""A call as its short way knows it: the key of such in Engine.expresses; the dtype of all tensors, if it is not to
go the long way; the operands in the order of ShortWay.run. It is made for every call, and so a tuple."""


def run_short(engine: Engine, short: Short, opts: Any) -> bool:
    """Whether a call has gone its short way, if there is one.

    `opts`: torch's options; None, and the values of torch's shorter signatures, go the long way.
    """
    way = engine.expresses.get(short[0])
    if way is None or getattr(opts, "asyncOp", True) or limits(opts) is not GROUPS_OWN:
        return False
    if not isinstance(way, Express):
        places = _places(short)
        return places is not None and way.run(*places)
    arrays = _arrays(short, reduces=way.reduces)
    return arrays is not None and way.run(*arrays)


def issued(engine: Engine, short: Short, action: Callable[[], Any]) -> Callable[[], Any]:
    """What carries an asynchronous call out when its turn comes: the short way in compiled code, or else `action`."""
    way = engine.expresses.get(short[0])
    if way is None or isinstance(way, Express) or (places := _places(short)) is None:
        return action
    run_issued = way.run_issued

    def either(_: Short = short) -> None:  # whose tensors stay in memory as long as this function
        if not run_issued(engine.place, *places):
            action()

    return either


def _places(short: Short) -> list[int | bytes] | None:
    """Where the operands lie: an address, or the addresses of several in one; None if compiled code cannot use them."""
    _, dtype, operands = short
    places: list[int | bytes] = []
    for operand, count in operands:
        if isinstance(operand, tuple):
            for tensor in operand:
                if not _fits(tensor, dtype, count):
                    return None
            places.append(pack(f"{len(operand)}Q", *[tensor.data_ptr() for tensor in operand]))
        elif _fits(operand, dtype, count):
            places.append(operand.data_ptr())
        else:
            return None
    return places


def _arrays(short: Short, *, reduces: bool) -> list[Any] | None:
    """The operands' memory as arrays; None if there are several for one, if one would have to be copied, and if two of
    them overlap, so that one may be written before all of the other is read.
    """
    _, dtype, operands = short
    arrays: list[Any] = []
    for operand, count in operands:
        if isinstance(operand, tuple) or not _fits(operand, dtype, count):
            return None
        try:
            array = own_numbers(operand) if reduces else source(operand)
        except (RuntimeError, TypeError):  # the long way raises it where the other ranks are told, too
            return None
        if array is None:
            return None
        arrays.append(array)
    return None if len(arrays) == 2 and np.may_share_memory(*arrays) else arrays


def _fits(tensor: Any, dtype: torch.dtype, count: int) -> bool:
    """Whether it is a dense tensor of this dtype and length whose elements lie on the CPU in order."""
    return (
        isinstance(tensor, Tensor)
        and tensor.dtype is dtype
        and tensor.numel() == count
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and lies_flat(tensor)
    )
