"""A training that stops half-way, is saved by so many ranks, and goes on with another number of them.

Further arguments: the folder of the checkpoints, and the names of clients.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from training import STEPS, Client, begin, flat, judge, loss_of, mean, momentum, network, share, steps

FOLDER = Path(sys.argv.pop(3))
HALF = STEPS // 2


def sharded() -> tuple[nn.Module, torch.optim.Optimizer]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = network()
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, momentum(model.parameters())


def whole(model: nn.Module) -> Tensor:
    return flat(p.full_tensor() for p in model.parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, which: slice) -> Tensor:
    return mean(steps(optimizer, lambda chosen, step: loss_of(model, share(chosen)), which))


def save(*, background: bool = False) -> Tensor:
    """Half of the training, the checkpoint, and the other half; with `background` while the checkpoint is written."""
    folder = folder_of(dist.get_backend(), background)
    model, optimizer = sharded()
    losses = train(model, optimizer, slice(HALF))
    parameters, state = get_state_dict(model, optimizer)
    everything = {"parameters": parameters, "state": state, "losses": losses}
    saved = whole(model)
    gathered = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if background:
        written = dcp.async_save(everything, checkpoint_id=folder, process_group=dist.new_group())
    else:
        dcp.save(everything, checkpoint_id=folder)
    losses = torch.cat([losses, train(model, optimizer, slice(HALF, None))])
    if background:
        written.result()
    if dist.get_rank() == 0:
        torch.save({"saved": saved, "gathered": gathered, "losses": losses[:HALF]}, folder.with_suffix(".whole"))
    return torch.cat([whole(model), losses])


def load(*, background: bool = False) -> Tensor:
    """What was saved on superpod, to the bit, and the other half."""
    folder = folder_of("superpod", background)
    model, optimizer = sharded()
    parameters, state = get_state_dict(model, optimizer)
    losses = torch.zeros(HALF, dtype=torch.double)
    dcp.load({"parameters": parameters, "state": state, "losses": losses}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=parameters, optim_state_dict=state)
    saved = torch.load(folder.with_suffix(".whole"))["saved"]
    return second_half(model, optimizer, saved, losses)


def load_by_rank_0() -> Tensor:
    """The parameters as rank 0 had gathered them and alone reads them: every rank gets its shard of them."""
    model, optimizer = sharded()
    file = torch.load(folder_of("superpod", False).with_suffix(".whole"))
    parameters, state = file["gathered"]
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, parameters if dist.get_rank() == 0 else {}, options=options)
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
    return second_half(model, optimizer, file["saved"], file["losses"])


def second_half(model: nn.Module, optimizer: torch.optim.Optimizer, saved: Tensor, losses: Tensor) -> Tensor:
    assert torch.equal(whole(model), saved), "the parameters are those saved"
    losses = torch.cat([losses, train(model, optimizer, slice(HALF, None))])
    return torch.cat([whole(model), losses])


def folder_of(backend: str, background: bool) -> Path:
    return FOLDER / f"{backend}{'-in-background' if background else ''}"


CLIENTS = {
    "save": Client(save),
    "save_in_background": Client(partial(save, background=True)),
    "load": Client(load),
    "load_from_background": Client(partial(load, background=True)),
    "load_by_rank_0": Client(load_by_rank_0),
}

if __name__ == "__main__":
    begin()
    judge(CLIENTS)
