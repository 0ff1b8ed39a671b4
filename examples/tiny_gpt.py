"""Train a small GPT, letter by letter, on superpod's own documentation.

    superpod-run -n 8 examples/tiny_gpt.py           8 cards on this machine
    torchrun --nproc-per-node 2 examples/tiny_gpt.py --backend gloo
    python examples/tiny_gpt.py                      one card, no launcher

The loss is in nats per letter: about 4.7 (the logarithm of the alphabet's size) for a network that knows nothing, about
3.2 for one that knows how often each letter occurs. Below 2.4 it has learned which letters follow which.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.nn.parallel import DistributedDataParallel

ROOT = Path(__file__).resolve().parent.parent


class Block(nn.Module):
    """Attention to the letters before, then a small network on each letter."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:  # (batch, letters, width)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.merge(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.think(self.norm2(x))


class TinyGPT(nn.Module):
    """From the letters so far to a score for every letter that may come next."""

    def __init__(self, alphabet: int, context: int, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(alphabet, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, alphabet)

    def forward(self, letters: Tensor) -> Tensor:  # (batch, letters) → (batch, letters, alphabet)
        x = self.letter(letters) + self.place.weight[: letters.shape[1]]
        return self.score(self.norm(self.blocks(x)))


def join_job(backend: str) -> None:
    """Become one card of the launcher's job; without a launcher, of a job with this card only."""
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def train(model: nn.Module, text: Tensor, *, context: int, steps: int, batch: int) -> list[float]:
    """Train `model` in place on windows of `text`; returns the loss of every step, the mean over the global batch."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=4e-3)
    curve: list[float] = []
    for step in range(steps):
        starts = torch.randint(len(text) - context, (batch, 1))  # the same on every card: they share the seed
        mine = text[starts.tensor_split(world_size)[rank] + torch.arange(context + 1)]
        scores = ddp(mine[:, :-1])
        loss = cross_entropy(scores.flatten(0, 1), mine[:, 1:].flatten(), reduction="sum") / (batch * context)
        optimizer.zero_grad()
        (loss * world_size).backward()  # DDP divides the sum of the gradients by world_size: undo that
        optimizer.step()
        total = loss.detach()
        dist.all_reduce(total)  # each card has its part of the loss; their sum is the whole
        curve.append(total.item())
        if rank == 0 and (step + 1) % 50 == 0:
            print(f"step {step + 1:4}  loss {total:.3f}", flush=True)
    return curve


@torch.no_grad()
def write(model: nn.Module, prompt: Tensor, context: int, length: int) -> Tensor:
    """`prompt` and `length` more letters, each drawn as the model expects it."""
    text = prompt
    for _ in range(length):
        odds = model(text[None, -context:])[0, -1].softmax(dim=0)
        text = torch.cat([text, torch.multinomial(odds, 1)])
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="superpod", help="superpod (default), or another such as gloo")
    parser.add_argument("--steps", type=int, default=300, help="steps of training (default 300)")
    parser.add_argument("--batch", type=int, default=64, help="windows in a step, all cards together (default 64)")
    parser.add_argument("--context", type=int, default=64, help="letters that the model looks back (default 64)")
    parser.add_argument("--require", type=float, default=2.4, help="fail at or above this final loss (default 2.4)")
    parser.add_argument("--text", type=Path, nargs="+", metavar="FILE", help="train on these instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the losses there")
    args = parser.parse_args()

    files = args.text or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    words = "\n".join(file.read_text() for file in files)
    alphabet = sorted(set(words))
    text = torch.tensor([alphabet.index(letter) for letter in words])

    join_job(args.backend)
    torch.set_num_threads(1)  # a card is one core, and the layers are too small to share
    torch.manual_seed(0)
    model = TinyGPT(len(alphabet), args.context)
    curve = train(model, text, context=args.context, steps=args.steps, batch=args.batch)
    final = sum(curve[-20:]) / len(curve[-20:])

    rank, world_size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    if rank > 0:  # rank 0 speaks for all: they hold the same network
        return 0
    print(f"{world_size} cards: loss {final:.3f} over the last 20 steps, from {curve[0]:.3f} at the first; it writes:")
    print("".join(alphabet[i] for i in write(model, text[:1], args.context, 200)))
    if args.json:
        args.json.write_text(json.dumps({"world_size": world_size, "loss": final, "losses": curve}) + "\n")
    if final >= args.require:
        print(f"loss {final:.3f} is not below --require {args.require}: train longer with --steps", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
