"""Train a network on 1,797 real images of handwritten digits, on any number of cards.

    superpod-run -n 64 examples/train_digits.py      64 cards on this machine
    torchrun --nproc-per-node 8 examples/train_digits.py --backend gloo
    python examples/train_digits.py                  one card, no launcher

Every card holds the whole network and sees its share of each batch; DistributedDataParallel averages the gradients
through the mesh. The global batch is the same however many cards there are, so the loss curve is the same too.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel


def join_job(backend: str) -> None:
    """Become one card of the launcher's job; without a launcher, of a job with this card only."""
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def load_images() -> tuple[Tensor, Tensor]:
    """All images, 64 pixels from 0 to 1, and their digits. Rank 0 reads them, the mesh takes them to the others."""
    images, digits = torch.empty(1797, 64), torch.empty(1797, dtype=torch.long)
    if dist.get_rank() == 0:
        from sklearn.datasets import load_digits  # takes a second to import: once, not on every card

        pixels, labels = load_digits(return_X_y=True)
        images[:], digits[:] = torch.from_numpy(pixels / 16), torch.from_numpy(labels)
    dist.broadcast(images, src=0)
    dist.broadcast(digits, src=0)
    return images, digits


def train(model: nn.Module, images: Tensor, digits: Tensor, *, epochs: int, batch: int) -> list[float]:
    """Train `model` in place; returns the loss of every step, the mean over the global batch."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.2, momentum=0.9)
    curve: list[float] = []
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(images)).split(batch):  # the same order on every card: they share the seed
            mine = chosen.tensor_split(world_size)[rank]  # shares differ by one image, or are empty
            loss = cross_entropy(ddp(images[mine]), digits[mine], reduction="sum") / len(chosen)
            optimizer.zero_grad()
            (loss * world_size).backward()  # DDP divides the sum of the gradients by world_size: undo that
            optimizer.step()
            losses.append(loss.detach())
        total = torch.stack(losses)  # this card's part of every step's loss; the sum over the cards is the whole
        dist.all_reduce(total)
        curve += total.tolist()
        if rank == 0 and (epoch + 1) % 5 == 0:
            print(f"epoch {epoch + 1:3}  loss {total.mean():.4f}", flush=True)
    return curve


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="superpod", help="superpod (default), or another such as gloo")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the images (default 30)")
    parser.add_argument("--batch", type=int, default=512, help="images in a step, all cards together (default 512)")
    parser.add_argument("--require", type=float, default=0.95, help="fail below this accuracy (default 0.95)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the losses and the accuracy there")
    args = parser.parse_args()

    join_job(args.backend)
    torch.set_num_threads(1)  # a card is one core, and the layers are too small to share
    torch.manual_seed(0)
    images, digits = load_images()
    shuffled = torch.randperm(len(images))
    held_out, seen = shuffled.tensor_split([len(images) // 5])

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    curve = train(model, images[seen], digits[seen], epochs=args.epochs, batch=args.batch)
    accuracy = (model(images[held_out]).argmax(dim=1) == digits[held_out]).float().mean().item()

    rank, world_size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    if rank > 0:  # rank 0 speaks for all: they hold the same network
        return 0
    print(f"{world_size} cards: {accuracy:.1%} of {len(held_out)} held-out images right")
    if args.json:
        args.json.write_text(json.dumps({"world_size": world_size, "accuracy": accuracy, "losses": curve}) + "\n")
    if accuracy < args.require:
        print(f"accuracy {accuracy:.4f} is below --require {args.require}: train longer with --epochs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
