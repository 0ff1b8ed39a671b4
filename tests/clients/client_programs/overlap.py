"""DDP's buckets travel while backward still computes: otherwise this program would not come to its end.

Before its last layer, backward stops until all buckets that have set out are home. Were they carried only by somebody
who waits for them after backward, none would ever arrive. Rank 0 prints a line of JSON for every step but the first:
when each bucket set out and came home, when the last layer's turn came, and when backward ended, all in seconds after
its start.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training import batches, begin, loss_of, momentum, network, share

PATIENCE = 20.0  # seconds for buckets that are under way


class Profile:
    """One backward pass."""

    def __init__(self, *, gate: bool) -> None:
        self.start = time.monotonic()
        self.set_out: list[float] = []
        self.home: list[float | None] = []
        self.arrived: list[threading.Event] = []
        self.gate, self.last_layer = gate, 0.0

    def now(self) -> float:
        return time.monotonic() - self.start

    def reduce(self, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        """What DDP does with a bucket, with a look at the clock."""
        index, arrived = len(self.set_out), threading.Event()
        self.set_out.append(self.now())
        self.home.append(None)
        self.arrived.append(arrived)
        future = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True).get_future()

        def came_home(done: torch.futures.Future[Any]) -> Tensor:
            self.home[index] = self.now()
            arrived.set()
            return done.value()[0]

        return future.then(came_home)

    def before_last_layer(self) -> None:
        assert self.arrived or not self.gate, "some bucket has set out by now"
        for index, arrived in enumerate(self.arrived):
            assert arrived.wait(PATIENCE), f"bucket {index} did not come home in {PATIENCE:g} s while backward computed"
        self.last_layer = self.now()


class Gate(torch.autograd.Function):
    """Nothing forth; back, the place where backward stops."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, profile: Profile) -> Tensor:
        ctx.profile = profile
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.profile.before_last_layer()
        return gradient, None


class Gated(nn.Module):
    """The network, with the gate behind its first layer: the one that backward comes to last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.profile = Profile(gate=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1:](Gate.apply(self.layers[0](x), self.profile))


def main() -> None:
    dist.init_process_group("superpod")
    gated = Gated()
    model = DistributedDataParallel(gated, bucket_cap_mb=0.01)
    model.register_comm_hook(None, lambda _, bucket: gated.profile.reduce(bucket))
    optimizer = momentum(model.parameters())
    for step, chosen in enumerate(batches()[:4]):
        optimizer.zero_grad()
        gated.profile = profile = Profile(gate=step > 0)  # in the first step DDP has one bucket only
        loss = loss_of(model, share(chosen))
        profile.start = time.monotonic()
        loss.backward()
        end = profile.now()
        optimizer.step()
        if dist.get_rank() == 0 and profile.gate:
            times = {"set_out": profile.set_out, "home": profile.home, "last_layer": profile.last_layer, "end": end}
            print(json.dumps(times), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    begin()
    main()
