"""The same training on two backends, bit by bit comparable: prints how far the parameters are from gloo's."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def train(group: dist.ProcessGroup | None) -> torch.Tensor:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.Tanh(), torch.nn.Linear(50, 3))
    parallel = DistributedDataParallel(model, process_group=group, bucket_cap_mb=0.002)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(10):
        optimizer.zero_grad()
        parallel(torch.randn(8, 20, generator=generator)).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


dist.init_process_group("superpod")
gap = (train(None) - train(dist.new_group(backend="gloo"))).abs().max()
dist.all_reduce(gap, op=dist.ReduceOp.MAX)
assert gap < 1e-6, gap
print("all as it should be")
dist.destroy_process_group()
