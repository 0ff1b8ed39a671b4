"""Runs the probes on ranks of their own and says of each what came of it: WORKS, WRONG, REFUSED or MIXED."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from support_calls import CALLS, Probe, probes, run
from support_probes import Case, wide
from torch import Tensor
from torch_cards import TorchCards

WORKS, WRONG, REFUSED, MIXED = "works", "wrong", "refused", "mixed"
WORLDS = (2, 3)
LAST = next(reversed(CALLS))  # after it nobody needs the group
_LIMIT = timedelta(seconds=3)


def outcomes(cards: TorchCards, backend: str, worlds: Iterable[int] = WORLDS) -> dict[Probe, str]:
    """What every probe gives on `backend`, on all of `worlds`: MIXED where ranks or world sizes differ."""
    found: dict[Probe, set[str]] = {probe: set() for probe in probes()}
    for n in worlds:
        for of_rank in cards(n, probed, backend, backend=backend, timeout=200):
            for probe, outcome in zip(found, of_rank, strict=True):
                found[probe].add(outcome)
    return {probe: one.pop() if len(one) == 1 else _together(one) for probe, one in found.items()}


def _together(several: set[str]) -> str:
    """Where a wrong result is among them, that is the news; ranks without a result of their own say that it works."""
    return WRONG if WRONG in several else MIXED


def probed(rank: int, n: int, backend: str) -> list[str]:
    """All probes, in order, on one rank.

    A peer's group on which ranks fared differently, or that cannot add up afterwards, is not used again.
    """
    warnings.simplefilter("ignore")
    group = dist.new_group(backend=backend, timeout=_LIMIT)
    found = []
    for operation, dtype, reduction in probes():
        kind = getattr(torch, dtype) if dtype else torch.float32
        outcome = _outcome(Case(rank, n, group, kind, reduction or "SUM"), operation)
        found.append(outcome)
        if backend != "superpod" and operation != LAST and not _in_order(outcome, group, n):
            group = dist.new_group(backend=backend, timeout=_LIMIT)
    return found


def _outcome(case: Case, operation: str) -> str:
    try:
        pairs = list(run(case, operation))
    except Exception:  # whatever a backend refuses with
        return REFUSED
    return WORKS if all(same(got, wanted) for got, wanted in pairs) else WRONG


def _in_order(outcome: str, group: Any, n: int) -> bool:
    """Whether all ranks fared alike and the group goes on, as they tell one another over the default group."""
    try:
        dist.all_reduce(ones := torch.ones(1), group=group)
    except RuntimeError:
        ones = torch.zeros(1)
    votes = torch.tensor([outcome == WORKS, outcome == REFUSED, ones.item() == n], dtype=torch.int32)
    dist.all_reduce(votes)
    return int(votes[2]) == n and n in votes[:2]


def same(got: Any, wanted: Any) -> bool:
    """Equal, tensors element by element whatever their dtype."""
    if isinstance(got, Tensor):
        return got.shape == wanted.shape and bool((wide(got) == wide(wanted)).all())
    if isinstance(got, list | tuple) and any(isinstance(one, Tensor) for one in got):
        return len(got) == len(wanted) and all(same(a, b) for a, b in zip(got, wanted, strict=True))
    return bool(got == wanted)
