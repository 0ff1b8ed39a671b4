"""What keeps torch.compile out of the backend.

While a compiled program runs, dynamo looks at every Python frame, also at those of a process group that C++ calls. It
may not touch what such a group consists of and would raise; so it is told to leave these methods, and all they call, as
they are. That costs nothing a call, and does not import dynamo.
"""

from __future__ import annotations

import types
from typing import Any

from torch._C._dynamo import eval_frame


def leave_alone(*owners: type) -> None:
    """Let dynamo skip all methods of these classes and of those of superpod's that they derive from."""
    set_strategy: Any = getattr(eval_frame, "set_code_exec_strategy", None)
    if set_strategy is None:  # a torch whose dynamo knows no such thing
        return
    skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP)
    for owner in {base for each in owners for base in each.__mro__ if base.__module__.startswith("superpod.")}:
        for method in vars(owner).values():
            if isinstance(method, types.FunctionType):
                set_strategy(method.__code__, skip)
