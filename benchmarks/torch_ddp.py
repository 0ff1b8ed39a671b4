"""What every card of superpod-bench ddp runs: DDP and FSDP2 on a backend of torch.distributed."""

from __future__ import annotations

import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from superpod.benchmarks.player import Order, play
from superpod.benchmarks.torch_player import begin

_WINDOWS, _LETTERS, _ALPHABET = 64, 64, 96  # of tiny_gpt, as in the example
_BATCH, _WIDTH, _CLASSES = 32, 64, 20  # of the small network, on each card


class DdpTurns:
    """Steps of a model of one's own on one group."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._last = ""
        self._model: nn.Module
        self._step: Callable[[], None]

    def turn(self, order: Order) -> tuple[float, int]:
        """Steps that follow one another, after a few to warm up; wrong are parameters unlike rank 0's."""
        if order["model"] != self._last:
            self._last = order["model"]
            self._model, self._step = prepared(order["model"], order["file"], self._group)
        for _ in range(order["warmup"]):
            self._step()
        dist.barrier(self._group)
        start = time.perf_counter()
        for _ in range(order["calls"]):
            self._step()
        seconds = (time.perf_counter() - start) / order["calls"]
        own = torch.cat([_whole(p.detach()).reshape(-1) for p in self._model.parameters()])
        dist.broadcast(first := own.clone(), 0, self._group)
        return seconds, int((own.view(torch.int32) != first.view(torch.int32)).sum())


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def prepared(name: str, file: str, group: Any) -> tuple[nn.Module, Callable[[], None]]:
    """A model of that name on `group`, and one step of training it on this rank's data."""
    torch.manual_seed(0)
    model = small() if name == "small" else tiny_gpt(Path(file))
    torch.manual_seed(1 + dist.get_rank())
    inputs, targets = _data(name)
    spread = sharded(model, group) if name.endswith("fsdp2") else DistributedDataParallel(model, process_group=group)
    optimizer = torch.optim.SGD(spread.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        scores = spread(inputs)
        loss: Any = cross_entropy(scores.flatten(0, -2), targets.flatten())
        loss.backward()
        optimizer.step()

    return spread, step


def small() -> nn.Module:
    """87,572 parameters: 350 KB of gradients."""
    hidden = 256
    layers = (nn.Linear(_WIDTH, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, _CLASSES))
    return nn.Sequential(*layers)


def tiny_gpt(file: Path) -> nn.Module:
    """The network of the example in `file`, which has `TinyGPT(alphabet, context)`."""
    spec = importlib.util.spec_from_file_location("tiny_gpt", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.TinyGPT(_ALPHABET, _LETTERS)
    return model


def sharded(model: nn.Module, group: Any) -> nn.Module:
    """Every rank keeps its part of each block's parameters, and of the rest's."""
    mesh = DeviceMesh.from_group(group, "cpu")
    for block in model.get_submodule("blocks").children():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _data(name: str) -> tuple[Tensor, Tensor]:
    if name == "small":
        return torch.randn(_BATCH, _WIDTH), torch.randint(_CLASSES, (_BATCH,))
    windows = torch.randint(_ALPHABET, (max(1, _WINDOWS // dist.get_world_size()), _LETTERS + 1))
    return windows[:, :-1], windows[:, 1:]


def main(argv: list[str]) -> None:
    torch.set_num_threads(1)  # a card is one core
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # that scores are a view, which nobody writes to
    name, group = begin(argv[1])
    play(argv[0], dist.get_rank(), {name: DdpTurns(group)})
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
