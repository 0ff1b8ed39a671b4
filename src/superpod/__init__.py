"""superpod: a software SuperPoD. Every process stands in for one accelerator card.

The names below are the public ones. They load on first use, so `import superpod` costs no import of numpy, ZeroMQ or
torch:

    comm = superpod.init()                          # under superpod-run; alone it is the world of one
    comm.all_reduce(np.ones(8, np.float32))

`init` gives this card's Communicator and `clock` its modelled clock; `run_ranks` runs a function on n cards;
`Schedule`, `Step` and `verify` are for those who write algorithms; the rest are the errors, a tree under SuperpodError.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpod.collectives.clock import clock
    from superpod.collectives.communicator import Communicator, init
    from superpod.collectives.schedule import Schedule, Step
    from superpod.collectives.verify import verify
    from superpod.collectives.work import Work
    from superpod.interconnect.errors import (
        BadFrame,
        CollectiveMismatch,
        DeadlineExceeded,
        InvalidValue,
        JobFailure,
        LinkClosed,
        OutOfMemory,
        PeerLost,
        RemoteError,
        ScheduleError,
        SuperpodError,
    )
    from superpod.launcher.testing import run_ranks

__version__ = "0.1.0"

__all__ = [
    "BadFrame",
    "CollectiveMismatch",
    "Communicator",
    "DeadlineExceeded",
    "InvalidValue",
    "JobFailure",
    "LinkClosed",
    "OutOfMemory",
    "PeerLost",
    "RemoteError",
    "Schedule",
    "ScheduleError",
    "Step",
    "SuperpodError",
    "Work",
    "clock",
    "init",
    "run_ranks",
    "verify",
]

_HOMES = {
    "Communicator": "superpod.collectives.communicator",
    "Work": "superpod.collectives.work",
    "clock": "superpod.collectives.clock",
    "init": "superpod.collectives.communicator",
    "Schedule": "superpod.collectives.schedule",
    "Step": "superpod.collectives.schedule",
    "verify": "superpod.collectives.verify",
    "run_ranks": "superpod.launcher.testing",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'superpod' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES.get(name, "superpod.interconnect.errors")), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
