"""What the environment says of the hosts of a job that somebody else has started: torchrun's variables, Slurm's.

env.py documents the variables, and hands its own to these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from superpod.interconnect.hosts_text import endpoint_text


@dataclass(frozen=True, slots=True)
class NodeVariables:
    """PET_NNODES and so on, as text; "" where unset. torchrun reads the same ones."""

    nnodes: str = ""
    node_rank: str = ""
    endpoint: str = ""
    backend: str = ""
    job: str = ""
    secret: str = ""

    @staticmethod
    def read(env: Mapping[str, str]) -> NodeVariables:
        address, port = env.get("PET_MASTER_ADDR", ""), env.get("PET_MASTER_PORT", "")
        static = endpoint_text(address, port) if address else ""
        return NodeVariables(
            nnodes=env.get("PET_NNODES", ""),
            node_rank=env.get("PET_NODE_RANK", ""),
            endpoint=env.get("PET_RDZV_ENDPOINT", "") or static,
            backend=env.get("PET_RDZV_BACKEND", ""),
            job=env.get("PET_RDZV_ID", ""),
            secret=env.get("SUPERPOD_SECRET", ""),
        )


@dataclass(frozen=True, slots=True)
class SlurmStep:
    """This process's place in a job step that srun has started.

    Attributes:
        task: SLURM_PROCID; tasks: SLURM_NTASKS, how many there are.
        job, step: their numbers.
        nodes: SLURM_STEP_NODELIST, such as "n[1-3,7]".
    """

    task: int
    tasks: int
    job: str
    step: str
    nodes: str

    @staticmethod
    def read(env: Mapping[str, str]) -> SlurmStep | None:
        """None outside a step that srun has started.

        An sbatch or salloc shell has SLURM_JOB_ID, and SLURM_PROCID=0 too, but not SLURM_STEP_NODELIST; and the step
        that runs a batch script has no number. SLURM_STEP_NUM_TASKS says how many tasks the step has, where
        SLURM_NTASKS may be what a surrounding sbatch asked for.
        """
        names = ("SLURM_PROCID", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST")
        task, job, step, nodes = (env.get(name, "") for name in names)
        tasks = env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS", "")
        if not (nodes and job and task.isdecimal() and tasks.isdecimal() and step.isdecimal()):
            return None
        return SlurmStep(int(task), int(tasks), job, step, nodes)
