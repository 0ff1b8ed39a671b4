"""An error reaches the future of an asynchronous call, and `wait`, on the rank that disagrees and on the others."""

import torch
import torch.distributed as dist

from superpod import CollectiveMismatch

dist.init_process_group("superpod")
work = dist.all_reduce(torch.ones(10 + dist.get_rank() % 2), async_op=True)
future = work.get_future()
try:
    future.wait()
except RuntimeError as error:
    assert "CollectiveMismatch" in str(error), error
else:
    raise AssertionError("the future has no error")
try:
    work.wait()
except CollectiveMismatch as error:
    assert "all_reduce(10 × float32, sum)" in str(error), error
    assert "all_reduce(11 × float32, sum)" in str(error), error
else:
    raise AssertionError("the work has no error")
print("all as it should be", flush=True)
