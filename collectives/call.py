"""A collective as an engine has it: what its ranks agree on, and how this rank carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from superpod.collectives.execute import Bounds, Circumstances, Plan
from superpod.collectives.fused import Fused
from superpod.collectives.select import Choice


@dataclass(frozen=True, slots=True)
class Call:
    """A collective as its ranks must agree on it.

    Attributes:
        collective: its name.
        text: the call in words, equal on all ranks if and only if they agree.
        nbytes: S, the size that selection goes by, equal on all ranks [B].
        root: group rank of the root, else 0.
        algorithm: the one that the user wants; None leaves it to the selector.
        equal_blocks: whether all blocks have one length.
        own_nbytes: what stands for `nbytes` in the clock of this rank where ranks need not agree on it [B].
    """

    collective: str
    text: str
    nbytes: int
    root: int = 0
    algorithm: str | None = None
    equal_blocks: bool = True
    own_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything about a call that does not change from one time to the next."""

    call: Call
    choice: Choice
    plan: Plan
    where: Circumstances
    fused: Fused | None  # how it runs on a board
    banks: tuple[Bounds, ...]
