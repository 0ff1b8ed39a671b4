"""How torch finds the backend: the entry point of group `torch.backends`, which every `import torch` calls at its end.

It runs in every program of the environment, so it is cheap and never raises: an exception here would break
`import torch` for programs that have nothing to do with superpod. With TORCH_DEVICE_BACKEND_AUTOLOAD=0 torch does not
call it; `import superpod.collectives.torch_backend` does.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

NAME = "superpod"


def register() -> None:
    """Make `init_process_group("superpod")` known to torch; the backend itself loads with the first group.

    Calling it again does nothing. Never raises: a torch that refuses is reported through logging, and only
    `init_process_group("superpod")` fails there.
    """
    try:
        import torch.distributed as dist  # loaded already when torch calls; torch itself is not complete yet

        if dist.is_available() and NAME not in dist.Backend.backend_list:
            dist.Backend.register_backend(NAME, _create, extended_api=True, devices=["cpu"])
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not break `import torch`
        logging.getLogger(NAME).warning("torch.distributed has no backend %r: %s", NAME, error)


def _create(options: Any, group_options: Any) -> Any:
    backend = importlib.import_module("superpod.collectives.torch_backend")  # by name: it imports this file
    return backend.create_process_group(options, group_options)
