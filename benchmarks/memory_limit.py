"""What this machine's memory carries: copies and additions of large arrays on all cores at once, as STREAM has them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import numpy as np

_NBYTES = 64 << 20  # of an array: far more than a cache holds
_PASSES = 6  # of which the best counts, as in STREAM


def measure(cores: int | None = None) -> dict[str, float]:
    """{"copy": bytes/s, "add": bytes/s}: bytes read and written, all cores together; half a second each.

    numpy lets other threads run while it copies or adds, so threads will do.
    """
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    return {"copy": _rate(cores, 2, _copy), "add": _rate(cores, 3, _add)}


def _copy() -> Callable[[], object]:
    source, target = np.ones(_NBYTES // 8), np.empty(_NBYTES // 8)
    return lambda: np.copyto(target, source)


def _add() -> Callable[[], object]:
    one, other, target = np.ones(_NBYTES // 8), np.ones(_NBYTES // 8), np.empty(_NBYTES // 8)
    return lambda: np.add(one, other, out=target)


def _rate(cores: int, arrays: int, make: Callable[[], Callable[[], object]]) -> float:
    """Bytes per second of the best pass: from the first thread's start to the last one's end."""
    barrier = threading.Barrier(cores)
    spans: list[list[tuple[float, float]]] = [[] for _ in range(cores)]

    def run(core: int) -> None:
        call = make()
        call()  # the first touch is the kernel's
        for _ in range(_PASSES):
            barrier.wait()
            start = time.perf_counter()
            call()
            spans[core].append((start, time.perf_counter()))

    threads = [threading.Thread(target=run, args=(core,)) for core in range(cores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds: float = min(
        max(end for _, end in one) - min(start for start, _ in one) for one in zip(*spans, strict=True)
    )
    return cores * arrays * _NBYTES / seconds
