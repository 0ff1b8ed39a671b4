from collections.abc import Callable
from typing import Any

class Seat:
    """A card's seat at a board; offsets in bytes from the beginning of its memory. See _board.c."""

    def __init__(
        self,
        memory: memoryview,
        state: memoryview,
        rank: int,
        world_size: int,
        slot: int,
        asleep: int,
        stamps_0: int,
        stamps_1: int,
        posts: int,
        slots_0: int,
        slots_1: int,
        spins: int,
    ) -> None: ...
    def come(self, half: int, stamp: int, /) -> bool: ...
    def watch(self, half: int, stamp: int, patience: float, seconds: float, /) -> bool: ...
    def meet(
        self, tag: int, exchange: tuple[int, ...], arrays: tuple[Any, ...], patience: float, seconds: float, /
    ) -> bool: ...
    def take(self, exchange: tuple[int, ...], arrays: tuple[Any, ...], /) -> None: ...
    def relay(
        self,
        tag: int,
        relay: tuple[int, ...],
        arrays: tuple[Any, ...],
        patience: float,
        seconds: float,
        late: Callable[[int, int], None],
        /,
    ) -> None: ...
