"""What is to be run, checked before anything starts: every refusal names the value, the rule and the way out."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import MOST_SECONDS
from superpod.launcher.hosts import Host
from superpod.launcher.machine import MachineSpec
from superpod.launcher.nodes import NodeSpec
from superpod.launcher.reach import Reach
from superpod.launcher.share import ranks_of

KINDS = ("script", "module", "program")
START_METHODS = ("fork", "exec")


@dataclass(frozen=True, slots=True)
class StreamChoice:
    """Which streams of which card: torchrun's notation for --tee and --redirects.

    Attributes:
        every: for every card that `by_rank` does not name: 0 none, 1 stdout, 2 stderr, 3 both.
        by_rank: the same for single ranks.
    """

    every: int = 0
    by_rank: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> StreamChoice:
        """ "3" → both streams of every card; "0:3,1:2" → both of rank 0, stderr of rank 1. Raises InvalidValue."""
        if re.fullmatch(r"[0-3]", text):
            return StreamChoice(int(text))
        if re.fullmatch(r"\d+:[0-3](,\d+:[0-3])*", text):
            return StreamChoice(0, {int(r): int(s) for r, s in (pair.split(":") for pair in text.split(","))})
        raise InvalidValue(
            f"streams {text!r} must be 0 (none), 1 (stdout), 2 (stderr) or 3 (both) for all ranks, "
            "or rank:streams pairs such as 0:3,1:2"
        )

    def has(self, rank: int, stream: int) -> bool:
        return bool(self.by_rank.get(rank, self.every) & stream)

    def __bool__(self) -> bool:
        return bool(self.every or any(self.by_rank.values()))


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job.

    Attributes:
        target: the script's path, the module's name or the program, as `kind` says.
        args: what the target gets as its arguments.
        kind: script (`python target`), module (`python -m target`) or program (anything executable).
        world_size: number of cards, ≥ 1, on all hosts together.
        hosts: where the cards run, in the order of the ranks; none: all on this host.
        reach: how the other hosts are reached, and what they are told.
        nodes: the launchers that somebody starts on every host, of which this is one; None: there is only this one.
        start_method: fork (cards are forked from a warm process) or exec (each card is a fresh interpreter).
        preload: modules that the warm process imports besides those it finds itself.
        auto_preload: whether it looks for them itself.
        bind_to: which core each card runs on, one of binding.POLICIES.
        log_dir: where each card's streams are kept in files.
        redirects: streams that go into files only; tee: into files and to the console. Without either, `log_dir`
            means tee for all.
        shown_ranks: the ranks whose output the console shows; None: all.
        summary: print a closing table; summary_json: write it to this file.
        record: write the cards' flight records to this file; None: where the launcher finds room, if the job fails.
        grace: seconds between SIGTERM and SIGKILL, ≥ 0.
        machine: what the cards stand for.
    """

    target: str
    args: tuple[str, ...] = ()
    kind: str = "script"
    world_size: int = 1
    start_method: str = "fork"
    preload: tuple[str, ...] = ()
    auto_preload: bool = True
    bind_to: str = "auto"
    log_dir: Path | None = None
    redirects: StreamChoice = StreamChoice()
    tee: StreamChoice = StreamChoice()
    shown_ranks: frozenset[int] | None = None
    summary: bool = False
    summary_json: Path | None = None
    record: Path | None = None
    grace: float = 5.0
    machine: MachineSpec = field(default_factory=MachineSpec)
    hosts: tuple[Host, ...] = ()
    reach: Reach = field(default_factory=Reach)
    nodes: NodeSpec | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many cards each host has."""
        return tuple(host.cards for host in self.hosts) or (self.world_size,)

    def variables(self) -> dict[str, str]:
        """What cards get beside their place: what they stand for, how hosts talk, the user's exports."""
        machine = {name: value for name, value in self.machine.environment().items() if value}
        return {**self.reach.variables(), **machine}

    def host_of(self, rank: int) -> int:
        """The number of the host that a rank is on."""
        return next(number for number, ranks in enumerate(ranks_of(self.sizes)) if rank in ranks)

    def __post_init__(self) -> None:
        self._check_cards()
        self._check_workdir()
        check_target(self.kind, self.target, self.reach.workdir)
        self._check_preload()
        self._check_files()
        if self._is_whole:
            self.machine.check(self.world_size, self.kind, len(self.sizes))

    @property
    def _is_whole(self) -> bool:
        """Whether all of its hosts are known: before the nodes have joined, `world_size` is this node's alone."""
        return bool(self.hosts) or self.nodes is None or self.nodes.count == 1

    def _check_cards(self) -> None:
        if self.world_size < 1:
            raise InvalidValue(f"nproc_per_node={self.world_size} must be at least 1; start n cards with -n n")
        if self.start_method not in START_METHODS:
            raise InvalidValue(f"start_method={self.start_method!r} must be one of {', '.join(START_METHODS)}")
        if not 0 <= self.grace <= MOST_SECONDS:
            raise InvalidValue(f"grace={self.grace} must be a number of seconds, 0 or more, at most {MOST_SECONDS:.0f}")
        named = {*self.redirects.by_rank, *self.tee.by_rank, *(self.shown_ranks or ())}
        if self._is_whole and (unknown := sorted(rank for rank in named if not 0 <= rank < self.world_size)):
            raise InvalidValue(
                f"rank {unknown[0]} does not exist: with -n {self.world_size} "
                f"--local-ranks-filter, --tee and --redirects take ranks 0 to {self.world_size - 1}"
            )

    def _check_workdir(self) -> None:
        workdir = self.reach.workdir
        if not workdir or (os.path.isdir(workdir) and os.access(workdir, os.X_OK)):
            return
        if not self.hosts or any(host.is_here() for host in self.hosts):  # the other hosts look for themselves
            raise InvalidValue(f"--workdir {workdir} must be a directory that you can enter; make it, or name another")

    def _check_preload(self) -> None:
        if self.preload and (self.start_method != "fork" or self.kind == "program"):
            raise InvalidValue(
                f"--preload {self.preload[0]} must go with --start-method fork and a Python target: "
                "only forked cards share what was imported; leave it out"
            )

    def _check_files(self) -> None:
        if (self.redirects or self.tee) and self.log_dir is None:
            raise InvalidValue(
                "--redirects and --tee must go with --log-dir DIR, where the files go; "
                "to see lines with their rank no option is needed"
            )
        for what, file in (("summary", self.summary_json), ("record", self.record)):
            if file is not None and (file.is_dir() or not os.access(file.parent, os.W_OK)):
                raise InvalidValue(f"{what} file {file} must be a file in a folder that can be written")
        if _same_file(self.summary_json, self.record):
            raise InvalidValue(f"summary file {self.summary_json} and record file {self.record} must be two files")


def _same_file(one: Path | None, other: Path | None) -> bool:
    """Whether what is written to one would be lost to the other; a device takes both."""
    if one is None or other is None:
        return False
    return os.path.realpath(one) == os.path.realpath(other) and (one.is_file() or not one.exists())


def check_target(kind: str, target: str, workdir: str = "") -> None:
    """Raises InvalidValue for what cannot be run on this host. `workdir`: where it will be run; "": here."""
    if kind not in KINDS:
        raise InvalidValue(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    if kind == "program":
        if shutil.which(os.path.join(workdir, target) if os.path.dirname(target) else target) is None:
            raise InvalidValue(f"program {target!r} must be an executable file, by its path or on PATH")
    elif kind == "module":
        _check_module(target, workdir)
    else:
        _check_script(Path(workdir, target))


def _check_module(name: str, workdir: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InvalidValue(f"module {name!r} must be a dotted name, such as package.module; a path goes without -m")
    if not (here := workdir or _here()):
        raise InvalidValue(f"module {name!r} must be started in a folder that exists; this one has been deleted")
    top = name.split(".")[0]
    sys.path.insert(0, here)  # where `python -m` looks first
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # what this process has loaded and what has no spec, such as __main__
        spec = None
    finally:
        sys.path.pop(0)
    if spec is None:
        raise InvalidValue(f"module {name!r} was not found: {top!r} must lie in {here} or be installed")
    if top != name and spec.submodule_search_locations is None:
        raise InvalidValue(f"module {name!r} was not found: {top!r} is a module, no package; a path goes without -m")


def _check_script(path: Path) -> None:
    if path.is_dir():
        raise InvalidValue(f"script {path} is a directory; name a file in it, or start a package with -m")
    if not path.exists():
        raise InvalidValue(
            f"script {path} does not exist; looked for it in {_here() or 'a folder that has been deleted'}"
        )
    if not os.access(path, os.R_OK):
        raise InvalidValue(f"script {path} must be readable by you; see its permissions")


def compile_script(path: str) -> CodeType:
    """The script's code as `python path` has it. Raises SyntaxError, or InvalidValue when it is no text at all."""
    source = Path(path).read_bytes()
    if b"\0" in source:
        raise InvalidValue(f"script {path} is not Python source; start other programs with --no-python")
    return compile(source, absolute(path), "exec", dont_inherit=True)


def absolute(path: str) -> str:
    """The path from the root, as Python writes it into `__file__`."""
    return path if os.path.isabs(path) else os.path.join(os.getcwd(), path)  # a deleted folder is none to ask for


def _here() -> str:
    """The working directory; "" when it has been deleted."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""
