"""Parameters shared out among ranks: FSDP2, HSDP, tensor and sequence parallel, and both at once; DTensor itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import training
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.functional import log_softmax, one_hot
from torch.nn.utils import clip_grad_norm_
from training import (
    Client,
    OptimizerOf,
    begin,
    descend_alone,
    flat,
    judge,
    loss_of,
    mean,
    momentum,
    network,
    share,
    steps,
)

NORM = 0.3  # of gradients that are clipped; in the first steps they are longer
HALF_ROUNDINGS = 14  # to bfloat16: 3 matrices, 3 products, 2 tanh forth; the loss's gradient, 2 tanh, 3 products back
ALL, NONE = Replicate(), Partial()


def line(name: str = "dp") -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=(name,))


def rectangle(*names: str) -> DeviceMesh:
    """Half the ranks times two."""
    return init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=names)


def train(model: nn.Module, part: Callable[[Tensor], Tensor], optimizer_of: OptimizerOf = momentum) -> Tensor:
    """Steps on this rank's part of the images; returns the vector, which every rank gets whole."""
    losses = steps(optimizer_of(model.parameters()), lambda chosen, step: loss_of(model, part(chosen)))
    return torch.cat([flat(p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()), mean(losses)])


def every(chosen: Tensor) -> Tensor:
    return chosen


# Data parallel with shared-out parameters


def sharded(model: nn.Module, mesh: DeviceMesh, **options: Any) -> nn.Module:
    """FSDP2 on every layer that has parameters, and on the whole."""
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def fsdp(**options: Any) -> Tensor:
    return train(sharded(network(), line(), **options), share)


def clipping(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """For gradients no longer than NORM; of those that are shared out, nobody knows the length alone."""
    held = list(parameters)
    optimizer = momentum(held)
    optimizer.register_step_pre_hook(lambda *_: clip_grad_norm_(held, NORM) and None)
    return optimizer


def clipped_alone(amount: float) -> Tensor:
    model = network()
    return descend_alone(model, lambda chosen, step: loss_of(model, chosen), amount, clipping)


def half_precision() -> Tensor:
    """Computed in bfloat16; added up over the ranks, and kept, in the wider dtype."""
    wide = torch.get_default_dtype()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=wide)
    model = network()
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=line(), mp_policy=policy)
    fully_shard(model, mesh=line(), mp_policy=replace(policy, output_dtype=wide))
    return train(model, share)


def hsdp() -> Tensor:
    return train(sharded(network(), rectangle("replicate", "shard")), share)


# Tensor parallel

PLAN = {"0": ColwiseParallel(), "2": RowwiseParallel(), "4": ColwiseParallel(output_layouts=ALL)}


def tensor_parallel() -> Tensor:
    return train(parallelize_module(network(), line("tp"), PLAN), every)


def two_dimensions() -> Tensor:
    """Tensor parallel within pairs of ranks, FSDP2 across them."""
    mesh = rectangle("dp", "tp")
    model = sharded(parallelize_module(network(), mesh["tp"], PLAN), mesh["dp"])
    return train(model, lambda chosen: chosen.chunk(mesh["dp"].size())[mesh["dp"].get_local_rank()])


slowly = partial(momentum, lr=0.05)


class Rows(nn.Module):
    """Reads an image as a sequence of eight rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.norm, self.leave = nn.Linear(8, 24), nn.LayerNorm(24), nn.Identity()
        self.up, self.down, self.score = nn.Linear(24, 48), nn.Linear(48, 24), nn.Linear(8 * 24, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.enter(images.unflatten(1, (8, 8)))
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return self.score(self.leave(x).flatten(1))


def sequence_parallel() -> Tensor:
    """Between the matrices every rank has some rows of pixels of all images."""
    rows = Shard(1)
    plan = {
        "enter": ColwiseParallel(output_layouts=rows),
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=rows),
        "down": RowwiseParallel(output_layouts=rows),
        "leave": PrepareModuleInput(input_layouts=rows, desired_input_layouts=ALL, use_local_output=True),
    }
    return train(parallelize_module(Rows(), line("tp"), plan), every, slowly)


def sequence_parallel_alone(amount: float) -> Tensor:
    model = Rows()
    return descend_alone(model, lambda chosen, step: loss_of(model, chosen), amount, slowly)


# DTensor


def matrices() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(64, 30) / 8, torch.randn(30, 10) / 8


def redistributed_training() -> Tensor:
    """Two matrices, and every redistribution that communicates, forth and back through autograd."""
    mesh = line()
    first, second = matrices()
    first = nn.Parameter(distribute_tensor(first, mesh, [Shard(1)]))
    second = nn.Parameter(distribute_tensor(second, mesh, [Shard(0)]))

    def loss_at(chosen: Tensor, step: int) -> Tensor:
        x = distribute_tensor(training.IMAGES[chosen], mesh, [Shard(0)])
        hidden = torch.tanh(x.redistribute(placements=[ALL]) @ first)  # all_gather; the result: shards of columns
        scores = (hidden @ second).redistribute(placements=[Shard(0)])  # reduce_scatter
        scores = scores.redistribute(placements=[Shard(1)]).redistribute(placements=[Shard(0)])  # all_to_all, twice
        wanted = distribute_tensor(one_hot(training.DIGITS[chosen], 10), mesh, [Shard(0)])
        return -(log_softmax(scores, 1) * wanted).sum().redistribute(placements=[ALL]).to_local() / len(chosen)

    losses = steps(momentum([first, second]), loss_at)
    return torch.cat([flat([first.full_tensor(), second.full_tensor()]), mean(losses)])


def redistributed_training_alone(amount: float) -> Tensor:
    model = nn.ParameterList(matrices())

    def loss_at(chosen: Tensor, step: int) -> Tensor:
        scores = torch.tanh(training.IMAGES[chosen] @ model[0]) @ model[1]
        return -(log_softmax(scores, 1) * one_hot(training.DIGITS[chosen], 10)).sum() / len(chosen)

    return descend_alone(model, loss_at, amount)


def redistributed_everyhow() -> Tensor:
    """From every placement to every other, also in uneven shards; whole numbers, so that no bit may differ."""
    mesh, n = line(), dist.get_world_size()
    whole = torch.arange(35.0).reshape(7, 5)
    results = []
    for before, after in itertools.product([Shard(0), Shard(1), ALL, NONE], [Shard(0), Shard(1), ALL]):
        if before == NONE:
            start = DTensor.from_local(whole * (dist.get_rank() + 1), mesh, [NONE])
        else:
            start = distribute_tensor(whole * sum(range(n + 1)), mesh, [before])
        results.append(start.redistribute(placements=[after]).full_tensor())
    return flat(results)


def redistributed_everyhow_alone(amount: float) -> Tensor:
    n = dist.get_world_size()
    return torch.arange(35.0).repeat(4 * 3).double() * sum(range(n + 1))


CLIENTS = {
    "fsdp2": Client(fsdp),
    "fsdp2_keeping_gathered_parameters": Client(lambda: fsdp(reshard_after_forward=False)),
    "fsdp2_clipping_gradients": Client(lambda: train(sharded(network(), line()), share, clipping), clipped_alone),
    "fsdp2_in_bfloat16": Client(half_precision, amount=lambda: HALF_ROUNDINGS * 2**-9),
    "hsdp": Client(hsdp, pairs=True),
    "tensor_parallel": Client(tensor_parallel),
    "fsdp2_and_tensor_parallel": Client(two_dimensions, pairs=True),
    "sequence_parallel": Client(sequence_parallel, sequence_parallel_alone),
    "dtensor_redistributions": Client(redistributed_everyhow, redistributed_everyhow_alone, pairs=True),
    "dtensor_training": Client(redistributed_training, redistributed_training_alone),
}

if __name__ == "__main__":
    begin()
    judge(CLIENTS)
