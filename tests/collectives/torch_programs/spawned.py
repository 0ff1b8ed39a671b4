"""Ranks that torch.multiprocessing starts, which meet in a file."""

import sys

import torch
import torch.distributed as dist
import torch.multiprocessing


def card(rank: int, world_size: int, path: str) -> None:
    dist.init_process_group("superpod", init_method=f"file://{path}", rank=rank, world_size=world_size)
    tensor = torch.arange(10.0) + rank
    dist.all_reduce(tensor)
    assert torch.equal(tensor, world_size * torch.arange(10.0) + sum(range(world_size)))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(card, (2, sys.argv[1]), 2)
    print("all as it should be")
