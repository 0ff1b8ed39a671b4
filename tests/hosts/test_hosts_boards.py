"""What meets on boards within hosts has the same bits as what goes in messages."""

from __future__ import annotations

import pytest

BITS = """
import hashlib
import numpy as np
import superpod

comm = superpod.init()
random, digest = np.random.default_rng(comm.rank), hashlib.sha256()
for algorithm in ("leaders", "rails"):
    for dtype in (np.float32, np.float64, np.complex64, np.int16):
        for count in (0, 1, 7, 1000, 400_001):
            data = (random.standard_normal(count) * 10.0 ** random.integers(0, 4, count)).astype(dtype)
            comm.all_reduce(data, algorithm=algorithm)
            digest.update(data.tobytes())
for root in range(comm.world_size):
    for count in (0, 1, 300_001):
        data = random.standard_normal(count)
        comm.broadcast(data, root=root)
        digest.update(data.tobytes())
for dtype in (np.float32, np.complex64, np.int16):
    for count in (0, 1, 1000, 700_001):
        data = (random.standard_normal(count) * 10.0 ** random.integers(0, 4, count)).astype(dtype)
        for root in range(comm.world_size):
            given = data.copy()
            total = comm.reduce(given, root=root, op="product", algorithm="leaders")
            digest.update(b"" if total is None else total.tobytes())
            assert comm.rank == root or given.tobytes() == data.tobytes()
        digest.update(comm.all_gather(data, algorithm="rails").tobytes())
        blocks = np.concatenate([data + rank for rank in range(comm.world_size)])
        before = blocks.tobytes()
        digest.update(comm.reduce_scatter(blocks, op="product", algorithm="rails").tobytes())
        assert blocks.tobytes() == before
for length in (0, 1, 1000, 300_001):
    data = random.standard_normal((comm.world_size, length))
    got = {name: comm.all_to_all(data, algorithm=name) for name in ("rails", "pairwise")}
    assert (got["rails"] == got["pairwise"]).all()
for _ in range(20):
    comm.barrier()
for count in (3, 300_001):  # again and again, which goes a shorter way
    for turn in range(4):
        data = np.arange(count * comm.world_size, dtype=np.float64) % 1000 * (comm.rank + turn)
        summed, swapped = comm.all_reduce(data.copy()), comm.all_to_all(data.reshape(comm.world_size, count))
        total = sum(rank + turn for rank in range(comm.world_size))
        assert (summed == np.arange(data.size) % 1000 * total).all()
        row = np.arange(comm.rank * count, (comm.rank + 1) * count) % 1000
        assert (swapped == np.outer(np.arange(comm.world_size) + turn, row)).all()
        digest.update(comm.broadcast(random.standard_normal(count), root=turn % comm.world_size).tobytes())
        for dtype in (np.float32, np.float64, np.complex64):
            digest.update(comm.all_reduce(random.standard_normal(count % 10_007).astype(dtype)).tobytes())
half = [comm.group(range(first, comm.world_size, 2)) for first in (0, 1)][comm.rank % 2]
data = np.arange(5.0) * comm.rank
half.all_reduce(data)
expected = sum(rank for rank in range(comm.world_size) if rank % 2 == comm.rank % 2)
assert (data == np.arange(5.0) * expected).all()
kind = comm._engine._table
print("board" if kind is not None else "messages", digest.hexdigest())
comm.close()
"""


@pytest.mark.parametrize("where", ["a:3,b:3", "a:1,b:4,c:2"])
def test_the_same_bits_on_boards_and_in_messages(cluster, where):
    script = cluster.script("bits.py", BITS)
    said = {}
    for link in ("zmq", "shm"):
        job = cluster("--hosts", where, "-x", f"SUPERPOD_LINK={link}", script)
        assert job.code == 0, job.err
        said[link] = sorted(line.split() for line in job.lines)
    assert {way for _, way, _ in said["zmq"]} == {"messages"}
    assert said["shm"] == [[card, "board", bits] for card, _, bits in said["zmq"]]
