"""An error reaches the future of an asynchronous call, and `wait`, on the rank that disagrees and on the other one."""

import pytest
import torch
import torch.distributed as dist

from superpod import CollectiveMismatch

dist.init_process_group("superpod")
work = dist.all_reduce(torch.ones(10 + dist.get_rank() % 2), async_op=True)
future = work.get_future()
with pytest.raises(RuntimeError, match="CollectiveMismatch"):
    future.wait()
with pytest.raises(CollectiveMismatch, match=r"all_reduce\(10 × float32, sum\).*all_reduce\(11 × float32, sum\)"):
    work.wait()
print("all as it should be", flush=True)
