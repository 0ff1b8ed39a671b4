"""Tensors as flat numpy arrays: views where the memory allows it, copies that are written back where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from superpod.interconnect.errors import InvalidValue

Array = npt.NDArray[Any]

_NAMES: dict[torch.dtype, str] = {}


def label(tensor: Tensor) -> str:
    """Length and dtype in words: "12 × float32"."""
    return f"{tensor.numel()} × {dtype_name(tensor.dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype in a word: "float32"."""
    name = _NAMES.get(dtype)
    if name is None:
        name = _NAMES[dtype] = str(dtype).removeprefix("torch.")
    return name


def blocks_label(counts: list[int], dtype: torch.dtype) -> str:
    """One block a rank, in words that are equal on all ranks."""
    if all(c == counts[0] for c in counts):
        return f"{counts[0]} × {dtype_name(dtype)} a rank"
    return f"{counts} × {dtype_name(dtype)}"


def check(*tensors: Tensor) -> None:
    """Raises InvalidValue for what no card can send, and for tensors of one call that differ in dtype."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise InvalidValue(
                f"tensor on {tensor.device} with layout {tensor.layout}: superpod moves dense CPU tensors; "
                "move it with .cpu(), make it dense with .to_dense()"
            )
        if tensor.dtype is not tensors[0].dtype:
            raise InvalidValue(f"tensors of {tensors[0].dtype} and {tensor.dtype} in one call must have one dtype")


def source(tensor: Tensor) -> Array:
    """A tensor's bytes for a call that only reads them, shape (nbytes,)."""
    return _as_bytes(tensor.detach().resolve_conj().resolve_neg().contiguous())


def joined(tensors: list[Tensor]) -> Tensor:
    """The tensors' elements one after the other, in memory of their own."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def _as_bytes(tensor: Tensor) -> Array:
    if not tensor.numel():
        return np.empty(0, np.uint8)
    array: Array = tensor.view(-1).view(torch.uint8).numpy()
    return array


def _lies_flat(tensor: Tensor) -> bool:
    """Whether its elements lie in memory one after the other, as they are."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


class Bytes:
    """A tensor's bytes for a call that fills them: `data` is its memory, or a copy that `close` writes back."""

    def __init__(self, tensor: Tensor, *, read: bool = True) -> None:
        """`read`: the call needs the tensor's contents too."""
        self._tensor = self._flat = tensor.detach()
        if not _lies_flat(tensor):
            self._flat = torch.empty(tensor.shape, dtype=tensor.dtype)
            if read:
                self._flat.copy_(self._tensor)
        self.data = _as_bytes(self._flat)

    def close(self) -> None:
        if self._flat is not self._tensor:
            self._tensor.copy_(self._flat)


class Reducible:
    """A tensor's numbers in the dtype that they are added up in: its memory where that will do, else a copy."""

    def __init__(self, tensor: Tensor, *, copy: bool = False) -> None:
        """`copy`: never the tensor's own memory, because the call uses it up."""
        self._tensor = flat = tensor.detach()
        wide = _wide(tensor.dtype)
        self._copied = copy or wide is not tensor.dtype or not _lies_flat(tensor)
        if self._copied:
            flat = torch.empty(tensor.shape, dtype=wide).copy_(self._tensor)
        self.data: Array = flat.view(-1).numpy()

    def close(self) -> None:
        if self._copied:
            store(self._tensor, self.data)


def wide_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The numpy dtype in which tensors of `dtype` are reduced. Raises InvalidValue when there is none."""
    try:
        return torch.empty(0, dtype=_wide(dtype)).numpy().dtype
    except (TypeError, RuntimeError) as error:
        raise InvalidValue(f"tensors of {dtype} cannot be reduced; convert them with .to()") from error


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float16, bfloat16 and the float8 kinds are added up in float32."""
    if dtype.is_floating_point and dtype.itemsize < 4:
        return torch.float32
    return torch.complex64 if dtype is torch.complex32 else dtype


def store(tensor: Tensor, data: Array) -> None:
    """Put reduced numbers into a tensor of any dtype and memory layout, rounding once."""
    tensor.detach().copy_(torch.from_numpy(data).view(tensor.shape))
