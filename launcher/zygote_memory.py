"""What a zygote does with its memory before it forks, so that each card copies less of it.

A card shares the zygote's pages until it writes to them, and CPython writes a lot: to the count of references of
whatever it looks at, and into free room wherever there is some. Nothing here changes what a program sees.
benchmarks/LOG.md has what each step saves, and what was tried besides.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Iterator

_STEP, _LARGEST = 16, 512  # bytes: CPython keeps blocks of each multiple of 16 up to 512 apart, in pools
_POOL = 16 << 10  # bytes
_FRESH = 4  # pools: the old one, the new one, and two from which Python has just taken and given back a block
_EMPTY = sys.getsizeof(b"")
_LARGE, _MEDIUM, _SMALL = 1 << 16, 1 << 11, 24  # bytes: the C library's blocks that are looked for
_MOST = 4 << 20  # bytes that either kind of gap may take, whatever the allocator; they take some 1.4 MB with torch

_filling: list[object] = []


def settle() -> None:
    """Everything that cards are to share is there: forget what is of no use to them, and leave them no gaps.

    Takes 3 ms beside the garbage collection, and 3 MB, which the cards share, too.
    """
    gc.collect()
    _forget_attributes()
    _fill_pools()
    _fill_heap()
    gc.freeze()  # the collector does not touch, and so not copy, what the cards share


def _forget_attributes() -> None:
    """Empty the interpreter's cache of classes' attributes, which imports have filled with what no card asks for.

    Each of its 4,096 places holds a name; whoever takes the place lets go of that name, a write to a page of its own.
    """
    forget = getattr(sys, "_clear_internal_caches", None) or getattr(sys, "_clear_type_cache", None)
    if forget is not None:  # CPython's alone; the first from 3.13 on
        forget()


# Imports leave thousands of free blocks, in as many pages. A card's first objects would lie there, and each would cost
# the card a copy of the page around it. The zygote takes these blocks, for good: what a card makes lies side by side.


def _fill_pools() -> None:
    """Take the small blocks that CPython has ready."""
    left = _MOST
    for size in range(_STEP, _LARGEST + 1, _STEP):
        left = _fill(size, left)


def _fill(size: int, left: int) -> int:
    """Take blocks of one size by the pool, until they come from few pools: those are fresh, and no gap is left.

    Returns what of the `left` bytes is left.
    """
    count = _POOL // size
    while left >= _POOL:
        left -= _POOL
        blocks = [_object_of(size) for _ in range(count)]
        _filling.extend(blocks)
        if len({id(block) // _POOL for block in blocks}) <= _FRESH:
            break
    return left


def _object_of(size: int) -> object:
    """An object that takes `size` bytes and holds no other one; bytes are larger than the smallest blocks."""
    if size <= _EMPTY:
        return object() if size <= _STEP else complex(size)
    return bytes(size - _EMPTY)


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h [bytes]. arena: the main heap's size; keepcost: of that, what is free at its end."""

    _fields_ = (("arena", ctypes.c_size_t), ("others", ctypes.c_size_t * 8), ("keepcost", ctypes.c_size_t))


def _fill_heap() -> None:
    """Take the blocks that lie free within glibc's main heap, large ones first; no other allocator has any there."""
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # another C library, or glibc before 2.33
        libc.mallinfo2.restype = _Mallinfo
        libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        heap, end = libc.mallinfo2(), libc.sbrk(0) or 0
        within = range(end - heap.arena, end - heap.keepcost)
        left = _MOST
        for size in _sizes():
            while left > 0 and (block := libc.malloc(size) or 0) in within:
                left -= size
            if left <= 0:
                return
            libc.free(block)  # it lies elsewhere: there is no gap of this size


def _sizes() -> Iterator[int]:
    size = _LARGE
    while size >= _SMALL:
        yield size
        size = size // 2 if size > _MEDIUM else size - _STEP
