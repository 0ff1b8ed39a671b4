"""Sleeping until a word of shared memory changes: Linux' futex(2), called through the C library."""

from __future__ import annotations

import ctypes
import errno
import platform
import sys
from collections.abc import Callable
from functools import cache

_NUMBERS = {"x86_64": 202, "aarch64": 98}
_WAIT, _WAKE = 0, 1
_EVERYBODY = (1 << 31) - 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


@cache
def _syscall() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    function.argtypes = (
        ctypes.c_long,
        ctypes.c_void_p,
        ctypes.c_int,
        ctypes.c_uint32,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_uint32,
    )
    return function


def available() -> bool:
    """Whether this system has it."""
    return sys.platform == "linux" and platform.machine() in _NUMBERS


def wait(address: int, value: int, seconds: float) -> None:
    """Sleep until somebody wakes the 32-bit word at `address`, at most `seconds`; not at all unless it holds `value`.

    May return early. Raises OSError for an address that is not mapped.
    """
    nanoseconds = max(0, int(seconds * 1e9))
    limit = _Timespec(*divmod(nanoseconds, 1_000_000_000))
    number = _NUMBERS[platform.machine()]
    if _syscall()(number, address, _WAIT, value, ctypes.addressof(limit), None, 0) < 0:
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
            raise OSError(code, f"futex wait at {address:#x}")


def wake(address: int) -> int:
    """Wake everybody who waits for the word at `address`; how many that were."""
    return _syscall()(_NUMBERS[platform.machine()], address, _WAKE, _EVERYBODY, None, None, 0)
