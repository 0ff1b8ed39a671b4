"""torch's way to the short ways of express.py: tensors as they lie in memory, without a numpy array for each."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from superpod.collectives.engine import Engine
from superpod.collectives.express import Express
from superpod.collectives.torch_backend_options import GROUPS_OWN, limits
from superpod.collectives.torch_backend_tensors import lies_flat, own_numbers, source


class Short(NamedTuple):
    """A call as its short way knows it.

    Attributes:
        key: of such calls in Engine.expresses.
        operands: in the order of ShortWay.run: a tensor, or one for each rank, and how many elements it has, or each of
            them. All are of one dtype, the key's, or else the call goes the long way. A tuple, unlike a caller's list,
            keeps its tensors in memory until the call has ended.
    """

    key: Any
    operands: tuple[tuple[Tensor | tuple[Tensor, ...], int], ...]


def run_short(engine: Engine, short: Short, opts: Any) -> bool:
    """Whether a call has gone its short way, if there is one.

    `opts`: torch's options; None, and the values of torch's shorter signatures, go the long way.
    """
    way = engine.expresses.get(short.key)
    if way is None or getattr(opts, "asyncOp", True) or limits(opts) is not GROUPS_OWN:
        return False
    if not isinstance(way, Express):
        places = _places(short)
        return places is not None and way.run(*places)
    arrays = _arrays(short, reduces=way.reduces)
    return arrays is not None and way.run(*arrays)


def issued(engine: Engine, short: Short, action: Callable[[], Any]) -> Callable[[], Any]:
    """What carries an asynchronous call out when its turn comes: the short way in compiled code, or else `action`."""
    way = engine.expresses.get(short.key)
    if way is None or isinstance(way, Express) or (places := _places(short)) is None:
        return action
    run_issued = way.run_issued

    def either(_: Short = short) -> None:  # whose tensors stay in memory as long as this function
        if not run_issued(engine.place, *places):
            action()

    return either


def _dtype(short: Short) -> torch.dtype | None:
    """That all tensors should have, if there are any."""
    first = short.operands[0][0] if short.operands else None
    tensor = first[0] if isinstance(first, tuple) and first else first
    return tensor.dtype if isinstance(tensor, Tensor) else None


def _places(short: Short) -> list[int | bytes] | None:
    """Where the operands lie: an address, or the addresses of several in one; None if compiled code cannot use them."""
    dtype, places = _dtype(short), list[int | bytes]()
    for operand, count in short.operands:
        tensors = operand if isinstance(operand, tuple) else (operand,)
        if not all(_fits(tensor, dtype, count) for tensor in tensors):
            return None
        addresses = [tensor.data_ptr() for tensor in tensors]
        places.append(pack(f"{len(addresses)}Q", *addresses) if isinstance(operand, tuple) else addresses[0])
    return places


def _arrays(short: Short, *, reduces: bool) -> list[Any] | None:
    """The operands' memory as arrays; None if there are several for one, if one would have to be copied, and if two of
    them overlap, so that one may be written before all of the other is read.
    """
    dtype, arrays = _dtype(short), list[Any]()
    for operand, count in short.operands:
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


def _fits(tensor: Any, dtype: torch.dtype | None, count: int) -> bool:
    """Whether it is a dense tensor of this dtype and length whose elements lie on the CPU in order."""
    dense = isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.is_cpu
    return dense and tensor.dtype is dtype and tensor.numel() == count and lies_flat(tensor)
