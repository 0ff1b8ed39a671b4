"""The environment contract: every variable that superpod reads or writes, in this one place.

Read by a card:
    SUPERPOD_DIR            the job's directory (0700): sockets, abort flag, news. Written by superpod-run.
    SUPERPOD_STORE          endpoint of the launcher's own key-value store. Written by superpod-run.
    SUPERPOD_SECRET         64 hexadecimal digits that only the job's cards know. Written by superpod-run
    SUPERPOD_ADDRESS        where other hosts reach this one. Written by superpod-run
    SUPERPOD_INTERFACE      eth0,^docker0: the interfaces from which to choose it, when nobody has said it
    SUPERPOD_PORTS          0 (default: the kernel chooses) or 29600-29700: where cards listen for other hosts
    SUPERPOD_ENCRYPTION     on (default) or off: between hosts; off only where nobody else can get at the network
    SUPERPOD_LINK           auto (default), zmq or shm: what carries the payload; shm: shared memory, on one host; auto:
                            shared memory between cards of one host where it can be had, else ZeroMQ
    SUPERPOD_ZMQ_TRANSPORT  ipc (default) or tcp: how ZeroMQ connects cards of one host
    SUPERPOD_DEBUG          off (default) or info: say on stderr which algorithm was chosen and why
    SUPERPOD_TIMEOUT        longest wait of one call, from 0.1 s to 1e6 s (default 30m); torch groups bring their own
    SUPERPOD_SEGMENT        a large payload travels in segments of this size (default 1M)
    SUPERPOD_WINDOW         most bytes under way from one card to another (default 4M)
    SUPERPOD_WATCHDOG       after so long a wait, and at growing intervals, say who waits for whom (default 0: never)
    SUPERPOD_RECORD         how many calls a card's flight recorder remembers (default 512; 0: none)
    SUPERPOD_DETERMINISTIC  1: results have the same bits whatever the size, the algorithm and the link (default 0)
    SUPERPOD_TOPOLOGY       the machine that the modelled clock goes by: a preset or a TOML file (default: no clock)
    SUPERPOD_PLACEMENT      packed (default), spread or a list: which of its cards the ranks sit on
    SUPERPOD_MACHINE_FAULTS what is wrong with it: "straggler 7:2, cut 0-1" (default: nothing)
    SUPERPOD_TIME_SCALE     above 0: its links really take their time, so many times as long (default 0: they do not)
    SUPERPOD_HBM            bytes that a card of superpod-run may allocate beyond what it starts with (default: any)
    SUPERPOD_<COLLECTIVE>   which algorithm for which size: "tree:0-65536;ring:65537-max"
    SUPERPOD_TUNING         off, or a file of superpod-bench tune by which algorithms are chosen (default: superpod-run
                            takes the one of this machine from the cache, if there is one)
    SUPERPOD_SELECTION      what superpod-run knows of the machine, so that all cards choose alike. Written by it
    SUPERPOD_BENCH          what a rank of a benchmark shows superpod-bench, which has written it
and glibc's MALLOC_* and GLIBC_TUNABLES, torchrun's RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE.

Written by superpod-run for every card (`worker_environment`), with torchrun's names and meanings, so that scripts run
unchanged:
    RANK, WORLD_SIZE                        the card's number in the job and how many cards the job has
    LOCAL_RANK, LOCAL_WORLD_SIZE            the same among the cards of this host
    GROUP_RANK, GROUP_WORLD_SIZE            the host's number and how many hosts the job has
    ROLE_RANK, ROLE_WORLD_SIZE, ROLE_NAME   as RANK and WORLD_SIZE; there is one role, "default"
    MASTER_ADDR, MASTER_PORT                where torch's store is reached: on this host's loopback, whichever host it
                                            is on, for it is open to whoever reaches it
    TORCHELASTIC_USE_AGENT_STORE            True: the launcher hosts torch's store, every card is its client
    TORCHELASTIC_RUN_ID                     the job's name
    TORCHELASTIC_RESTART_COUNT, TORCHELASTIC_MAX_RESTARTS   0: a job that failed is not restarted
    OMP_NUM_THREADS                         1 unless set: n cards share the processors of one host
    RES_OPTIONS                             "timeout:1 attempts:5" unless set: who connects to torch's store asks the
                                            name server who ::ffff:127.0.0.1 is; of so many questions at once some get
                                            lost, and the resolver would ask again after 5 s only

Read by superpod-run itself:
    PET_NPROC_PER_NODE      the number of cards when -n does not say it, or auto: one a processor; as for torchrun
    PET_NNODES, PET_NODE_RANK, PET_RDZV_ENDPOINT (or PET_MASTER_ADDR and PET_MASTER_PORT), PET_RDZV_BACKEND, PET_RDZV_ID
                            torchrun's options of these names, where they are not given
    SLURM_PROCID, SLURM_STEP_NUM_TASKS (or SLURM_NTASKS), SLURM_STEP_NODELIST, SLURM_STEP_ID, SLURM_JOB_ID
                            the place in a step that srun has started; in an sbatch shell they are not acted upon
    XDG_RUNTIME_DIR         where the job's directory lies, if it is set and can be written; else the temporary one
    XDG_CACHE_HOME          where superpod-bench tune leaves its table, in superpod/ (default ~/.cache)
    SUPERPOD_SSH            the command that reaches other hosts (default ssh), with options: "ssh -p 2222"
    NO_COLOR                if set, no colours on a terminal
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from superpod.interconnect import env_hosts
from superpod.interconnect.env_hosts import BetweenHosts
from superpod.interconnect.env_hosts import HostPlace as HostPlace
from superpod.interconnect.env_nodes import NodeVariables, SlurmStep
from superpod.interconnect.env_values import one_of, read, scale, whole
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.hosts_text import cards_text
from superpod.interconnect.units import parse_seconds, parse_size

_PLACE = ("RANK", "WORLD_SIZE")

COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "gather",
    "scatter",
    "barrier",
)
LINKS = ("auto", "zmq", "shm")
TRANSPORTS = ("ipc", "tcp")
DEBUG_LEVELS = ("off", "info")
MOST_RECORDS = 1 << 20  # of 248 bytes each
LEAST_TIMEOUT = 0.1  # seconds; cards that are started together join within less only by luck
_OWN = (
    "DIR",
    "STORE",
    "LINK",
    "ZMQ_TRANSPORT",
    "DEBUG",
    "TIMEOUT",
    "SEGMENT",
    "WINDOW",
    "WATCHDOG",
    "RECORD",
    "TUNING",
    "SELECTION",
)
_MODEL = ("TOPOLOGY", "PLACEMENT", "MACHINE_FAULTS", "TIME_SCALE", "HBM")
_OTHERS = ("DETERMINISTIC", "SSH", "BENCH")
_PREFIX = "SUPERPOD_"
_QUICK_NAMES = "timeout:1 attempts:5"  # for the C library's resolver: as patient in all, but it asks again sooner
VARIABLES = tuple(
    _PREFIX + name for name in (*_OWN, *env_hosts.VARIABLES, *_MODEL, *_OTHERS, *(c.upper() for c in COLLECTIVES))
)
"""Every variable that is superpod's own."""
CARD_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
"""What tells a card which one it is; a process that only prepares cards has none of it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says about this card. Sizes in bytes, times in seconds."""

    directory: Path | None = None
    store: str | None = None
    link: str = "auto"
    transport: str = "ipc"
    debug: str = "off"
    timeout: float = 1800.0
    segment: int = 1 << 20
    window: int = 4 << 20
    watchdog: float = 0.0
    record: int = 512
    deterministic: bool = False
    tuning: str = ""
    selection: str = ""
    topology: str | None = None
    placement: str = "packed"
    machine_faults: str = ""
    time_scale: float = 0.0
    hbm: int | None = None
    hosts: BetweenHosts = field(default_factory=BetweenHosts)
    overrides: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def read(environ: Mapping[str, str] | None = None) -> Settings:
        """The settings in `environ` (the process's own by default). Raises InvalidValue naming the variable."""
        env = os.environ if environ is None else environ
        default = Settings()
        settings = Settings(
            directory=read(env, "SUPERPOD_DIR", Path, None),
            store=env.get("SUPERPOD_STORE") or None,
            link=read(env, "SUPERPOD_LINK", one_of(LINKS), default.link),
            transport=read(env, "SUPERPOD_ZMQ_TRANSPORT", one_of(TRANSPORTS), default.transport),
            debug=read(env, "SUPERPOD_DEBUG", one_of(DEBUG_LEVELS), default.debug),
            timeout=read(env, "SUPERPOD_TIMEOUT", parse_seconds, default.timeout),
            segment=read(env, "SUPERPOD_SEGMENT", parse_size, default.segment),
            window=read(env, "SUPERPOD_WINDOW", parse_size, default.window),
            watchdog=read(env, "SUPERPOD_WATCHDOG", parse_seconds, default.watchdog),
            record=read(env, "SUPERPOD_RECORD", whole, default.record),
            deterministic=read(env, "SUPERPOD_DETERMINISTIC", one_of(("0", "1")), "0") == "1",
            tuning=env.get("SUPERPOD_TUNING", ""),
            selection=env.get("SUPERPOD_SELECTION", ""),
            topology=env.get("SUPERPOD_TOPOLOGY") or None,
            placement=env.get("SUPERPOD_PLACEMENT") or default.placement,
            machine_faults=env.get("SUPERPOD_MACHINE_FAULTS", ""),
            time_scale=read(env, "SUPERPOD_TIME_SCALE", scale, default.time_scale),
            hbm=read(env, "SUPERPOD_HBM", parse_size, None),
            hosts=BetweenHosts.read(env),
            overrides={c: env[v] for c in COLLECTIVES if env.get(v := f"SUPERPOD_{c.upper()}")},
        )
        if settings.timeout < LEAST_TIMEOUT:
            raise InvalidValue(
                f"SUPERPOD_TIMEOUT={env['SUPERPOD_TIMEOUT']!r} must be at least {LEAST_TIMEOUT} s, for cards do not "
                "join at one moment; such as 30s or 5m"
            )
        if not 1 << 10 <= settings.segment <= 64 << 20:
            raise InvalidValue(f"SUPERPOD_SEGMENT={settings.segment} must lie between 1K and 64M")
        if not 0 <= settings.record <= MOST_RECORDS:
            raise InvalidValue(f"SUPERPOD_RECORD={settings.record} must lie between 0 (off) and {MOST_RECORDS} calls")
        if settings.window < settings.segment:
            raise InvalidValue(
                f"SUPERPOD_WINDOW={settings.window} must be at least SUPERPOD_SEGMENT={settings.segment}, "
                "or no segment could ever leave"
            )
        return settings


@dataclass(frozen=True, slots=True)
class Place:
    """Which card of the job this process is, as torchrun and superpod-run say it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @staticmethod
    def read(environ: Mapping[str, str] | None = None) -> Place:
        """Raises InvalidValue naming what is missing, with the way out; without any of it, the world of one."""
        env = os.environ if environ is None else environ
        if "RANK" not in env and "WORLD_SIZE" not in env:
            return Place(0, 1, 0, 1)
        rank, world_size = read(env, "RANK", whole, -1), read(env, "WORLD_SIZE", whole, -1)
        if not 0 <= rank < world_size:
            said = " and ".join(f"{name}={env[name]}" if env.get(name) else f"{name} unset" for name in _PLACE)
            raise InvalidValue(
                f"{said}: both must be set with 0 <= RANK < WORLD_SIZE; "
                "start with superpod-run, or unset both for a world of one"
            )
        local = read(env, "LOCAL_RANK", whole, rank)
        return Place(rank, world_size, local, read(env, "LOCAL_WORLD_SIZE", whole, world_size))

    def is_the_launchers(self) -> bool:
        """Whether rank and world size are those that the launcher gave this process, and not the script's own."""
        with contextlib.suppress(InvalidValue):
            given = Place.read()
            return (self.rank, self.world_size) == (given.rank, given.world_size)
        return False


@dataclass(frozen=True, slots=True)
class LauncherSettings:
    """What the environment says to superpod-run itself. `runtime_directory` is None where there is none."""

    nproc_per_node: int = 1
    runtime_directory: str | None = None
    colour: bool = True
    ssh: str = "ssh"

    @staticmethod
    def read(environ: Mapping[str, str] | None = None) -> LauncherSettings:
        """The settings in `environ` (the process's own by default). Raises InvalidValue naming the variable."""
        env = os.environ if environ is None else environ
        return LauncherSettings(
            nproc_per_node=read(env, "PET_NPROC_PER_NODE", cards_text, 1),
            runtime_directory=env.get("XDG_RUNTIME_DIR") or None,
            colour=not env.get("NO_COLOR"),
            ssh=env.get("SUPERPOD_SSH") or "ssh",
        )


def cache_directory(environ: Mapping[str, str] | None = None) -> Path | None:
    """Where superpod keeps what it may measure again; None for a user who has no home."""
    env = os.environ if environ is None else environ
    home = env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "superpod" if os.path.isabs(home) else None


def unknown_variables(environ: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """What looks like a variable of superpod's and is none → the one that it resembles most, if any does."""
    env = os.environ if environ is None else environ
    unknown = sorted(name for name in env if name.startswith(_PREFIX) and name not in VARIABLES)
    return {name: _nearest(name) for name in unknown}


def _nearest(name: str) -> str | None:
    import difflib  # costs 3 ms, and only the launcher asks

    known = [variable.removeprefix(_PREFIX) for variable in VARIABLES]
    return next((_PREFIX + near for near in difflib.get_close_matches(name.removeprefix(_PREFIX), known, 1)), None)


def worker_environment(
    place: Place,
    host: HostPlace | None = None,
    *,
    directory: Path,
    store: str,
    master_port: int,
    selection: str = "",
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The variables that superpod-run sets for the card at `place`; see the top of the file.

    Args:
        host: None: the only one of the job.
        directory: the job's directory on this host.
        store: endpoint of the launcher's own key-value store, or of this host's branch of it.
        master_port: where torch's store is to be reached on this host's loopback.
        selection: what all cards choose algorithms by.
        environ: the launcher's environment (the process's own by default): what it says of OMP_NUM_THREADS stays.
    """
    env = os.environ if environ is None else environ
    rank, world_size, host = str(place.rank), str(place.world_size), host or HostPlace()
    between_hosts = {"SUPERPOD_ADDRESS": host.address, "SUPERPOD_SECRET": host.secret}
    return {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_world_size),
        "GROUP_RANK": str(host.number),
        "GROUP_WORLD_SIZE": str(host.count),
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": world_size,
        "ROLE_NAME": "default",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(master_port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": host.job or directory.name,
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1"),
        "SUPERPOD_DIR": str(directory),
        "SUPERPOD_STORE": store,
        "SUPERPOD_SELECTION": selection,
        **{name: value for name, value in between_hosts.items() if value},
    }


def launchers_own() -> frozenset[str]:
    """What superpod-run sets for every card whatever the user's environment says."""
    own = worker_environment(Place(0, 1, 0, 1), directory=Path(), store="", master_port=0)
    return frozenset(own) - {"OMP_NUM_THREADS"} | {"SUPERPOD_ADDRESS", "SUPERPOD_SECRET"}


_TRAVELLING = ("SUPERPOD_", "OMP_", "MKL_", "PYTHON", "TORCH", "MALLOC_", "GLIBC_TUNABLES")
_STAYING = tuple(_PREFIX + name for name in ("DIR", "STORE", "SECRET", "ADDRESS", "SSH", "SELECTION"))


def travelling_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """What superpod-run hands on to a job's other hosts unasked: settings of superpod, Python, torch, OpenMP, glibc."""
    env = os.environ if environ is None else environ
    return {name: env[name] for name in env if name.startswith(_TRAVELLING) and name not in _STAYING}


def exported(names: Collection[str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Those of `names` that are set, with their values: superpod-run's -x."""
    env = os.environ if environ is None else environ
    return {name: env[name] for name in names if name in env}


def node_variables(environ: Mapping[str, str] | None = None) -> NodeVariables:
    """What torchrun's variables say of a job's nodes."""
    return NodeVariables.read(os.environ if environ is None else environ)


def slurm_step(environ: Mapping[str, str] | None = None) -> SlurmStep | None:
    """This process's place in a step that Slurm's srun has started, if it is in one."""
    return SlurmStep.read(os.environ if environ is None else environ)


def ssh_connection(environ: Mapping[str, str] | None = None) -> tuple[str, str]:
    """For a process that ssh started here: the addresses of the host it came from and of this one; else "" twice."""
    env = os.environ if environ is None else environ
    parts = env.get("SSH_CONNECTION", "").split()
    return (parts[0], parts[2]) if len(parts) == 4 else ("", "")


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `changes` made to it, for a program that it starts."""
    return {**os.environ, **changes}


def bench_token(environ: Mapping[str, str] | None = None) -> str:
    """What tells a rank that superpod-bench has started from anybody else."""
    return (os.environ if environ is None else environ).get("SUPERPOD_BENCH", "")


def zygote_environment(card: Mapping[str, str], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of the process that cards are forked from: `card`'s, but for what differs between cards."""
    env = {"RES_OPTIONS": _QUICK_NAMES, **(os.environ if environ is None else environ), **card}
    return {name: value for name, value in env.items() if name not in CARD_VARIABLES}


class _Watched(os._Environ):  # type: ignore[type-arg]  # generic only for the type checker
    """os.environ that notices when somebody asks for one of CARD_VARIABLES."""

    asked: set[str]

    def __getitem__(self, key: str) -> str:
        if key in CARD_VARIABLES:
            self.asked.add(key)
        return str(super().__getitem__(key))


@contextlib.contextmanager
def noticing_card_variables() -> Iterator[set[str]]:
    """Within this block the set yielded fills with the CARD_VARIABLES that Python code looks up in os.environ."""
    watched: Any = os.environ
    before, watched.__class__, watched.asked = watched.__class__, _Watched, set()
    try:
        yield watched.asked
    finally:
        watched.__class__ = before
        del watched.asked


def allocator_is_tuned(environ: Mapping[str, str] | None = None) -> bool:
    """Whether the user has given the C library's allocator settings of their own, which superpod then leaves alone."""
    env = os.environ if environ is None else environ
    return any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in env)
