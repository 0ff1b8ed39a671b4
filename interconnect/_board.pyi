from typing import Any

class Seat:
    """A card's seat at a board; offsets in bytes from the beginning of its memory. See _board.c."""

    def __init__(
        self,
        memory: memoryview,
        rank: int,
        world_size: int,
        slot: int,
        asleep: int,
        stamps_0: int,
        stamps_1: int,
        slots_0: int,
        slots_1: int,
        spins: int,
    ) -> None: ...
    def come(self, half: int, stamp: int, /) -> bool: ...
    def watch(self, half: int, stamp: int, patience: float, seconds: float, /) -> bool: ...
    def meet(
        self,
        slots: int,
        half: int,
        stamp: int,
        patience: float,
        seconds: float,
        give: Any,
        given: int,
        kind: int,
        into: Any,
        offset: int,
        nbytes: int,
        root: int,
        longer: int,
        more: int,
        /,
    ) -> bool: ...
    def take(
        self, slots: int, kind: int, into: Any, offset: int, nbytes: int, root: int, longer: int, more: int, /
    ) -> None: ...
