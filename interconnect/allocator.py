"""How the C library hands memory back to the system: less eagerly, because messages come and go by the mebibyte.

glibc returns a freed block of that size at once, and the next message faults it in again, page by page: two fifths of
the processor time of a 64 MiB ring all-reduce on 8 cards (benchmarks/LOG.md). Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
from functools import cache

from superpod.interconnect.env import allocator_is_tuned

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT = 64 << 20  # bytes of freed memory that a process keeps at the most at the top of a heap
_LARGEST = 32 << 20  # bytes; blocks up to here come from the heap, glibc allows no more


@cache
def keep_freed_memory() -> bool:
    """Once a process; whether it took effect. Thresholds that the user set in the environment are respected."""
    if allocator_is_tuned():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _KEPT)) and bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST))
