"""Bruck: every step doubles how far data have come, around a ring with shortcuts, for any n; L = ceil(log2 n).

all_gather  L steps, (n−1)/n·S: step s brings the 2^s blocks that rank r + 2^s has by then
all_to_all  L steps of messages, S/n · (set bits of 0 … n−1), about S/2·log2 n, and L + 1 local ones. Equal blocks only:
            a block travels by the binary digits of its distance and meets blocks of other pairs on its way

Source: Bruck, Ho, Kipnis, Upfal & Weathersby, Efficient algorithms for all-to-all communications in multiport
message-passing systems, IEEE TPDS 8 (1997).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from superpod.collectives.algorithms.algorithm import Algorithm, ceil_log2, others
from superpod.collectives.schedule import IntArray, Schedule, Step, Traffic


def all_gather(n: int) -> Schedule:
    """Before step s rank r has blocks r to r + 2^s − 1, around the end, and hands them to r − 2^s."""
    ranks = np.arange(n)

    def build(s: int) -> Step:
        distance = 1 << s
        return Step.around(ranks, (ranks - distance) % n, ranks, min(distance, n - distance), nchunks=n)

    return Schedule("all_gather", "bruck", n, nchunks=n, nsteps=ceil_log2(n), build=build)


def all_to_all(n: int) -> Schedule:
    """Block j of rank r, for r + j, is one of those that make the hop of 2^s if bit s of j is set.

    Step 2s packs them side by side into a box, so that step 2s + 1 sends one message a rank; step 2s also unpacks what
    hop s − 1 brought: to the output, or to be held until its next hop. Banks: 0 input, 1 output, 2 held, 3 and 4 boxes
    of even and odd hops, so that no step reads a box that it packs.
    """
    ranks, hops = np.arange(n)[:, None], ceil_log2(n)
    travels = [np.flatnonzero(np.arange(n) >> s & 1) for s in range(hops + 1)]  # none makes the hop after the last

    def box(s: int) -> int:
        return (3 + s % 2) * n

    def place(s: int, j: IntArray) -> IntArray:
        """Slots, shape (n, len(j)), where the blocks lie before hop s."""
        at_home = (ranks + j) % n
        if s == 0:
            return at_home
        boxed = box(s - 1) + np.searchsorted(travels[s - 1], j)
        return np.where(j % (1 << s) == 0, at_home, np.where(j >> (s - 1) & 1, boxed, 2 * n + j))

    def local(s: int) -> Step:
        packed = travels[s]
        landed = travels[s - 1] if s else np.zeros(1, np.int64)  # block 0 needs no hop
        unpacked = landed[landed >> s & 1 == 0]
        first = np.hstack([place(s, packed), place(s, unpacked)])
        out = np.where(unpacked >> s == 0, n + (ranks - unpacked) % n, 2 * n + unpacked)
        into = np.hstack([np.broadcast_to(box(s) + np.arange(len(packed)), (n, len(packed))), out])
        return _runs(Step.of(np.broadcast_to(ranks, first.shape), np.broadcast_to(ranks, first.shape), first, 1, into))

    def build(i: int) -> Step:
        s = i // 2
        return local(s) if i % 2 == 0 else Step.of(ranks, (ranks + (1 << s)) % n, box(s), len(travels[s]))

    def traffic() -> Iterator[Traffic]:
        for s in range(hops + 1):
            landed = travels[s - 1] if s else np.zeros(1, np.int64)
            yield Traffic(local=len(travels[s]) + int(np.count_nonzero(landed >> s & 1 == 0)))
            if s < hops:
                yield Traffic(flows=Step.of(ranks[:, 0], (ranks[:, 0] + (1 << s)) % n, 0, len(travels[s])))

    return Schedule("all_to_all", "bruck", n, n, 2 * hops + 1, build, nbanks=5, equal_blocks=True, traffic=traffic)


def _runs(step: Step) -> Step:
    """The same local moves, those that continue one another made one."""
    follows = (np.diff(step.src) == 0) & (np.diff(step.first) == 1) & (np.diff(step.to) == 1)
    starts = np.flatnonzero(np.concatenate([[True], ~follows]))
    count = np.diff(np.append(starts, len(step)))
    return Step.of(step.src[starts], step.dst[starts], step.first[starts], count, step.to[starts])


def _digits(n: int) -> Fraction:
    """Hops of all n blocks of a rank together, in blocks of S/n."""
    return Fraction(sum(j.bit_count() for j in range(n)), n)


_PAPER = "Bruck, Ho, Kipnis, Upfal & Weathersby, IEEE TPDS 8 (1997)"
ALGORITHMS = (
    Algorithm("all_gather", "bruck", all_gather, ceil_log2, others, _PAPER),
    Algorithm("all_to_all", "bruck", all_to_all, lambda n: 2 * ceil_log2(n) + 1, _digits, _PAPER, equal_blocks=True),
)
