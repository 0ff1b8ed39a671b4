"""What a fused collective is given: a way to meet the other cards of its host, and what to do there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from superpod.collectives.execute import Array, Bounds
from superpod.collectives.window import Window


class Meeting(Protocol):
    """How cards meet. `slot` is the room of one card in bytes."""

    rank: int
    world_size: int
    slot: int

    def begin(self) -> Array:
        """Bytes of shape (world_size, slot): each card writes its own part, such as its row, then meets the others."""
        ...

    def meet(self) -> None:
        """Return when all have written. Other slots are begun only by who has read what it wanted of these."""
        ...

    def window(self, array: Array, starts: Sequence[int]) -> Window | None:
        """Let each card read an array where it lies, from byte `starts[rank]` on; None on all if one of them cannot."""
        ...

    def relay(self, pieces: int) -> Array:
        """Come to a meeting without waiting for the others; returns a room for all, of world_size · slot bytes.

        Nobody leaves it before the last rank is through with all `pieces`.
        """
        ...

    def carry(self, reduce: Any, array: Array, into: Array, first: int, piece: int, window: int) -> bool:
        """Do all of a relay, as relay.py has it, in compiled code; False, and nothing is done, if that cannot be.

        Args: the ufunc; the array; what is taken, elements `first` on of the sum; elements a piece; pieces a window.
        """
        ...

    def tell(self, count: int, wakes: int | None = None) -> None:
        """This card is through with so many pieces of the relay. `wakes`: the only card that may wait for it."""
        ...

    def wait_for(self, rank: int, count: int) -> None:
        """Return when a card is through with `count` pieces: the one before this, the last, or one that wakes this."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """A collective on flat arrays, as `Engine.run` has it.

    Attributes:
        spaces: the arrays in the order of the schedule's banks; a rank that has none of its own has scratch last.
        banks: chunk bounds of the banks.
        reduce: how operands combine.
        root: group rank.
        across: in a group on several hosts, carries out what goes between them.
        into: where this rank's block of a reduce_scatter goes; then the array stays as it is. Else in the array.
        own: the block of a rank that is not the root, for a gather to take or a scatter to fill.
    """

    spaces: Sequence[Array]
    banks: Sequence[Bounds]
    reduce: np.ufunc | None
    root: int
    across: Callable[[], None] | None = None
    into: Array | None = None
    own: Array | None = None
