"""superpod-run's options for where the cards run: how many, on which hosts, and how those are reached."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from superpod.interconnect.env import LauncherSettings, Settings, exported, node_variables, slurm_step
from superpod.interconnect.env_nodes import NodeVariables
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.hosts_text import cards_text, endpoint_text
from superpod.launcher.hosts import Host, parse_hosts, read_hostfile, spread
from superpod.launcher.nodes import PORT, NodeSpec, node_spec
from superpod.launcher.reach import SILENCE, Reach, exports, shell_words
from superpod.launcher.slurm import step_spec

_NODE_OPTIONS = (
    *("node_rank", "rdzv_endpoint", "master_addr", "master_port", "rdzv_backend", "rdzv_id", "secret_file"),
)  # what makes no sense where nobody joins


def add_cards(cli: argparse.ArgumentParser) -> None:
    """The options that say how many cards there are."""
    cli.add_argument("-n", "--np", type=int, metavar="N", dest="cards", help="number of cards of the job (default 1)")
    cli.add_argument(
        "--nproc-per-node",
        "--nproc_per_node",
        type=_cards,
        metavar="K",
        help="number of cards on each host, or auto: one a processor (or PET_NPROC_PER_NODE)",
    )


def _cards(text: str) -> int:
    try:
        return cards_text(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def add_hosts(cli: argparse.ArgumentParser) -> None:
    """The option group."""
    group = cli.add_argument_group(
        "several hosts",
        "Ranks go by hosts in the order given. Every host needs the same Python, superpod and torch, and the script "
        "under the same path. What cards of different hosts tell one another is encrypted.",
    )
    add = group.add_argument
    add("-H", "--hosts", "--host", metavar="A:8,B:8", help="hosts and their numbers of cards; started through ssh")
    add(
        "--hostfile",
        type=Path,
        metavar="FILE",
        help="the same from a file in Open MPI's format: `a slots=8`",
    )
    add(
        "--workdir",
        "--wdir",
        metavar="DIR",
        default="",
        help="where the cards run, on all hosts (default: here)",
    )
    add(
        "-x",
        "--export",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="give all cards this variable. Other hosts get SUPERPOD_*, PYTHON*, TORCH*, OMP_*, MKL_*, MALLOC_* anyway",
    )
    add(
        "--python",
        metavar="PATH",
        default="",
        help="interpreter on the other hosts (default: this one's path)",
    )
    add(
        "--ssh",
        metavar="COMMAND",
        help="ssh with options, or another command (or SUPERPOD_SSH)",
    )
    _add_network(add)


def _add_network(add: Callable[..., Any]) -> None:
    add(
        "--interface",
        metavar="NAMES",
        default="",
        help="network interfaces for the cards, as NCCL_SOCKET_IFNAME has them: eth0,ib or ^docker0 (default: the way "
        "to the other hosts)",
    )
    add("--ports", metavar="LOW-HIGH", default="0", help="ports for the cards, for firewalls (default: any free ones)")
    add(
        "--host-timeout",
        "--host_timeout",
        type=float,
        metavar="SECONDS",
        default=SILENCE,
        help=f"a host that says nothing for so long is lost, and the job ends (default {SILENCE:g})",
    )
    add(
        "--no-encryption",
        "--no_encryption",
        action="store_true",
        help="cards of different hosts speak in clear: for private networks only, where nobody else listens or speaks",
    )


def add_nodes(cli: argparse.ArgumentParser) -> None:
    """The option group."""
    group = cli.add_argument_group(
        "several hosts, superpod-run being started on each of them",
        "As torchrun has it; each option also as a variable: PET_NNODES and so on. srun needs none of them.",
    )
    add = group.add_argument
    add("--nnodes", metavar="N", help="number of hosts (default 1)")
    add("--node-rank", "--node_rank", metavar="R", help="which of them this is, from 0; node 0 runs the job")
    add("--rdzv-endpoint", "--rdzv_endpoint", metavar="HOST:PORT", help="where node 0 is reached (default port 29400)")
    add("--master-addr", "--master_addr", metavar="HOST", help="the same in two options")
    add("--master-port", "--master_port", metavar="PORT", help="see --master-addr")
    add("--rdzv-backend", "--rdzv_backend", metavar="B", help="c10d or static; makes no difference here")
    add("--rdzv-id", "--rdzv_id", metavar="NAME", help="the job's name")
    add("--standalone", action="store_true", help="this host only, whatever the variables say")
    add(
        "--secret-file",
        "--secret_file",
        type=Path,
        metavar="FILE",
        help="64 hexadecimal digits that only the job's hosts know (or SUPERPOD_SECRET)",
    )


def nodes_from(options: argparse.Namespace) -> NodeSpec | None:
    """None unless there are several nodes. Raises InvalidValue."""
    if options.standalone or options.hosts is not None or options.hostfile is not None:
        _refuse_nodes(options)
        return None
    known, step = node_variables(), slurm_step()
    if Settings.read().directory is not None:  # a card's own job, not the one that it belongs to
        known, step = NodeVariables(secret=known.secret), None
    nnodes = options.nnodes or known.nnodes or "1"
    each = LauncherSettings.read().nproc_per_node if options.nproc_per_node is None else options.nproc_per_node
    secret, encrypt = _secret(options.secret_file) or known.secret, not options.no_encryption
    if options.nnodes is None and step is not None and step.tasks > 1:
        _check_total(options, step.tasks)
        return step_spec(step, total=options.cards, each=each, secret=secret, encrypt=encrypt)
    if nnodes == "1":
        _refuse_rank(options)
        return None
    spec = node_spec(
        nnodes=nnodes,
        node_rank=options.node_rank or known.node_rank,
        endpoint=options.rdzv_endpoint or _master(options) or known.endpoint,
        backend=options.rdzv_backend or known.backend,
        job=options.rdzv_id or known.job,
        secret=secret,
        total=options.cards,
        each=each,
        encrypt=encrypt,
    )
    _check_total(options, spec.count)
    return spec


def _refuse_nodes(options: argparse.Namespace) -> None:
    """Raises InvalidValue: where the options say that nobody joins, what is typed of nodes would be ignored."""
    if options.nnodes not in (None, "1"):
        raise InvalidValue(f"--nnodes {options.nnodes} must not go with --standalone or --hosts, which say it, too")
    _refuse_rank(options)
    if options.standalone:
        return
    for name in _NODE_OPTIONS:
        if (value := getattr(options, name)) is not None:
            option = "--" + name.replace("_", "-")
            raise InvalidValue(
                f"{option} {value} must not go with --hosts or --hostfile, which start the other hosts themselves; "
                "leave one out"
            )


def _refuse_rank(options: argparse.Namespace) -> None:
    if options.node_rank not in (None, "0"):
        raise InvalidValue(
            f"--node-rank {options.node_rank} must be 0 with one node; say on all nodes how many there are: --nnodes N"
        )


def _check_total(options: argparse.Namespace, count: int) -> None:
    total, each = options.cards, options.nproc_per_node
    if None not in (total, each) and total != count * each:
        raise InvalidValue(
            f"-n {total} must be {count * each}: {count} nodes with --nproc-per-node {each}; give one of them"
        )


def _master(options: argparse.Namespace) -> str:
    """--master-addr and --master-port as an endpoint; "" without them."""
    address, port = options.master_addr, options.master_port
    if address is None:
        if port is not None and options.rdzv_endpoint is None:
            raise InvalidValue(f"--master-port {port} must go with --master-addr HOST; add it, or say --rdzv-endpoint")
        return ""
    return endpoint_text(address, port or str(PORT))


def _secret(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue(f"--secret-file {path} must be a file that can be read: {error}") from error


def reach_from(options: argparse.Namespace) -> Reach:
    """Raises InvalidValue."""
    from superpod.interconnect.interfaces import check_ports

    names = [word for word in options.export if "=" not in word]
    try:
        ports = check_ports(options.ports)
    except InvalidValue as error:
        raise InvalidValue(f"--ports {options.ports}: {error}") from error
    return Reach(
        ssh=shell_words(options.ssh or LauncherSettings.read().ssh),
        python=options.python,
        workdir=str(Path(options.workdir).absolute()) if options.workdir else "",
        exports=exports(options.export, exported(names)),
        interface=options.interface,
        ports=ports,
        silence=options.host_timeout,
        encrypt=not options.no_encryption,
    )


def cards_from(options: argparse.Namespace) -> tuple[int, tuple[Host, ...]]:
    """The number of cards and, unless all are on this host, the hosts. Raises InvalidValue."""
    total, each = options.cards, options.nproc_per_node
    if options.hosts is None and options.hostfile is None:
        if None not in (total, each) and total != each:
            raise InvalidValue(f"-n {total} and --nproc-per-node {each} must be the same on one host; give one of them")
        return next(n for n in (total, each, LauncherSettings.read().nproc_per_node) if n is not None), ()
    if options.hosts is not None and options.hostfile is not None:
        raise InvalidValue(
            f"--hosts {options.hosts} and --hostfile {options.hostfile} must not both be given; leave one"
        )
    known = parse_hosts(options.hosts) if options.hosts is not None else read_hostfile(options.hostfile)
    hosts = spread(known, total, each)
    return sum(host.cards for host in hosts), hosts
