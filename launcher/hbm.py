"""A card's memory budget: superpod-run --hbm. What it allocates beyond that is refused, as on an accelerator.

The budget is a limit (RLIMIT_DATA) on private writable memory, reserved or touched, on top of what the process has when
its program begins; memory shared with other cards does not count. Whoever allocates is told by the system, so numpy
raises its MemoryError and torch its RuntimeError; one that ends the program is put into words here. Children inherit
what is left. What cannot be told: C code that ends the process when it gets no memory, as some libraries' threads do.
"""

from __future__ import annotations

import errno
import resource
from dataclasses import dataclass

from superpod.interconnect.errors import JobFailure, OutOfMemory
from superpod.interconnect.units import size_text

_LONGEST_CHAIN = 100  # errors that came from one another; a user can tie them into a ring
_TORCH_SAYS = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")


@dataclass(frozen=True, slots=True)
class Budget:
    """Attributes: rank; nbytes: what it may allocate; before: what it had when that began to count [B]."""

    rank: int
    nbytes: int
    before: int

    @staticmethod
    def begin(rank: int, nbytes: int | None) -> Budget | None:
        """From now on this process may allocate `nbytes` more; None: as many as there are, and there is no budget."""
        if nbytes is None:
            return None
        before = _private_bytes()
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = before + nbytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
        return Budget(rank, nbytes, before)

    def explained(self, error: BaseException) -> BaseException:
        """The error that ends the program, or an OutOfMemory that it is the cause of. Lifts the limit, to say so."""
        used = _private_bytes() - self.before
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        reason = _lack_of_memory(error)
        if reason is None:
            return error
        said = str(reason).partition("\n")[0].rpartition("DefaultCPUAllocator: ")[2] or type(reason).__name__
        found = OutOfMemory(
            f"rank {self.rank}: out of memory: of the card's budget, --hbm {size_text(self.nbytes)}, "
            f"{size_text(max(used, 0))} are in use, and more was asked for ({said}); allocate less, or give it more"
        )
        found.__cause__ = error
        return found


def _private_bytes() -> int:
    """The private writable memory of this process, as the kernel counts it for the limit."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmData:"))
    return int(line.split()[1]) << 10


def _lack_of_memory(error: BaseException | None) -> BaseException | None:
    """The error, or one that it came from, that says that there was no memory."""
    for _ in range(_LONGEST_CHAIN):
        if isinstance(error, JobFailure):
            return None  # it is another card that has none
        if error is None or isinstance(error, MemoryError):
            break
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            break
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_SAYS):
            break
        error = error.__cause__ if error.__cause__ is not None else error.__context__
    else:
        return None
    return error
