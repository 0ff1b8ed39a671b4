"""Layers shared out among ranks: each holds a stage, and small batches go through them one after the other."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
import training
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.nn.functional import cross_entropy
from training import Client, batches, begin, flat, judge, momentum, network

MICRO = 8  # batches that a step's images are cut into


def stage(index: int, count: int) -> PipelineStage:
    """The `index`-th of `count` parts of the network, which may be empty: then it hands on what it is given."""
    layers = list(network())
    cuts = [i * len(layers) // count for i in range(count + 1)]
    return PipelineStage(nn.Sequential(*layers[cuts[index] : cuts[index + 1]]), index, count, torch.device("cpu"))


def train(schedule_of: type, per_rank: int = 1) -> Tensor:
    """Every rank has `per_rank` stages; the images go round as often."""
    rank, n = dist.get_rank(), dist.get_world_size()
    stages = [stage(rank + n * i, n * per_rank) for i in range(per_rank)]
    schedule = schedule_of(stages if per_rank > 1 else stages[0], MICRO, loss_fn=cross_entropy)
    parameters = [p for s in stages for p in s.submod.parameters()]
    optimizer = momentum(parameters) if parameters else None
    curve = []
    for chosen in batches():
        losses: list[Tensor] = []
        images = (training.IMAGES[chosen],) if rank == 0 else ()
        target = training.DIGITS[chosen] if rank == n - 1 else None
        if optimizer:
            optimizer.zero_grad()
        schedule.step(*images, target=target, losses=losses)
        if optimizer:
            optimizer.step()
        curve.append(torch.stack(losses).detach().mean() if losses else torch.zeros(()))
    return whole([list(s.submod.parameters()) for s in stages], torch.stack(curve))


def whole(stages: list[list[Tensor]], curve: Tensor) -> Tensor:
    """The vector: all parameters in the order of the stages, and the losses, which the last rank knows."""
    everybody: list[list[Tensor]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everybody, [flat(s) if s else torch.empty(0) for s in stages])
    dist.broadcast(curve, src=dist.get_world_size() - 1)
    return torch.cat([part for level in zip(*everybody, strict=True) for part in level] + [curve.double()])


CLIENTS = {
    "gpipe": Client(partial(train, ScheduleGPipe), pairs=True),
    "1f1b": Client(partial(train, Schedule1F1B), pairs=True),
    "interleaved_1f1b": Client(partial(train, ScheduleInterleaved1F1B, 2), pairs=True),
}

if __name__ == "__main__":
    begin()
    judge(CLIENTS)
