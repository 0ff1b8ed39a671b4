"""From seconds to bandwidths, as nccl-tests defines them, so that figures compare across tools and world sizes."""

from __future__ import annotations

from superpod.interconnect.errors import InvalidValue

# What a link carries of S bytes, as (factor, whether (n − 1)/n of it: a rank's own share does not move).
_SHARE = {
    "all_reduce": (2, True),
    "all_gather": (1, True),
    "reduce_scatter": (1, True),
    "all_to_all": (1, True),
    "gather": (1, True),
    "scatter": (1, True),
    "broadcast": (1, False),
    "reduce": (1, False),
    "sendrecv": (1, False),
    "latency": (1, False),
    "bandwidth": (1, False),
    "barrier": (0, False),
}


def algbw(*, nbytes: int, seconds: float) -> float:
    """Algorithm bandwidth S/t [B/s]: what the caller sees. `nbytes` as for `busbw`; `seconds` > 0."""
    return nbytes / _positive(seconds)


def busbw(collective: str, *, nbytes: int, seconds: float, world_size: int) -> float:
    """Bus bandwidth [B/s]: what each link carries, comparable across world sizes.

    Args:
        collective: its name; "sendrecv" is every rank sending to the next one, "barrier" moves nothing.
        nbytes: S [B], >= 0: the array that each rank holds for all_reduce, broadcast, reduce and sendrecv; all ranks'
            blocks together for all_gather, reduce_scatter, all_to_all, gather and scatter.
        seconds: the slowest rank's time [s], > 0.
        world_size: n >= 1; with n = 1 nothing moves and the result is 0.
    Raises:
        InvalidValue: there is no factor for `collective`, or `seconds` is not positive.
    Source: S/t * 2(n-1)/n for all_reduce, S/t * (n-1)/n where blocks are exchanged, S/t otherwise;
        NVIDIA/nccl-tests, doc/PERFORMANCE.md.
    """
    factor, others_only = _SHARE[_known(collective)]
    if world_size == 1:
        return 0.0
    share = factor * (world_size - 1) / world_size if others_only else factor
    return algbw(nbytes=nbytes, seconds=seconds) * share


def least_bytes(collective: str, *, nbytes: int, world_size: int) -> int:
    """Bytes that memory must carry at least, on one host: every array is read once, every result written once.

    `nbytes`, S, as for `busbw`. What all cards hold before the call is read, what they hold after it is written.
    Raises InvalidValue for an unknown collective.
    """
    n = world_size
    reads, writes = {
        "all_reduce": (n, n),
        "all_gather": (1, n),
        "reduce_scatter": (n, 1),
        "all_to_all": (n, n),
        "gather": (1, 1),
        "scatter": (1, 1),
        "broadcast": (1, n - 1),
        "reduce": (n, 1),
        "sendrecv": (n, n),
        "latency": (1, 1),
        "bandwidth": (1, 1),
        "barrier": (0, 0),
    }[_known(collective)]
    return (reads + writes) * nbytes


def _known(collective: str) -> str:
    if collective not in _SHARE:
        raise InvalidValue(f"no bus bandwidth for collective={collective!r}; there is one for {', '.join(_SHARE)}")
    return collective


def _positive(seconds: float) -> float:
    if seconds <= 0:
        raise InvalidValue(f"seconds={seconds} must be above 0: a bandwidth needs a duration")
    return seconds
