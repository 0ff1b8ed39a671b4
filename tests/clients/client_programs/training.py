"""What the client programs share: real images, a network, steps of training, and a verdict on each client.

A client trains on the images twice in one process, on superpod and on gloo, and ends with a vector: all parameters and
the loss of every step. The vectors may differ by what rounding can do, and by nothing else:

* Where every sum over ranks has two terms, they must not differ by a bit: a + b is b + a.
* Elsewhere the sums are added up in another order. With u the rounding unit of the dtype and K the number of additions
  that follow one another on the way to a gradient, an order is worth at most K·u of the gradient's largest entry, to
  first order. What such differences come to after some steps depends on the network; so it is measured: the same
  training in one process, every gradient of every step disturbed by K·u of its largest entry, one way or the other by
  lot, ends `bound` away from the undisturbed one. Real roundings are far from all being the largest possible, so a
  correct run lies well within it; a gradient that is lost, doubled or one step late lies far beyond: in double
  precision by some ten orders of magnitude.

Every client prints one line of JSON on rank 0, which the tests read.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore
from torch.nn.functional import cross_entropy

STEPS = 10
BATCH = 120  # images in a step, all ranks together: 1, 2, 3, 4, 5, 6, 8 ranks have equal shares
WIDTH = 48
LR = 0.5
LONGEST = (64 + WIDTH + WIDTH) + (10 + WIDTH + WIDTH) + BATCH  # K: sums of the way forth, back, and over the images

OptimizerOf = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
_PATIENCE = 50.0  # seconds for one client; one that hangs ends the job, with the stacks of all threads
IMAGES, DIGITS = torch.empty(0), torch.empty(0)


def begin() -> None:
    """argv: a file with the images and digits, and the dtype to compute in."""
    global IMAGES, DIGITS
    torch.set_num_threads(1)
    torch.set_default_dtype(getattr(torch, sys.argv[2]))
    data = np.load(sys.argv[1])
    IMAGES = torch.from_numpy(data[:, :64] / 16).to(torch.get_default_dtype())
    DIGITS = torch.from_numpy(data[:, 64]).long()


def unit() -> float:
    """The rounding unit u of the dtype that is computed in."""
    return torch.finfo(torch.get_default_dtype()).eps / 2


def network() -> nn.Sequential:
    """The same on every rank and in every run."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10, bias=False)
    )


def momentum(parameters: Iterable[Tensor], lr: float = LR) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def batches() -> tuple[Tensor, ...]:
    """Which images each step takes, the same on every rank."""
    order = torch.randperm(len(IMAGES), generator=torch.Generator().manual_seed(1))
    return order.split(BATCH)[:STEPS]


def loss_of(model: Callable[[Tensor], Tensor], chosen: Tensor) -> Tensor:
    return cross_entropy(model(IMAGES[chosen]), DIGITS[chosen])


def disturb(parameters: Iterable[Tensor], amount: float) -> None:
    """Change every gradient by `amount` of its largest entry, up or down by lot; from now on, whenever it is made."""
    lot = torch.Generator().manual_seed(2)

    def change(gradient: Tensor) -> Tensor:
        signs = torch.randint(0, 2, gradient.shape, generator=lot) * 2 - 1
        return gradient + amount * gradient.abs().max() * signs

    for parameter in parameters if amount else ():
        parameter.register_hook(change)


def in_one_process(amount: float) -> Tensor:
    """The training that most clients share out, done by one process with all images of a step at once."""
    model = network()
    return descend_alone(model, lambda chosen, step: loss_of(model, chosen), amount)


def descend_alone(
    model: nn.Module, loss_at: Callable[[Tensor, int], Tensor], amount: float, optimizer_of: OptimizerOf = momentum
) -> Tensor:
    """Train `model` in one process, with gradients that are disturbed by `amount`; returns its vector."""
    disturb(model.parameters(), amount)
    losses = steps(optimizer_of(model.parameters()), loss_at)
    return torch.cat([flat(model.parameters()), losses.double()])


def descend(model: nn.Module, loss_at: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Train a `model` that every rank has the whole of; returns its vector.

    `loss_at(chosen, step)` is this rank's loss; its mean over the ranks is the loss.
    """
    losses = steps(momentum(model.parameters()), loss_at)
    return torch.cat([flat(model.parameters()), mean(losses)])


def steps(
    optimizer: torch.optim.Optimizer, loss_at: Callable[[Tensor, int], Tensor], which: slice = slice(None)
) -> Tensor:
    """The training itself, or `which` of its steps; returns the loss of every one."""
    losses = []
    for step, chosen in list(enumerate(batches()))[which]:
        optimizer.zero_grad()
        loss = loss_at(chosen, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def flat(parameters: Iterable[Tensor]) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in parameters]).double()


def mean(losses: Tensor) -> Tensor:
    """Over the ranks; every rank adds them up for itself, in the order of ranks."""
    everybody = [torch.empty_like(losses) for _ in range(dist.get_world_size())]
    dist.all_gather(everybody, losses)
    return torch.stack(everybody).double().mean(0)


def share(chosen: Tensor) -> Tensor:
    """This rank's part of a step's images."""
    return chosen.chunk(dist.get_world_size())[dist.get_rank()]


@dataclass(frozen=True)
class Client:
    """A training that is shared out.

    Attributes:
        run: the training; returns its vector.
        alone: the same in one process, with gradients disturbed by an amount; None where there is no such thing.
        disturbed: where there is none: the training itself with gradients disturbed by an amount.
        amount: K·u.
        pairs: whether sums over ranks have two terms at the most, also where there are more ranks.
    """

    run: Callable[[], Tensor]
    alone: Callable[[float], Tensor] | None = in_one_process
    disturbed: Callable[[float], Tensor] | None = None
    amount: Callable[[], float] = lambda: LONGEST * unit()
    pairs: bool = False


def judge(clients: dict[str, Client]) -> None:
    """Run every client on superpod, then on gloo; print a line for each. Further arguments name the ones to run."""
    store, rank, world_size = next(dist.rendezvous("env://"))
    for name in sys.argv[3:] or clients:
        faulthandler.dump_traceback_later(_PATIENCE, exit=True)
        client = clients[name]
        join(PrefixStore(f"{name} ours", store), rank, world_size, "superpod")
        ours = _end_of(client.run)
        dist.destroy_process_group()
        join(PrefixStore(f"{name} gloo's", store), rank, world_size, "gloo")
        gloos = _end_of(client.run)
        if isinstance(gloos, Tensor):  # gloo's own thread must not be the last to hold its group: it would join itself
            gc.collect()
            dist.barrier()
        _print(name, _verdict(client, ours, gloos), store)
        dist.destroy_process_group()
    faulthandler.cancel_dump_traceback_later()


def join(store: dist.Store, rank: int, world_size: int, backend: str) -> None:
    """gloo cannot meet twice in one store, so every time has one of its own."""
    wait = timedelta(seconds=_PATIENCE / 2)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)


def _end_of(run: Callable[[], Tensor]) -> Tensor | str:
    """What `run` returns, or the traceback of what it raises."""
    try:
        return run()
    except Exception:
        return traceback.format_exc()


def _verdict(client: Client, ours: Tensor | str, gloos: Tensor | str) -> dict[str, Any]:
    if isinstance(ours, str) or isinstance(gloos, str):
        return {"superpod": ours if isinstance(ours, str) else "", "gloo": gloos if isinstance(gloos, str) else ""}
    n = dist.get_world_size()
    verdict = {"losses": [ours[-STEPS].item(), ours[-1].item()], "from_gloo": _gap(ours, gloos), "bound_from_gloo": 0.0}
    if client.alone is not None:
        true = client.alone(0)
        bound = _gap(client.alone(client.amount()), true)
        verdict |= {"from_alone": _gap(ours, true), "bound_from_alone": bound}
        if n > 2 and not client.pairs:
            verdict["bound_from_gloo"] = 2 * bound  # each may be that far from the truth
    elif n > 2 and client.disturbed is not None:
        verdict["bound_from_gloo"] = _gap(client.disturbed(client.amount()), gloos)
    return verdict


def _gap(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _print(name: str, verdict: dict[str, Any], store: dist.Store) -> None:
    """What the ranks have found, the worst of each figure, the texts of all. The group may be out of order by now."""
    rank, n = dist.get_rank(), dist.get_world_size()
    store.set(f"{name} {rank}", json.dumps(verdict))
    merged: dict[str, Any] = {"client": name}
    for other in range(n if rank == 0 else 0):
        for key, value in json.loads(store.get(f"{name} {other}")).items():
            if isinstance(value, str):
                merged[key] = merged.get(key, "") + (f"rank {other}: {value}\n" if value else "")
            elif isinstance(value, float):
                merged[key] = max(value, merged.get(key, value), key=lambda v: (v != v, v))
            else:
                merged[key] = value
    if rank == 0:
        print(json.dumps(merged), flush=True)
