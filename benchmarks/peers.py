"""The programs that superpod is compared with, and how each is started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from superpod.benchmarks.hosts import Hosts
from superpod.benchmarks.job import superpod_run
from superpod.benchmarks.plan import AUTO, choose, player_name
from superpod.benchmarks.stage import Stage
from superpod.interconnect.errors import InvalidValue

NUMPY, TORCH = "numpy", "torch"  # what the arrays of a program are, and through which interface it is called
OURS = {NUMPY: "superpod", TORCH: "superpod-torch"}
THROUGH = {"superpod": NUMPY, "superpod-torch": TORCH, "gloo": TORCH, "openmpi": NUMPY, "mpich": NUMPY}
PEERS = ("gloo", "openmpi", "mpich")
HOME = Path(__file__).resolve().parent.parent / ".peers"  # where `make bench-peers` puts MPIs
DTYPES = ("float32", "float64", "int8", "uint8", "int32", "int64")  # what numpy, torch, gloo and every MPI have


CLEAR = " clear"  # behind the names of superpod's players that do not encrypt, beside those that do


@dataclass(frozen=True, slots=True)
class Entrant:
    """Who is measured: a column.

    Attributes:
        name: the column's, and the player's on the stage.
        program: what it is; one of THROUGH.
        algorithm: that superpod is asked for.
        encrypted: whether superpod encrypts what goes between hosts; None on one host, and for others.
    """

    name: str
    program: str
    algorithm: str = AUTO
    encrypted: bool | None = None

    @property
    def through(self) -> str:
        return THROUGH[self.program]

    @property
    def ours(self) -> bool:
        return self.program in OURS.values()


@dataclass(frozen=True, slots=True)
class Field:
    """Who takes part.

    Attributes:
        peers: of PEERS.
        home: the folder with an environment for each MPI.
        link: SUPERPOD_LINK for superpod.
        numpy: superpod's own API takes part, as it does beside every MPI.
        hosts: where the ranks are; None: all on this host.
    """

    peers: tuple[str, ...]
    home: Path = HOME
    link: str = "auto"
    numpy: bool = True
    hosts: Hosts | None = None

    def entrants(self, algorithms: Sequence[str] = (AUTO,)) -> tuple[Entrant, ...]:
        """All that are measured, in the order of the table; superpod's own API with each of these algorithms."""
        found = []
        for mode, mark in self._modes():
            if self.numpy:
                names = ((player_name(algorithm), algorithm) for algorithm in algorithms)
                found += [Entrant(name + mark, "superpod", algorithm, mode) for name, algorithm in names]
            if "gloo" in self.peers:
                found.append(Entrant("superpod-torch" + mark, "superpod-torch", AUTO, mode))
        return (*found, *(Entrant(peer, peer) for peer in self.peers))

    def _modes(self) -> list[tuple[bool | None, str]]:
        """Whether superpod encrypts, and what stands behind its names then."""
        if self.hosts is None:
            return [(None, "")]
        both = len(self.hosts.encryption) > 1
        return [(encrypted, CLEAR if both and not encrypted else "") for encrypted in self.hosts.encryption]

    def check(self) -> None:
        """Raises InvalidValue when an MPI is not there."""
        for peer in self.peers:
            if THROUGH[peer] == NUMPY and not self._program(peer, "mpirun").exists():
                raise InvalidValue(f"--peers {peer}: there is no {self._program(peer, 'mpirun')}; make bench-peers")

    def start(self, stage: Stage, algorithms: Sequence[str] = (AUTO,)) -> None:
        """Start all of them. Raises JobFailed."""
        for mode, mark in self._modes():
            if self.numpy:
                stage.start("superpod" + mark, *self.superpod(stage, algorithms, mode is not False), mark)
            if "gloo" in self.peers:
                torch = self.superpod_torch(stage, "torch_player", encrypted=mode is not False)
                stage.start("superpod-torch" + mark, *torch, mark)
        if "gloo" in self.peers:
            stage.start("gloo", *self.gloo(stage, "torch_player"))
        for peer in self.peers:
            if THROUGH[peer] == NUMPY:
                stage.start(peer, self.mpi(stage, peer), {})

    def superpod(
        self, stage: Stage, algorithms: Sequence[str] = (AUTO,), encrypted: bool = True
    ) -> tuple[list[str], dict[str, str]]:
        """(command, variables) of superpod on numpy arrays."""
        preload = ("superpod.benchmarks.player", "superpod.collectives.communicator")
        return self.on_cards(stage, "superpod_player", preload, ",".join(algorithms), encrypted=encrypted)

    def superpod_torch(
        self, stage: Stage, module: str, *, encrypted: bool = True, bind_to: str = "auto", backend: str = "superpod"
    ) -> tuple[list[str], dict[str, str]]:
        """(command, variables) of a module of superpod's with a backend of torch, on cards of superpod-run."""
        preload = ("torch", "superpod.collectives.torch_backend", "superpod.benchmarks.player")
        return self.on_cards(stage, module, preload, backend, encrypted=encrypted, bind_to=bind_to)

    def gloo(self, stage: Stage, module: str) -> tuple[list[str], dict[str, str]]:
        """The same with gloo, on any core, as torchrun has it; superpod-run only starts it in less time."""
        return self.superpod_torch(stage, module, bind_to="none", backend="gloo")

    def on_cards(
        self,
        stage: Stage,
        module: str,
        preload: tuple[str, ...],
        *arguments: str,
        encrypted: bool = True,
        bind_to: str = "auto",
    ) -> tuple[list[str], dict[str, str]]:
        """(command, variables) of a module of superpod's on cards of superpod-run that share what is in `preload`."""
        where = ["-n", str(stage.world_size)] if self.hosts is None else self.hosts.superpod_run(encrypted=encrypted)
        command = [*superpod_run(), *where, "--no-preload", f"--bind-to={bind_to}"]
        command += [f"--preload={shared}" for shared in preload]
        target = ["-m", f"superpod.benchmarks.{module}", stage.address, *arguments]
        return [*command, *target], {"SUPERPOD_LINK": self.link}

    def torchrun(self, stage: Stage, module: str, *arguments: str) -> list[str]:
        """The command for a module of superpod's under torchrun."""
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={stage.world_size}", "-m", f"superpod.benchmarks.{module}"]
        return [*command, stage.address, *arguments]

    def mpi(self, stage: Stage, peer: str) -> list[str]:
        """The command of an MPI; Open MPI asks before it runs more ranks than there are cores, or runs as root."""
        more = ["--allow-run-as-root"] if peer == "openmpi" else []
        if self.hosts is not None:
            more += self.hosts.open_mpi(stage.file)
        elif peer == "openmpi":
            more.append("--oversubscribe")
        run = [str(self._program(peer, "mpirun")), *more, "-n", str(stage.world_size)]
        return [*run, str(self._program(peer, "python")), "-m", "superpod.benchmarks.mpi_player", stage.address, peer]

    def _program(self, peer: str, name: str) -> Path:
        return self.home / peer / "bin" / name


def field(text: str | None, home: Path, link: str, hosts: Hosts | None = None) -> Field:
    """Who takes part, from --peers ("" or None for superpod alone) and --peers-from. Raises InvalidValue."""
    found = Field(peer_names(text), home.resolve(), link, hosts=hosts)
    found.check()
    return found


def peer_names(text: str | None) -> tuple[str, ...]:
    """From --peers. Raises InvalidValue."""
    return tuple(dict.fromkeys(choose("--peers", text, PEERS))) if text else ()
