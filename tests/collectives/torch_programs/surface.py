"""Every collective of torch.distributed on several dtypes, against what it must give; run by any launcher."""

import sys

import torch
import torch.distributed as dist

REDUCED = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
]
MOVED = [*REDUCED, torch.bool, torch.complex64]
COUNTS = (0, 1, 5, 1000)


def brought(rank: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Small integers that differ by rank and index: every sum of up to 8 of them is exact in every dtype."""
    return ((torch.arange(count) + 3 * rank) % 5).to(dtype)


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.dtype == wanted.dtype, (got.dtype, wanted.dtype)
    assert torch.equal(got, wanted), f"rank {dist.get_rank()}: {got} is not {wanted}"


def reductions(rank: int, n: int, count: int, dtype: torch.dtype) -> None:
    stacked = torch.stack([brought(r, count, dtype).to(torch.float64) for r in range(n)])
    for op, wanted in (
        (dist.ReduceOp.SUM, stacked.sum(0)),
        (dist.ReduceOp.MAX, stacked.amax(0)),
        (dist.ReduceOp.MIN, stacked.amin(0)),
    ):
        tensor = brought(rank, count, dtype)
        dist.all_reduce(tensor, op=op)
        same(tensor, wanted.to(dtype))
        for root in range(n):
            tensor = brought(rank, count, dtype)
            dist.reduce(tensor, root, op=op)
            same(tensor, (wanted if rank == root else brought(rank, count, dtype)).to(dtype))
    if dtype.is_floating_point:
        tensor = brought(rank, count, dtype)
        dist.all_reduce(tensor, op=dist.ReduceOp.AVG)
        same(tensor, (stacked.to(torch.float32).sum(0) / n).to(dtype) if dtype.itemsize < 8 else stacked.sum(0) / n)
    blocks = [brought(rank + q, count, dtype) for q in range(n)]
    wanted = sum(brought(r + rank, count, dtype).to(torch.float64) for r in range(n))
    out = torch.empty(count, dtype=dtype)
    dist.reduce_scatter(out, blocks)
    same(out, wanted.to(dtype))
    dist.reduce_scatter_tensor(out, torch.cat(blocks))
    same(out, wanted.to(dtype))


def moves(rank: int, n: int, count: int, dtype: torch.dtype) -> None:
    everybody = [brought(r, count, dtype) for r in range(n)]
    own = everybody[rank]
    outs = [torch.empty_like(own) for _ in range(n)]
    dist.all_gather(outs, own)
    same(torch.cat(outs), torch.cat(everybody))
    out = torch.empty(n * count, dtype=dtype)
    dist.all_gather_into_tensor(out, own)
    same(out, torch.cat(everybody))
    for root in range(n):
        tensor = own.clone()
        dist.broadcast(tensor, root)
        same(tensor, everybody[root])
        gathered = [torch.empty_like(own) for _ in range(n)] if rank == root else None
        dist.gather(own, gathered, root)
        if gathered is not None:
            same(torch.cat(gathered), torch.cat(everybody))
        tensor = torch.empty_like(own)
        dist.scatter(tensor, everybody if rank == root else None, root)
        same(tensor, own)
    outs = [torch.empty_like(own) for _ in range(n)]
    dist.all_to_all(outs, [brought(rank + q, count, dtype) for q in range(n)])
    same(torch.cat(outs), torch.cat([brought(r + rank, count, dtype) for r in range(n)]))
    out = torch.empty(n * count, dtype=dtype)
    dist.all_to_all_single(out, torch.cat([brought(rank + q, count, dtype) for q in range(n)]))
    same(out, torch.cat([brought(r + rank, count, dtype) for r in range(n)]))
    if n > 1 and count:
        left, right, tensor = (rank - 1) % n, (rank + 1) % n, torch.empty_like(own)
        requests = dist.batch_isend_irecv([dist.P2POp(dist.isend, own, right), dist.P2POp(dist.irecv, tensor, left)])
        for request in requests:
            request.wait()
        same(tensor, everybody[left])


def uneven(rank: int, n: int) -> None:
    outs = [torch.empty(r + 1) for r in range(n)]
    dist.all_gather(outs, torch.full((rank + 1,), float(rank)))
    same(torch.cat(outs), torch.cat([torch.full((r + 1,), float(r)) for r in range(n)]))
    out = torch.empty(rank + 1)
    dist.reduce_scatter(out, [torch.full((q + 1,), float(rank)) for q in range(n)])
    same(out, torch.full((rank + 1,), float(sum(range(n)))))
    sent, taken = [q + 1 for q in range(n)], [rank + 1] * n
    out = torch.empty(sum(taken))
    dist.all_to_all_single(out, torch.full((sum(sent),), float(rank)), taken, sent)
    same(out, torch.arange(n).repeat_interleave(rank + 1).float())


def the_rest(rank: int, n: int) -> None:
    objects = [None] * n
    dist.all_gather_object(objects, {"rank": rank})
    assert objects == [{"rank": r} for r in range(n)]
    shared = ["word", 3] if rank == 0 else [None, None]
    dist.broadcast_object_list(shared, 0)
    assert shared == ["word", 3]
    strided = torch.arange(12.0).reshape(3, 4).t()
    dist.all_reduce(strided)
    same(strided, n * torch.arange(12.0).reshape(3, 4).t())
    works = [dist.all_reduce(torch.full((3,), float(i)), async_op=True) for i in range(20)]
    futures = [work.get_future() for work in works]
    for i, (work, future) in enumerate(zip(works, futures, strict=True)):
        work.wait()
        assert work.is_completed()
        same(future.wait()[0], torch.full((3,), float(i * n)))
    evens, all_of_them = dist.new_group(range(0, n, 2)), dist.new_group()
    ones = torch.ones(4)
    dist.all_reduce(ones, group=all_of_them)
    same(ones, torch.full((4,), float(n)))
    if rank % 2 == 0:
        ones = torch.ones(4)
        dist.all_reduce(ones, group=evens)
        same(ones, torch.full((4,), float(len(range(0, n, 2)))))
    dist.barrier()


def main() -> None:
    """With an init method as argument the ranks meet there; a second time, too, after the first group has gone."""
    how = {"init_method": sys.argv[1]} if len(sys.argv) > 1 else {}
    if len(sys.argv) > 1 and sys.argv[1].startswith("file:"):
        import os

        how |= {"rank": int(os.environ["RANK"]), "world_size": int(os.environ["WORLD_SIZE"])}
    for _ in range(2):
        dist.init_process_group("superpod", **how)
        rank, n = dist.get_rank(), dist.get_world_size()
        for count in COUNTS:
            for dtype in REDUCED:
                reductions(rank, n, count, dtype)
            for dtype in MOVED:
                moves(rank, n, count, dtype)
        uneven(rank, n)
        the_rest(rank, n)
        dist.destroy_process_group()
    print("all as it should be")


if __name__ == "__main__":
    main()
