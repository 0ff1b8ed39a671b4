"""Torch's optimizers end the steps that the modelled clock counts."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from superpod.collectives.runtime import Runtime

_marked: set[int] = set()  # clocks, by id; there is one a process, and it lives as long


def mark_steps(runtime: Runtime) -> None:
    """Let every optimizer's `step()` end a step of the runtime's clock, if it has one. Idempotent."""
    clock = runtime.clock
    if clock is None or id(clock) in _marked:
        return
    _marked.add(id(clock))

    def step(*_: Any) -> None:
        clock.step()

    register_optimizer_step_post_hook(step)
