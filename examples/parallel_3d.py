"""Train a small GPT on many cards in three ways at once: data, tensor and pipeline parallel.

    superpod-run -n 64 examples/parallel_3d.py --check    64 cards, 4 x 4 x 4
    superpod-run -n 8 examples/parallel_3d.py             2 x 2 x 2
    python examples/parallel_3d.py                        one card, no launcher

Along the pipeline the cards hold different layers; along `tensor` different heads and columns of these; along `data`
they see different text and share out, by FSDP, what they hold. --check trains the same network in one process, too: the
losses may differ by rounding only. Where K additions follow one another on the way to a gradient, rounding is worth at
most K·u of its largest entry (u: float32's unit); how far that takes the losses apart, a training so disturbed shows.
Each loss, a mean of N, was rounded too: added up in halves as torch does, log2(N) times on the way, by u of it at most.
"""

import argparse
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

ROOT = Path(__file__).resolve().parent.parent
CONTEXT, WIDTH, HEADS, LAYERS = 32, 32, 4, 4
BATCH, MICRO = 96, 4  # windows of text in a step, all cards together; the parts in which they go down a pipeline
ROUNDINGS = 16 * WIDTH * LAYERS + BATCH * CONTEXT  # K: six matrices a layer, forth and back, then all letters of a step


class Block(nn.Module):
    """Attention to the letters before, then a small network on each letter: (batch, letters, WIDTH) → the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.merge = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)  # the heads: as many as this card has
        q, k, v = (m(y).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for m in (self.q, self.k, self.v))
        x = x + self.merge(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
        return x + self.down(torch.tanh(self.up(self.norm2(x))))


COLUMNS, ROWS = ColwiseParallel(), RowwiseParallel()
TENSOR_PLAN = {"q": COLUMNS, "k": COLUMNS, "v": COLUMNS, "merge": ROWS, "up": COLUMNS, "down": ROWS}


def network(alphabet: int) -> list[nn.Module]:
    """All layers, the same on every card; the last scores every letter that may come next."""
    torch.manual_seed(0)
    leave = nn.Sequential(nn.LayerNorm(WIDTH), nn.Flatten(0, 1), nn.Linear(WIDTH, alphabet))
    return [nn.Embedding(alphabet, WIDTH), *(Block() for _ in range(LAYERS)), leave]


def loss_of(scores: Tensor, letters: Tensor) -> Tensor:
    return cross_entropy(scores, letters.flatten())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)


def train(mesh: DeviceMesh, alphabet: int, batches: Tensor) -> list[float]:
    """Train this card's part of the network; returns the loss of every step, the mean over all cards."""
    data, index, stages = mesh["data"], mesh["pipeline"].get_local_rank(), mesh["pipeline"].size()
    first, last, layers = index == 0, index == stages - 1, network(alphabet)
    blocks = layers[1:-1][index * LAYERS // stages : (index + 1) * LAYERS // stages]
    blocks = [parallelize_module(block, mesh["tensor"], TENSOR_PLAN) for block in blocks]
    model = nn.Sequential(*layers[:1] * first, *blocks, *layers[-1:] * last)
    fully_shard(model, mesh=data, reshard_after_forward=False)
    stage = PipelineStage(model, index, stages, torch.device("cpu"), group=mesh["pipeline"].get_group())
    schedule, optimizer = Schedule1F1B(stage, MICRO, loss_fn=loss_of), optimizer_of(model)
    curve: list[float] = []
    for step, batch in enumerate(batches):
        mine = batch.chunk(data.size())[data.get_local_rank()]
        losses: list[Tensor] = []
        optimizer.zero_grad()
        schedule.step(*[mine[:, :-1]] * first, target=mine[:, 1:] if last else None, losses=losses)
        optimizer.step()
        loss = torch.stack(losses).detach().mean() if last else torch.zeros(())
        dist.all_reduce(loss)  # one card in `stages` knows a loss
        curve.append(loss.item() * stages / dist.get_world_size())
        if dist.get_rank() == 0 and (step + 1) % 5 == 0:
            print(f"step {step + 1:3}  loss {curve[-1]:.4f}", flush=True)
    return curve


def train_alone(alphabet: int, batches: Tensor, disturbance: float = 0) -> Tensor:
    """The same in one process, every gradient off by so much of its largest entry, up or down by lot."""
    model, lot, curve = nn.Sequential(*network(alphabet)), torch.Generator().manual_seed(2), []
    optimizer = optimizer_of(model)
    for batch in batches:
        loss = loss_of(model(batch[:, :-1]), batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        for gradient in (p.grad for p in model.parameters()):
            gradient += disturbance * gradient.abs().max() * (torch.randint(2, gradient.shape, generator=lot) * 2 - 1)
        optimizer.step()
        curve.append(loss.detach())
    return torch.stack(curve)


def sides_of(n: int) -> tuple[int, int, int]:
    """n cards as data x tensor x pipeline, the sides as equal as the network allows."""
    sides = [(n // (t * p), t, p) for t in (1, 2, 4) for p in (1, 2, 4) if n % (t * p) == 0]
    if not (fit := [side for side in sides if BATCH // MICRO % side[0] == 0]):
        sys.exit(f"{n} cards do not share {BATCH // MICRO} windows, {HEADS} heads and {LAYERS} layers: try -n 8 or 64")
    return min(fit, key=max)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="superpod", help="superpod (default), or another such as gloo")
    parser.add_argument("--steps", type=int, default=10, help="steps of training (default 10)")
    parser.add_argument("--check", action="store_true", help="fail unless the losses are those of one process")
    args = parser.parse_args()
    words = "".join(file.read_text() for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
    alphabet = sorted(set(words))
    text = torch.tensor([alphabet.index(letter) for letter in words])
    starts = torch.randint(len(text) - CONTEXT, (args.steps, BATCH, 1), generator=torch.Generator().manual_seed(1))
    data = len(alphabet), text[starts + torch.arange(CONTEXT + 1)]

    torch.set_num_threads(1)  # a card is one core
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(args.backend, **alone)
    rank, sides = dist.get_rank(), sides_of(dist.get_world_size())
    curve = train(init_device_mesh("cpu", sides, mesh_dim_names=("data", "tensor", "pipeline")), *data)
    dist.destroy_process_group()
    if rank == 0:
        print(f"{' x '.join(map(str, sides))} cards: loss {curve[0]:.4f} at first, {curve[-1]:.4f} in the end")
    if rank > 0 or not args.check:
        return 0
    true, unit = train_alone(*data), torch.finfo(torch.float32).eps / 2
    gap = (torch.tensor(curve) - true).abs().max()
    apart = (train_alone(*data, disturbance=ROUNDINGS * unit) - true).abs().max()
    bound = apart + math.log2(BATCH * CONTEXT) * unit * true.max()
    print(f"losses {gap:.1e} from those of one process, bound {bound:.1e}")
    return int(not gap <= bound)


if __name__ == "__main__":
    sys.exit(main())
