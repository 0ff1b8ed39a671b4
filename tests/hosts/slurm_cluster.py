"""A real Slurm on hosts that are network namespaces: munged, slurmctld on the first host, slurmd on some of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

NEEDED = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "munged": "munge",
    "runuser": "util-linux",
}
SOCKET = Path("/run/munge/munge.socket.2")
CONFIG = """
ClusterName=superpod
SlurmctldHost={head}({head_address})
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
KillWait=10
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE
"""


def why_not():
    missing = sorted({package for command, package in NEEDED.items() if shutil.which(command) is None})
    return f"{', '.join(missing)} is not installed" if missing else ""


class Slurm:
    """Use: run commands on hosts with `environment`, which names the configuration."""

    def __init__(self, hosts):
        """`hosts`: Namespaces; the first one is the controller's, and each is a node."""
        self.hosts = hosts
        self.folder = Path("/tmp") / f"slurm-{os.getpid()}"
        self._services = []
        self.environment = {"SLURM_CONF": f"{self.folder}/slurm.conf"}
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self):
        for name in ("state", "munge", *(f"spool-{host.name}" for host in self.hosts)):
            (self.folder / name).mkdir(parents=True)
        SOCKET.parent.mkdir(exist_ok=True)
        mount = f"mount --bind {self.folder}/munge {SOCKET.parent} && exec sleep infinity"
        self._keeper = self._start(["unshare", "--mount", "sh", "-c", mount])
        self._start_munged()
        self._write_config()
        self._start(self.command(self.hosts[0], "slurmctld", "-D", "-f", self.folder / "slurm.conf"))
        for host in self.hosts:
            self._start(self.command(host, "slurmd", "-D", "-N", host.name, "-f", self.folder / "slurm.conf"))
        self._wait(self._is_idle, "a node of Slurm")

    def command(self, host, *words, folder="/"):
        """What runs `words` on `host`, where this Slurm's MUNGE is the one that everybody finds."""
        spaces = [f"--{kind}=/proc/{host.keeper.pid}/ns/{kind}" for kind in ("net", "uts")]
        return ["nsenter", *spaces, f"--mount=/proc/{self._keeper.pid}/ns/mnt", f"--wd={folder}", *map(str, words)]

    def _start_munged(self):
        """At the place where everybody looks for it, but seen by this Slurm only."""
        folder, key = self.folder / "munge", self.folder / "munge/key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        for path in (folder, key):
            shutil.chown(path, "munge", "munge")
        files = [f"--{name}-file={folder}/{name}" for name in ("key", "pid", "seed", "log")]
        inside = ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt", "runuser", "-u", "munge", "--"]
        self._wait(lambda: _mounted(self._keeper.pid), "the folder of munged")
        self._start([*inside, "munged", "--foreground", "--force", f"--socket={SOCKET}", *files])
        self._wait(lambda: (folder / SOCKET.name).exists(), "munged")

    def _write_config(self):
        nodes = "\n".join(
            f"NodeName={host.name} NodeHostname={host.name} NodeAddr={host.address} CPUs=64 State=UNKNOWN"
            for host in self.hosts
        )
        head, names = self.hosts[0], ",".join(host.name for host in self.hosts)
        text = CONFIG.format(folder=self.folder, head=head.name, head_address=head.address, nodes=nodes, names=names)
        (self.folder / "slurm.conf").write_text(text)

    def _start(self, command):
        service = subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._services.append(service)
        return service

    def _is_idle(self):
        asked = subprocess.run(
            self.command(self.hosts[0], "sinfo", "-h", "-N", "-o", "%T"),
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return asked.stdout.split() == ["idle"] * len(self.hosts)

    def _wait(self, there, what):
        end = time.monotonic() + 30
        while not there():
            assert time.monotonic() < end, f"{what} is not there: {self.logs()}"
            time.sleep(0.1)

    def logs(self):
        texts = [path.read_text(errors="replace")[-1500:] for path in self.folder.rglob("*log")]
        return "\n".join(texts)

    def pids(self):
        """Its services: what a test finds on the hosts beside them is a job's."""
        return {service.pid for service in self._services}

    def close(self):
        for service in reversed(self._services):
            service.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.wait(10)
            if service.poll() is None:
                service.kill()
                service.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _mounted(pid):
    return f" {SOCKET.parent} " in Path(f"/proc/{pid}/mountinfo").read_text()
