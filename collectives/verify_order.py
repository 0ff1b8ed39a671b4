"""Part of `verify`: that contributions are added up one by one, from rank 0's to the last rank's.

A slot holds the sum of neighbouring ranks' contributions, first … last, made from the left: ((x0 + x1) + x2) + … .
It may be followed by the next rank's contribution alone, and by nothing else. Of two operands the first is the one that
`execute` takes first: in a local move the slot's own; in a message the lower rank's, whoever of the two receives it.
"""

from __future__ import annotations

import numpy as np

from superpod.collectives.schedule import IntArray, Schedule, Step
from superpod.interconnect.errors import ranks_text


class Folds:
    """Whose contributions every slot holds. Flat: slot s of rank r is entry r · nslots + s; shape (entries, 2).

    `read` what a step moves, then `write` it in rounds: a round writes no slot twice.
    """

    def __init__(self, schedule: Schedule) -> None:
        owner = np.repeat(np.arange(schedule.world_size), schedule.nslots)
        self._held = np.stack([owner, owner], axis=1)
        self._moved = self._held[:0]
        self._theirs_first = np.zeros(0, np.bool_)

    def read(self, source: IntArray, step: Step) -> None:
        """Look at a step's sources, all before it, one slot a move."""
        self._moved = self._held[source]
        self._theirs_first = step.src < step.dst

    def write(self, target: IntArray, copies: IntArray, adds: IntArray) -> tuple[int, str] | None:
        """Make the moves `copies` and `adds`, numbers of rows of the step, on entries `target` of them.

        Returns the first move that breaks the order and what is wrong with it, in words; or None.
        """
        self._held[target[copies]] = self._moved[copies]
        mine, theirs, swap = self._held[target[adds]], self._moved[adds], self._theirs_first[adds, None]
        left, right = np.where(swap, theirs, mine), np.where(swap, mine, theirs)
        right_order = (left[:, 1] + 1 == right[:, 0]) & (right[:, 0] == right[:, 1])
        for m in np.flatnonzero(~right_order)[:1]:
            one, other = (ranks_text(range(first, last + 1)) for first, last in (left[m].tolist(), right[m].tolist()))
            return int(adds[m]), f"adds up {one} and {other}; the fixed order is 0, 1, 2, … one rank after the other"
        self._held[target[adds]] = np.stack([left[:, 0], right[:, 1]], axis=1)
        return None
