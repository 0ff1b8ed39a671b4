"""What a card keeps for itself of the memory that it shares with its zygote, and what the zygote does for that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

N = 16
PRIVATE = """
def private():
    with open("/proc/self/smaps_rollup") as lines:
        fields = dict(line.split()[:2] for line in lines)
    return (int(fields["Private_Clean:"]) + int(fields["Private_Dirty:"])) / 1024
"""
NUMPY = """
import numpy as np
import superpod
with superpod.init() as comm:
    comm.all_reduce(np.ones(4, np.float32))
    comm.barrier()
    print(private())
    comm.barrier()
"""
TORCH = """
import torch
import torch.distributed as dist
dist.init_process_group("superpod")
dist.all_reduce(torch.ones(4))
dist.barrier()
print(private())
dist.barrier()
dist.destroy_process_group()
"""
GAPS = """
import sys
import superpod.collectives.communicator
from superpod.launcher import zygote_memory
zygote_memory.settle()
taken = sum(map(sys.getsizeof, zygote_memory._filling))
pools = []
for size in range(16, 513, 16):
    blocks = [zygote_memory._object_of(size) for _ in range(16)]
    assert {sys.getsizeof(block) for block in blocks} == {size}
    pools.append(len({id(block) >> 14 for block in blocks}))
print(taken, max(pools), len(pools))
"""


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="what Python writes to differs from version to version")
@pytest.mark.parametrize(("program", "most"), [(NUMPY, 7.2), (TORCH, 8.8)], ids=["numpy", "torch"])
def test_a_card_needs_little_memory_of_its_own(launch, program, most):
    """MiB after a first all_reduce; 6.1 and 7.4 on the machine of benchmarks/LOG.md, 7.3 and 9.8 before."""
    done = launch("-n", N, launch.script("card.py", PRIVATE + program))
    assert done.code == 0, done.err
    found = sorted(float(line.split()[-1]) for line in done.out.splitlines())
    assert len(found) == N
    assert found[-1] <= most, found


def gaps(**variables):
    """(bytes that were taken, most pools that 16 new objects of a size lie in, sizes)"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


def test_new_objects_lie_side_by_side():
    taken, pools, sizes = gaps()
    assert (pools <= 3, sizes) == (True, 32), pools
    assert taken < 4 << 20


def test_another_allocator_is_asked_for_so_much_and_no_more():
    taken, *_ = gaps(PYTHONMALLOC="malloc")
    assert taken <= (4 << 20) + 512
