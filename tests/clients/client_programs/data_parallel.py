"""DistributedDataParallel and what people put on it: every variant trains on superpod as on gloo and as alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import training
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.nn.functional import all_reduce
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from training import (
    STEPS,
    WIDTH,
    Client,
    begin,
    descend,
    descend_alone,
    disturb,
    flat,
    judge,
    loss_of,
    mean,
    momentum,
    network,
    share,
    steps,
)


def ddp(model: nn.Module | None = None, **options: Any) -> DistributedDataParallel:
    """Small buckets, so that the gradients travel in several."""
    return DistributedDataParallel(model or network(), bucket_cap_mb=0.01, **options)


def plain(model: DistributedDataParallel | None = None) -> Tensor:
    model = model or ddp()
    return descend(model, lambda chosen, step: loss_of(model, share(chosen)))


def accumulated() -> Tensor:
    """Two halves of a share: the first one's gradients stay where they are, the second's take them along."""
    model = ddp()

    def loss_at(chosen: Tensor, step: int) -> Tensor:
        mine = share(chosen)
        first, second = mine.chunk(2)
        with model.no_sync():
            early = loss_of(model, first) * (len(first) / len(mine))
            early.backward()
        return loss_of(model, second) * (len(second) / len(mine)) + early.detach()

    return descend(model, loss_at)


# Graphs that DDP must be told about


class Recomputed(nn.Module):
    """The network; its middle runs again in backward, in a way that DDP allows for static graphs only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[3:](checkpoint(self.layers[1:3], self.layers[0](x), use_reentrant=True))


class Experts(nn.Module):
    """Three networks, of which one is used at a time: rank by rank and step by step another."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(network() for _ in range(3))
        self.chosen = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[self.chosen](x)

    def choose(self, rank: int, step: int) -> None:
        self.chosen = (rank + step) % 3


def unused_parameters() -> Tensor:
    experts = Experts()
    model = ddp(experts, find_unused_parameters=True)

    def loss_at(chosen: Tensor, step: int) -> Tensor:
        experts.choose(dist.get_rank(), step)
        return loss_of(model, share(chosen))

    return descend(model, loss_at)


def unused_parameters_alone(amount: float) -> Tensor:
    model, n = Experts(), dist.get_world_size()

    def loss_at(chosen: Tensor, step: int) -> Tensor:
        parts = []
        for rank, part in enumerate(chosen.chunk(n)):
            model.choose(rank, step)
            parts.append(loss_of(model, part))
        return torch.stack(parts).mean()

    return descend_alone(model, loss_at, amount)


# Hooks that change what travels


def fp16() -> Tensor:
    model = ddp()
    model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return plain(model)


def power_sgd(amount: float = 0) -> Tensor:
    """Two steps as they are, the others compressed to rank 2, the error carried on.

    One bucket: the hook issues collectives in callbacks, and torch leaves open how those of two buckets are ordered.
    """
    model = DistributedDataParallel(network())
    disturb(model.parameters(), amount)
    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2)
    model.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return plain(model)


# Ranks that run out of data


def steps_of(rank: int) -> int:
    return max(1, STEPS - rank)


def uneven() -> Tensor:
    model = ddp()
    optimizer = momentum(model.parameters())
    losses = torch.zeros(STEPS)
    with model.join():
        mine = steps_of(dist.get_rank())
        losses[:mine] = steps(optimizer, lambda chosen, step: loss_of(model, share(chosen)), slice(mine))
    return torch.cat([flat(model.parameters()), mean(losses)])


def uneven_alone(amount: float) -> Tensor:
    """Who has run out counts as zero, in the sum of the gradients as in that of the losses."""
    model, n = network(), dist.get_world_size()

    def loss_at(chosen: Tensor, step: int) -> Tensor:
        parts = [loss_of(model, part) for rank, part in enumerate(chosen.chunk(n)) if step < steps_of(rank)]
        return torch.stack(parts).sum() / n

    return descend_alone(model, loss_at, amount)


# An optimizer whose state is shared out


def zero_redundancy() -> Tensor:
    model = ddp()
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.5, momentum=0.9)
    losses = steps(optimizer, lambda chosen, step: loss_of(model, share(chosen)))
    optimizer.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        states = optimizer.state_dict()["state"]
        assert len(states) == len(list(model.parameters())), "rank 0 has the state of every parameter"
    return torch.cat([flat(model.parameters()), mean(losses)])


# Normalisation over all images of a step


def buffers(amount: float = 0) -> Tensor:
    """Every rank normalises by its own share; before each step all take over rank 0's running statistics."""
    layers, norm = network(), nn.BatchNorm1d(WIDTH)
    model = ddp(nn.Sequential(layers[0], norm, *layers[1:]))
    disturb(model.parameters(), amount)
    trained = plain(model)
    moments = torch.cat([norm.running_mean, norm.running_var])
    dist.broadcast(moments, src=0)
    return torch.cat([moments.double(), trained])


class NormOverRanks(nn.Module):
    """Batch normalisation by the mean and variance of all ranks' images; autograd goes through the all-reduce."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        moments = torch.stack([x.mean(0), x.square().mean(0)])
        if self.shared:
            moments = all_reduce(moments) / dist.get_world_size()
        return (x - moments[0]) / (moments[1] - moments[0].square() + 1e-3).sqrt()


def normalised(*, shared: bool) -> nn.Sequential:
    layers = network()
    return nn.Sequential(layers[0], NormOverRanks(shared=shared), *layers[1:])


def normalised_alone(amount: float) -> Tensor:
    model = normalised(shared=False)
    return descend_alone(model, lambda chosen, step: loss_of(model, chosen), amount)


def sync_batch_norm_is_refused() -> Tensor:
    """torch.nn.SyncBatchNorm has kernels for accelerators only; torch says so on every backend."""
    layers = network()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(layers[0], nn.BatchNorm1d(WIDTH), *layers[1:]))
    refusal = ""
    try:
        plain(ddp(model))
    except ValueError as error:
        refusal = str(error)
    assert "SyncBatchNorm layers only work with GPU modules" in refusal, f"should be a client as the others: {refusal}"
    return torch.zeros(STEPS)


# Images that other processes load


def loader_workers() -> Tensor:
    """Every card has two processes that load its share of the images."""
    model = ddp()
    mine = [share(chosen).tolist() for chosen in training.batches()]
    images = TensorDataset(training.IMAGES, training.DIGITS)
    loaded = iter(DataLoader(images, batch_sampler=mine, num_workers=2))

    def loss_at(chosen: Tensor, step: int) -> Tensor:
        pixels, digits = next(loaded)
        return cross_entropy(model(pixels), digits)

    return descend(model, loss_at)


CLIENTS = {
    "ddp": Client(plain),
    "ddp_no_sync": Client(accumulated),
    "static_graph": Client(lambda: plain(ddp(Recomputed(), static_graph=True))),
    "find_unused_parameters": Client(unused_parameters, unused_parameters_alone),
    "fp16_compress_hook": Client(fp16, amount=lambda: dist.get_world_size() * 2**-11),
    "join_with_uneven_inputs": Client(uneven, uneven_alone),
    "zero_redundancy_optimizer": Client(zero_redundancy),
    "ddp_buffers": Client(buffers, None, disturbed=buffers),
    "batch_norm_over_ranks": Client(lambda: plain(ddp(normalised(shared=True))), normalised_alone),
    "sync_batch_norm_is_refused": Client(sync_batch_norm_is_refused, None),
    "data_loader_workers": Client(loader_workers),
    "power_sgd_hook": Client(power_sgd, None, disturbed=power_sgd),
}

if __name__ == "__main__":
    begin()
    judge(CLIENTS)
