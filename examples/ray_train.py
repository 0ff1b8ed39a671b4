"""Train with Ray Train, whose workers meet through superpod: only the backend's name differs.

    pip install "superpod[ray]"
    python examples/ray_train.py --workers 4

Ray starts the processes and gives them torch's variables; superpod carries their collectives.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import ray
import torch
import torch.distributed as dist
from ray import train
from ray.train import Checkpoint, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from torch import nn


def train_loop(config: dict[str, int]) -> None:
    """One worker: fit a line through points that only all workers together have."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    x = torch.rand(256, 1)
    y = 3 * x + 1
    model = prepare_model(nn.Linear(1, 1))  # wraps it in DistributedDataParallel
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(config["steps"]):
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight = next(model.parameters()).detach().reshape(-1)[:1].clone()
    everybody = [torch.empty_like(weight) for _ in range(world_size)]
    dist.all_gather(everybody, weight)
    same = all(torch.equal(weight, other) for other in everybody)
    metrics = {"loss": loss.item(), "backend": dist.get_backend(), "same": same, "workers": world_size}
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0:  # Ray keeps the metrics that come with a checkpoint
            torch.save(model.state_dict(), Path(folder, "model.pt"))
            train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
        else:
            train.report(metrics)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes that train (default 2)")
    parser.add_argument("--steps", type=int, default=100, help="steps of each (default 100)")
    parser.add_argument("--storage", metavar="DIR", help="where Ray keeps its results (default: its own choice)")
    args = parser.parse_args()

    ray.init(num_cpus=args.workers + 1, include_dashboard=False, log_to_driver=False)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"steps": args.steps},
        torch_config=TorchConfig(backend="superpod"),
        scaling_config=ScalingConfig(num_workers=args.workers),
        run_config=RunConfig(storage_path=args.storage),
    )
    metrics = trainer.fit().metrics
    ray.shutdown()
    print(
        f"{metrics['workers']} workers over {metrics['backend']}: loss {metrics['loss']:.5f}, "
        f"the same weights on all: {metrics['same']}"
    )
    return 0 if metrics["same"] and metrics["loss"] < 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
