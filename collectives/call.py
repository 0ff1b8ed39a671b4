"""A collective as an engine has it: what its ranks agree on, and how this rank carries it out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from superpod.collectives.execute import Bounds, Circumstances, Plan
from superpod.collectives.fused import Fused
from superpod.collectives.select import Choice
from superpod.interconnect.errors import InvalidValue, SuperpodError


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

    @property
    def spares(self) -> bool:
        """Whether a reduce_scatter leaves its array as it is: what messages add up needs room of its own."""
        return self.fused is not None and not self.plan.steps


def group_ident(name: str, ranks: Sequence[int]) -> int:
    """64 bits that all members of a group derive alike, without asking one another."""
    return int.from_bytes(hashlib.blake2b(f"{name}/{tuple(ranks)}".encode(), digest_size=8).digest(), "little")


def message_text(label: str, tag: int) -> str:
    """A message in words, the same for its sender and its receiver. Raises InvalidValue for a wrong tag."""
    if isinstance(tag, bool) or not isinstance(tag, int | np.integer) or not 0 <= tag < 1 << 31:
        raise InvalidValue(f"tag={tag!r} must be a whole number, 0 to 2^31 - 1")
    return f"send/recv({label}, tag {tag})"


def words_of(error: BaseException) -> str:
    """Its class and its text, if it has one."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def interrupted(text: str, group: str, rank: int) -> SuperpodError:
    """The error for a call that comes from a signal's handler while the same thread is at the group's board."""
    return SuperpodError(
        f"{text} of group {group} was called by a signal's handler that has interrupted another call of the group on "
        f"rank {rank}; let the handler set a flag"
    )
