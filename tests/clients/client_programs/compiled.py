"""A step of DDP under torch.compile: graphs that are captured ahead of time, and machine code made of them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from training import Client, begin, descend, judge, loss_of, network, share


def compiled(backend: str) -> Tensor:
    torch._dynamo.reset()
    model = torch.compile(DistributedDataParallel(network()), backend=backend)
    return descend(model, lambda chosen, step: loss_of(model, share(chosen)))


CLIENTS = {
    "compiled_ahead_of_time": Client(partial(compiled, "aot_eager")),
    "compiled_to_machine_code": Client(partial(compiled, "inductor")),
}

if __name__ == "__main__":
    begin()
    judge(CLIENTS)
