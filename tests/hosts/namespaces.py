"""The hosts of benchmarks/namespaces.py, watched: what runs there, so that a test can say what is left."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from superpod.benchmarks.namespaces import Namespace, Namespaces, run
from superpod.benchmarks.namespaces import why_not as why_not

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Host(Namespace):
    """`own`: names of services that belong to the host, and not to a job."""

    own: set = field(default_factory=lambda: {"sshd"}, repr=False)

    def pids(self):
        """What runs here, but for the host's own services."""
        found = []
        for pid in map(int, run("ip", "netns", "pids", self.netns).split()):
            with contextlib.suppress(OSError):
                comm = Path(f"/proc/{pid}/comm").read_text().strip()
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if comm not in self.own and pid != self.keeper.pid and state != "Z":
                    found.append((pid, comm))
        return found

    def named(self, name):
        return [pid for pid, comm in self.pids() if comm == name]

    def signal(self, signum):
        """To everything that runs here, but for the host's own services."""
        for pid, _ in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def link(self, state):
        run("ip", "-n", self.netns, "link", "set", "eth0", state)


class Cluster(Namespaces):
    """Hosts a, b, c, ...; in Kubernetes' manner they have a second name."""

    kind = Host
    aliases = "digits-{index}.digits"

    def belongs(self, *names):
        """From now on services of these names belong to the hosts."""
        for host in self.hosts:
            host.own |= set(names)

    def left(self):
        """What runs on the hosts beside their services: host name → processes."""
        return {host.name: found for host in self.hosts if (found := host.pids())}

    def wait_until_nothing_is_left(self, seconds):
        end = time.monotonic() + seconds
        while self.left() and time.monotonic() < end:
            time.sleep(0.02)
        return self.left()
