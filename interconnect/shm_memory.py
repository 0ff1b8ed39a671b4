"""Shared memory without a name: a card makes it and hands its descriptor to another card; the last mapping frees it.

It lies in no file system, so nothing is left of it when the cards are gone, however they went, and the size of /dev/shm
does not limit it. Its size is sealed: memory that another process could shrink would kill whoever reads behind its end.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref

from superpod.interconnect.errors import BadFrame

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)  # made at once, so that cards share it
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Memory:
    """A piece of shared memory; stays mapped for as long as anything refers to it or to a view of it.

    Attributes:
        nbytes: its size, a multiple of the page size.
        view: its bytes.
        words: the same as 64-bit words. An aligned word is read and written as a whole: CPython copies it by a memcpy
            of 8 bytes, which compilers make one instruction.
    """

    __slots__ = ("nbytes", "view", "words")

    def __init__(self, descriptor: int, nbytes: int) -> None:
        """Map `nbytes` of what is behind `descriptor`, which stays the caller's. Raises OSError."""
        self.nbytes = nbytes
        self.view = _mapped(descriptor, nbytes)
        self.words = self.view.cast("Q")

    @staticmethod
    def create(nbytes: int) -> tuple[Memory, int]:
        """New memory of at least `nbytes`, all zeros, and its descriptor. Only pages that are written take room."""
        nbytes = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        descriptor = os.memfd_create("superpod", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, nbytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            return Memory(descriptor, nbytes), descriptor
        except OSError:
            os.close(descriptor)
            raise

    @staticmethod
    def adopt(descriptor: int, least: int, most: int) -> Memory:
        """Map what another card has created. Raises BadFrame unless it is such memory, of `least` to `most` bytes."""
        try:
            nbytes, seals = os.fstat(descriptor).st_size, fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
            if not least <= nbytes <= most or nbytes % mmap.PAGESIZE:
                raise BadFrame(f"shared memory of {nbytes} B must have {least} to {most} B, in whole pages")
            if seals & _SEALS != _SEALS:
                raise BadFrame("shared memory whose size is not sealed; another program's?")
            return Memory(descriptor, nbytes)
        except OSError as error:
            raise BadFrame(f"descriptor is not of shared memory: {error.strerror}") from error


def _mapped(descriptor: int, nbytes: int) -> memoryview:
    """The C library's mmap: Python's keeps a descriptor open for every mapping, and a card may have thousands."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    address = _libc.mmap(None, nbytes, access, mmap.MAP_SHARED, descriptor, 0)
    if address is None or address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {nbytes} B of shared memory: {os.strerror(code)}")
    memory = (ctypes.c_ubyte * nbytes).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, nbytes).atexit = False  # or threads that still run would crash
    return memoryview(memory).cast("B")
