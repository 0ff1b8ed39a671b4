from typing import Any

class Lane:
    """A call that is made again and again. See _express.c, and express.py for its arguments."""

    def __init__(self, **known: Any) -> None: ...
    def run(self, *arrays: Any, into: Any = ...) -> bool:
        """As Express.run; an array may also be given as its address."""
