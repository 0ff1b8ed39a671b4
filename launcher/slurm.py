"""A job step that Slurm's srun has started: superpod-run runs once in every task, and task 0 is the head of the job."""

from __future__ import annotations

import re
import socket
import subprocess
import zlib

from superpod.interconnect.env_nodes import SlurmStep
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.secret import JobSecret
from superpod.launcher.munge import has_munge
from superpod.launcher.nodes import NodeSpec, shares

_FIRST_PORT, _LAST_PORT = 20000, 32000  # below Linux's range for outgoing connections
_CANDIDATES = 8  # ports of which the head takes the first free one: another step may have this one's
_MOST_NODES = 1 << 16  # Slurm's own limit is 65533
_ASK_WITHIN = 10  # seconds for scontrol


def node_names(text: str) -> list[str]:
    """Slurm's short form in full: "n[08-10,12],m1" → n08, n09, n10, n12, m1. Raises InvalidValue."""
    parts = [_expanded(part) for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+", text)]
    if not parts or not all(parts) or text.count("[") != text.count("]"):
        raise InvalidValue(f"SLURM_STEP_NODELIST={text!r} must be names of nodes, such as n[1-3,7]; start with srun")
    return [name for names in parts for name in names]


def _expanded(part: str) -> list[str]:
    """Nothing, if what stands in brackets is no numbers."""
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if match is None:
        return [part]
    before, ranges, after = match.groups()
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", ranges):
        return []
    ends = [(low, int(low), int(high or low)) for low, _, high in (one.partition("-") for one in ranges.split(","))]
    following = _expanded(after)
    if sum(max(0, last - first + 1) for _, first, last in ends) * len(following) > _MOST_NODES:
        raise InvalidValue(f"SLURM_STEP_NODELIST: {part!r} must be at most {_MOST_NODES} nodes; start with srun")
    numbers = [str(n).zfill(len(low)) for low, first, last in ends for n in range(first, last + 1)]
    return [f"{before}{number}{rest}" for number in numbers for rest in following]


def step_spec(step: SlurmStep, *, total: int | None, each: int, secret: str, encrypt: bool) -> NodeSpec:
    """This task's part in the job.

    Args:
        total: cards of the whole job; None: every task has `each`.
        secret: the job's, as text, when the environment has one; "": MUNGE hands one out.
    Raises:
        InvalidValue: there is neither; a task would have no card; a node has no address.
    """
    cards = each if total is None else shares(total, step.tasks)[step.task]
    by_munge = encrypt and not secret
    if by_munge and not has_munge():
        raise InvalidValue(
            f"a step of {step.tasks} tasks must have a secret, or anybody on the cluster could join it: no MUNGE is "
            "here to hand one out, so export SUPERPOD_SECRET=$(openssl rand -hex 32) before srun; or say "
            "--no-encryption, in a private network"
        )
    known = JobSecret.from_text(secret) if encrypt and secret else None
    host = "" if step.task == 0 else address_of(node_names(step.nodes)[0])
    spot = zlib.crc32(f"{step.job}.{step.step}".encode()) % ((_LAST_PORT - _FIRST_PORT) // _CANDIDATES)
    first = _FIRST_PORT + spot * _CANDIDATES
    endpoints = tuple((host, port) for port in range(first, first + _CANDIDATES))
    return NodeSpec(step.tasks, step.task, cards, endpoints, known, f"slurm-{step.job}.{step.step}", by_munge)


def address_of(node: str) -> str:
    """Where a node is reached: its name if that can be looked up, else what Slurm itself uses."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        return _slurms_address(node)
    return node


def _slurms_address(node: str) -> str:
    try:
        asked = subprocess.run(
            ["scontrol", "show", "node", "-o", node], capture_output=True, text=True, timeout=_ASK_WITHIN, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidValue(f"node {node} has no address here, and scontrol does not know it ({error})") from error
    match = re.search(r"\bNodeAddr=(\S+)", asked.stdout)
    if match is None:
        raise InvalidValue(f"node {node} has no address here, and scontrol names none; see `scontrol show node {node}`")
    return match[1]
