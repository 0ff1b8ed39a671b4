"""Tensors as flat numpy arrays: views where the memory allows it, copies that are written back where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from superpod.interconnect.errors import InvalidValue

Array = npt.NDArray[Any]

_WIDE = {torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}  # added up in float32
_NAMES: dict[torch.dtype, str] = {}


def label(tensor: Tensor) -> str:
    """Length and dtype in words: "12 × float32"."""
    return f"{tensor.numel()} × {dtype_name(tensor.dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    name = _NAMES.get(dtype)
    if name is None:
        name = _NAMES[dtype] = str(dtype).removeprefix("torch.")
    return name


def blocks_label(counts: list[int], dtype: torch.dtype) -> str:
    """One block a rank, in words that are equal on all ranks."""
    if all(c == counts[0] for c in counts):
        return f"{counts[0]} × {dtype_name(dtype)} a rank"
    return f"{counts} × {dtype_name(dtype)}"


def check(tensor: Tensor) -> Tensor:
    """The tensor without its autograd history. Raises InvalidValue for what no card can send."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise InvalidValue(
            f"tensor on {tensor.device} with layout {tensor.layout}: superpod moves dense CPU tensors; "
            "move it with .cpu(), make it dense with .to_dense()"
        )
    return tensor.detach().resolve_conj().resolve_neg()


def as_bytes(tensor: Tensor) -> Array:
    """The memory of a contiguous tensor, shape (nbytes,)."""
    if not tensor.numel():
        return np.empty(0, np.uint8)
    array: Array = tensor.view(-1).view(torch.uint8).numpy()
    return array


class Bytes:
    """A tensor's bytes for a call that fills them: `data` is its memory, or a copy that `close` writes back."""

    def __init__(self, tensor: Tensor, *, read: bool = True) -> None:
        """`read`: the call needs the tensor's contents too."""
        self._tensor = check(tensor)
        self._flat = self._tensor
        if not self._tensor.is_contiguous():
            self._flat = torch.empty(self._tensor.shape, dtype=self._tensor.dtype)
            if read:
                self._flat.copy_(self._tensor)
        self.data = as_bytes(self._flat)

    def close(self) -> None:
        if self._flat is not self._tensor:
            self._tensor.copy_(self._flat)


class Reducible:
    """A tensor's numbers in the dtype that they are added up in: its memory where that will do, else a copy."""

    def __init__(self, tensor: Tensor, *, copy: bool = False) -> None:
        """`copy`: never the tensor's own memory, because the call uses it up."""
        self._tensor = check(tensor)
        wide = torch.float32 if tensor.dtype in _WIDE else tensor.dtype
        self._copied = copy or wide is not tensor.dtype or not self._tensor.is_contiguous()
        flat = self._tensor.to(wide, copy=True, memory_format=torch.contiguous_format) if self._copied else self._tensor
        self.data: Array = flat.view(-1).numpy() if flat.numel() else np.empty(0, _numpy_dtype(wide))

    def close(self) -> None:
        if self._copied:
            store(self._tensor, self.data)


def wide_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The numpy dtype in which tensors of `dtype` are reduced."""
    return _numpy_dtype(torch.float32 if dtype in _WIDE else dtype)


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return torch.empty(0, dtype=dtype).numpy().dtype


def store(tensor: Tensor, data: Array) -> None:
    """Put reduced numbers into a tensor of any dtype and memory layout, rounding once."""
    tensor.copy_(torch.from_numpy(data).view(tensor.shape))
