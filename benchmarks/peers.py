"""The programs that superpod is compared with, and how each is started."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from superpod.benchmarks.job import LAUNCHER
from superpod.benchmarks.plan import choose
from superpod.benchmarks.stage import Stage
from superpod.interconnect.errors import InvalidValue

NUMPY, TORCH = "numpy", "torch"  # what the arrays of a program are, and through which interface it is called
OURS = {NUMPY: "superpod", TORCH: "superpod-torch"}
THROUGH = {"superpod": NUMPY, "superpod-torch": TORCH, "gloo": TORCH, "openmpi": NUMPY, "mpich": NUMPY}
PEERS = ("gloo", "openmpi", "mpich")
HOME = Path(__file__).resolve().parent.parent / ".peers"  # where `make bench-peers` puts MPIs
DTYPES = ("float32", "float64", "int8", "uint8", "int32", "int64")  # what numpy, torch, gloo and every MPI have


@dataclass(frozen=True, slots=True)
class Field:
    """Who takes part.

    Attributes:
        peers: of PEERS.
        home: the folder with an environment for each MPI.
        link: SUPERPOD_LINK for superpod.
        numpy: superpod's own API takes part, as it does beside every MPI.
    """

    peers: tuple[str, ...]
    home: Path = HOME
    link: str = "auto"
    numpy: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """All that is measured, in the order of the table."""
        torch = ("superpod-torch",) if "gloo" in self.peers else ()
        return (*(("superpod",) if self.numpy else ()), *torch, *self.peers)

    def check(self) -> None:
        """Raises InvalidValue when an MPI is not there."""
        for peer in self.peers:
            if THROUGH[peer] == NUMPY and not self._program(peer, "mpirun").exists():
                raise InvalidValue(f"--peers {peer}: there is no {self._program(peer, 'mpirun')}; make bench-peers")

    def start(self, stage: Stage) -> None:
        """Start all of them. Raises JobFailed."""
        if self.numpy:
            stage.start("superpod", *self.superpod(stage))
        if "gloo" in self.peers:
            stage.start("torch", *self.superpod_torch(stage, "torch_player", "superpod,gloo"))
        for peer in self.peers:
            if THROUGH[peer] == NUMPY:
                stage.start(peer, self.mpi(stage, peer), {})

    def superpod(self, stage: Stage) -> tuple[list[str], dict[str, str]]:
        """(command, variables) of superpod on numpy arrays."""
        return self.on_cards(
            stage, "superpod_player", ("superpod.benchmarks.player", "superpod.collectives.communicator")
        )

    def superpod_torch(self, stage: Stage, module: str, backends: str) -> tuple[list[str], dict[str, str]]:
        """(command, variables) of a module of superpod's with backends of torch, on cards of superpod-run."""
        preload = ("torch", "superpod.collectives.torch_backend", "superpod.benchmarks.player")
        return self.on_cards(stage, module, preload, backends)

    def on_cards(
        self, stage: Stage, module: str, preload: tuple[str, ...], *arguments: str
    ) -> tuple[list[str], dict[str, str]]:
        """(command, variables) of a module of superpod's on cards of superpod-run that share what is in `preload`."""
        command = [sys.executable, "-c", LAUNCHER, "-n", str(stage.world_size), "--no-preload"]
        command += [f"--preload={shared}" for shared in preload]
        return [*command, "-m", f"superpod.benchmarks.{module}", stage.path, *arguments], {"SUPERPOD_LINK": self.link}

    def torchrun(self, stage: Stage, module: str, *arguments: str) -> list[str]:
        """The command for a module of superpod's under torchrun."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={stage.world_size}", "-m", f"superpod.benchmarks.{module}"]
        return [*command, stage.path, *arguments]

    def mpi(self, stage: Stage, peer: str) -> list[str]:
        """The command of an MPI; Open MPI asks before it runs more ranks than there are cores, or runs as root."""
        more = ("--oversubscribe", "--allow-run-as-root") if peer == "openmpi" else ()
        run = [str(self._program(peer, "mpirun")), *more, "-n", str(stage.world_size)]
        return [*run, str(self._program(peer, "python")), "-m", "superpod.benchmarks.mpi_player", stage.path, peer]

    def _program(self, peer: str, name: str) -> Path:
        return self.home / peer / "bin" / name


def field(text: str, home: Path, link: str) -> Field:
    """Who takes part, from --peers ("" for superpod alone) and --peers-from. Raises InvalidValue."""
    chosen = dict.fromkeys(choose("--peers", text, PEERS)) if text else ()
    found = Field(tuple(chosen), home.resolve(), link)
    found.check()
    return found
