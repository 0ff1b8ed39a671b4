"""Reading what lies in another process's memory, straight to where it is wanted: Linux' process_vm_readv(2).

The system allows it between processes of one user, unless it was told otherwise: Yama's ptrace_scope = 1, as Ubuntu has
it, asks for the consent of the one who is read, which `consent` gives to the processes of the same job and nobody else;
some sandboxes forbid it. So whoever wants it tries it first, on memory that says whether it was the right process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_BY_CONSENT = "1"
_SET_PTRACER = 0x59616D61


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


@cache
def _readv() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if function is not None:
        piece = ctypes.POINTER(_Piece)
        function.argtypes = (ctypes.c_int, piece, ctypes.c_ulong, piece, ctypes.c_ulong, ctypes.c_ulong)
        function.restype = ctypes.c_ssize_t
    return function


def consent() -> None:
    """Where the system asks for it: let the processes that this one's parent has started read this one's memory."""
    with contextlib.suppress(OSError):
        if _YAMA.read_text().strip() == _BY_CONSENT and os.getppid() > 1:
            ctypes.CDLL(None).prctl(_SET_PTRACER, ctypes.c_ulong(os.getppid()), 0, 0, 0)


def read(pid: int, address: int, into: npt.NDArray[Any]) -> None:
    """Fill a contiguous array with what lies at `address` in another process. Raises OSError; it may be torn then."""
    function = _readv()
    if function is None:
        raise OSError(errno.ENOSYS, "this C library has no process_vm_readv")
    done, nbytes, target = 0, into.nbytes, into.ctypes.data
    while done < nbytes:
        here, there = _Piece(target + done, nbytes - done), _Piece(address + done, nbytes - done)
        count = function(pid, here, 1, there, 1, 0)
        if count <= 0:
            code = ctypes.get_errno() if count < 0 else errno.EFAULT
            raise OSError(code, f"reading {nbytes} B of process {pid}: {os.strerror(code)}")
        done += count


def readable(pid: int, address: int, token: bytes) -> bool:
    """Whether another process can be read, and has this token at `address`."""
    found = np.zeros(len(token), np.uint8)
    try:
        read(pid, address, found)
    except OSError:
        return False
    return found.tobytes() == token
