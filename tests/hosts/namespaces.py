"""Hosts on one machine: network namespaces joined by a bridge, each with its own name and a real OpenSSH server.

A host sees the file system of the machine, but has its own interfaces, loopback, abstract sockets and host name. What
runs on a host is found by its namespace, so that a test can say that nothing is left there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "unshare": "util-linux"}
SSHD_CONFIG = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
MaxStartups 100
LogLevel ERROR
"""
SSH_CONFIG = """
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def why_not():
    """Why there can be no such hosts here; "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [package for command, package in NEEDED.items() if shutil.which(command) is None]:
        return f"{', '.join(missing)} is not installed"
    name = f"probe{os.getpid()}"
    probe = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return f"network namespaces cannot be made: {probe.stderr.strip()}" if probe.returncode else ""


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass
class Namespace:
    """One host. `name` is its host name, too; `netns` the namespace's."""

    name: str
    netns: str
    address: str
    address6: str
    keeper: subprocess.Popen = field(repr=False)
    own: set = field(repr=False)

    def command(self, *words, folder="/"):
        """What runs `words` on this host, in `folder`."""
        target = str(self.keeper.pid)
        return ["nsenter", "--target", target, "--net", "--uts", "--mount", f"--wd={folder}", *map(str, words)]

    def pids(self):
        """What runs here, but for the host's own services."""
        own = {self.keeper.pid}
        found = []
        for pid in map(int, run("ip", "netns", "pids", self.netns).split()):
            with contextlib.suppress(OSError):
                comm = Path(f"/proc/{pid}/comm").read_text().strip()
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if comm not in self.own and pid not in own and state != "Z":
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


class Cluster:
    """Hosts a, b, c, ... in one network; they know one another's names from /etc/hosts, for there is no DNS."""

    def __init__(self, names):
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
        self.tag = f"sp{os.getpid() % 100000:x}"
        self.bridge = f"{self.tag}br"
        self.hosts = []
        self.own = {"sshd"}  # names of services that belong to the hosts, and not to a job
        self._services = []
        try:
            self._make(names)
        except BaseException:
            self.close()
            raise

    def _make(self, names):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "key")
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key")
        (self.folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=self.folder))
        (self.folder / "ssh_config").write_text(SSH_CONFIG.format(folder=self.folder))
        table = "127.0.0.1 localhost\n::1 localhost\n"
        table += "".join(f"10.77.0.{i} {name} digits-{i - 1}.digits\n" for i, name in enumerate(names, 1))
        (self.folder / "hosts").write_text(table)
        (self.folder / "resolv.conf").write_text("")
        Path("/run/sshd").mkdir(exist_ok=True)
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "link", "set", self.bridge, "up")
        for i, name in enumerate(names, 1):
            self.hosts.append(self._make_host(i, name))

    def _make_host(self, i, name):
        netns, outside = f"{self.tag}{name}", f"{self.tag}v{i}"
        address, address6 = f"10.77.0.{i}", f"fd77::{i}"
        run("ip", "netns", "add", netns)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", netns)
        run("ip", "link", "set", outside, "master", self.bridge, "up")
        run("ip", "-n", netns, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", netns, "address", "add", f"{address6}/64", "dev", "eth0", "nodad")
        keep = "echo 1 > /proc/sys/net/ipv6/conf/eth0/keep_addr_on_down"  # as IPv4 does, for tests that take it down
        run("ip", "netns", "exec", netns, "sh", "-c", keep)
        for device in ("lo", "eth0"):
            run("ip", "-n", netns, "link", "set", device, "up")
        setup = (
            f"hostname {name}; mount --bind {self.folder}/hosts /etc/hosts; "
            f"mount --bind {self.folder}/resolv.conf /etc/resolv.conf; "
            f"exec {shutil.which('sshd')} -D -e -f {self.folder}/sshd_config"
        )
        keeper = subprocess.Popen(
            ["ip", "netns", "exec", netns, "unshare", "--uts", "--mount", "sh", "-c", setup],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._services.append(keeper)
        host = Namespace(name, netns, address, address6, keeper, self.own)
        end = time.monotonic() + 20
        while not _listens(host):
            assert keeper.poll() is None, f"sshd on {name} has ended"
            assert time.monotonic() < end, f"sshd on {name} does not listen"
            time.sleep(0.02)
        return host

    @property
    def ssh(self):
        return f"ssh -F {self.folder}/ssh_config"

    def left(self):
        """What runs on the hosts beside their services: host name → processes."""
        return {host.name: found for host in self.hosts if (found := host.pids())}

    def wait_until_nothing_is_left(self, seconds):
        end = time.monotonic() + seconds
        while self.left() and time.monotonic() < end:
            time.sleep(0.02)
        return self.left()

    def close(self):
        for host in self.hosts:
            host.signal(signal.SIGKILL)
        for keeper in self._services:
            keeper.kill()
            keeper.wait()
        for host in self.hosts:
            subprocess.run(["ip", "netns", "delete", host.netns], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _listens(host):
    """Whether sshd accepts connections in the host's namespace."""
    probe = subprocess.run(
        host.command("python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 22), 1)"),
        capture_output=True,
        check=False,
    )
    return probe.returncode == 0
