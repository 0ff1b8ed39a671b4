"""Tensors as flat numpy arrays: views where the memory allows it, copies that are written back where it does not."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from superpod.interconnect.errors import InvalidValue

Array = npt.NDArray[Any]


def label(tensor: Tensor) -> str:
    """Length and dtype in words: "12 × float32"."""
    return f"{tensor.numel()} × {dtype_name(tensor.dtype)}"


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """A dtype in a word: "float32"."""
    return str(dtype).removeprefix("torch.")


def blocks_label(counts: list[int], dtype: torch.dtype) -> str:
    """One block a rank, in words that are equal on all ranks."""
    if all(c == counts[0] for c in counts):
        return f"{counts[0]} × {dtype_name(dtype)} a rank"
    return f"{counts} × {dtype_name(dtype)}"


def check(*tensors: Tensor) -> None:
    """Raises InvalidValue for what no card can send, and for tensors of one call that differ in dtype."""
    dtype = tensors[0].dtype if tensors else None
    for tensor in tensors:
        if not tensor.is_cpu or tensor.layout is not torch.strided:
            raise InvalidValue(
                f"tensor on {tensor.device} with layout {tensor.layout}: superpod moves dense CPU tensors; "
                "move it with .cpu(), make it dense with .to_dense()"
            )
        if tensor.dtype is not dtype:
            raise InvalidValue(f"tensors of {dtype} and {tensor.dtype} in one call must have one dtype")


def source(tensor: Tensor) -> Array:
    """A tensor's bytes for a call that only reads them, shape (nbytes,)."""
    own = tensor.detach() if tensor.requires_grad else tensor
    return _as_bytes(own if lies_flat(own) else own.resolve_conj().resolve_neg().contiguous())


def joined(tensors: list[Tensor]) -> Tensor:
    """The tensors' elements one after the other, in memory of their own."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _as_bytes(tensor: Tensor) -> Array:
    if not tensor.numel():
        return np.empty(0, np.uint8)
    if not _numpy_knows(tensor.dtype):
        tensor = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)  # a single element may have any stride
    array: Array = tensor.numpy()
    return (array if array.ndim == 1 else array.reshape(-1)).view(np.uint8)


@cache
def _numpy_knows(dtype: torch.dtype) -> bool:
    try:
        torch.empty(0, dtype=dtype).numpy()
    except (TypeError, RuntimeError):
        return False
    return True


def lies_flat(tensor: Tensor) -> bool:
    """Whether its elements lie in memory one after the other, as they are."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


class Bytes:
    """A tensor's bytes for a call that fills them: `data` is its memory, or a copy that `close` writes back."""

    def __init__(self, tensor: Tensor, *, read: bool = True) -> None:
        """`read`: the call needs the tensor's contents too."""
        self._tensor = self._flat = tensor.detach() if tensor.requires_grad else tensor
        if not lies_flat(tensor):
            self._flat = torch.empty(tensor.shape, dtype=tensor.dtype)
            if read:
                self._flat.copy_(self._tensor)
        self.data = _as_bytes(self._flat)

    def close(self) -> None:
        if self._flat is not self._tensor:
            put(self._tensor, self._flat)


def own_numbers(tensor: Tensor) -> Array | None:
    """A tensor's memory as a flat array, if its numbers lie there in order and in the dtype they are added up in."""
    if _wide(tensor.dtype) is not tensor.dtype or not lies_flat(tensor):
        return None
    data: Array = (tensor.detach() if tensor.requires_grad else tensor).numpy()
    return data if data.ndim == 1 else data.reshape(-1)


class Reducible:
    """A tensor's numbers in the dtype that they are added up in: its memory where that will do, else a copy."""

    def __init__(self, tensor: Tensor, *, copy: bool = False) -> None:
        """`copy`: never the tensor's own memory, because the call uses it up."""
        self._tensor = tensor
        own = None if copy else own_numbers(tensor)
        self._copied = own is None
        self.data: Array = own if own is not None else _wide_copy(tensor)

    def close(self) -> None:
        if self._copied:
            store(self._tensor, self.data)


def _wide_copy(tensor: Tensor) -> Array:
    copy: Array = torch.empty(tensor.shape, dtype=_wide(tensor.dtype)).copy_(tensor.detach()).numpy().reshape(-1)
    return copy


def wide_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The numpy dtype in which tensors of `dtype` are reduced. Raises InvalidValue when there is none."""
    try:
        return torch.empty(0, dtype=_wide(dtype)).numpy().dtype
    except (TypeError, RuntimeError) as error:
        raise InvalidValue(f"tensors of {dtype} cannot be reduced; convert them with .to()") from error


@cache
def _wide(dtype: torch.dtype) -> torch.dtype:
    """float16, bfloat16 and the float8 kinds are added up in float32."""
    if dtype.is_floating_point and dtype.itemsize < 4:
        return torch.float32
    return torch.complex64 if dtype is torch.complex32 else dtype


def store(tensor: Tensor, data: Array) -> None:
    """Put reduced numbers into a tensor of any dtype and memory layout, rounding once."""
    put(tensor.detach(), torch.from_numpy(data).view(tensor.shape))


def distribute(together: Tensor, blocks: list[Tensor]) -> None:
    """Copy consecutive elements into tensors of any shape and memory layout, rounding once."""
    parts = torch.split(together, [b.numel() for b in blocks])
    for block, part in zip(blocks, parts, strict=True):
        put(block.detach(), part.view(block.shape))


def put(tensor: Tensor, value: Tensor) -> None:
    """Copy `value`, of the same shape, into a tensor of any dtype and memory layout, rounding once.

    Where elements share their memory, as after `expand`, they get the first one's value.
    """
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor, value = tensor.narrow(dim, 0, 1), value.narrow(dim, 0, 1)
    tensor.copy_(value)
