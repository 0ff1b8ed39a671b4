from typing import Any

class Lane:
    """A call that is made again and again. See _express.c, and express.py for its arguments."""

    def __init__(self, **known: Any) -> None: ...
    def run(self, *arrays: Any) -> bool:
        """As Express.run. An array may also be given as its address, or as its parts' addresses in one bytes object."""

    def run_issued(self, place: Any, *arrays: Any) -> bool:
        """The same for a call that was issued at `place` and whose turn it is now; see Engine.issue."""
