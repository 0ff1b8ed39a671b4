"""superpod-bench namespaces: hosts on one machine, each a network namespace with an OpenSSH server of its own.

A host sees the file system of the machine, but has its own interfaces, loopback, abstract sockets and host name. All
are joined by a bridge and know one another's names from /etc/hosts, for there is no DNS. Whatever happens to the
process that made them, a shell waits for its end and removes them, with all that runs there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from superpod.benchmarks.job import end
from superpod.interconnect.env import child_environment
from superpod.interconnect.errors import InvalidValue

NEEDED = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "nsenter": "util-linux"}
_LISTENS_WITHIN = 20.0  # seconds that a server may take to start
_CLEAN_WITHIN = 30.0  # seconds
_SSHD_CONFIG = """
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
_SSH_CONFIG = """
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""
_CLEANER = """
read wait_until_whoever_made_them_has_ended
for name in {names}; do
  for pid in $(ip netns pids $name 2>/dev/null); do kill -9 $pid 2>/dev/null; done
  ip netns delete $name 2>/dev/null
done
ip link delete {bridge} 2>/dev/null
rm -rf {folder}
"""
_DESCRIPTION = """\
Make hosts on this machine, called a, b, c and so on, and run a command on the first of them; then remove them and all
that runs there. Each is a network namespace with an OpenSSH server, reached through ssh from the others; SUPERPOD_SSH
says how. As root.

  superpod-bench namespaces 2 -- superpod-run --hosts a:4,b:4 train.py"""


def why_not() -> str:
    """Why there can be no such hosts here; "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := sorted({package for command, package in NEEDED.items() if shutil.which(command) is None}):
        return f"{', '.join(missing)} is not installed"
    name = f"probe{os.getpid()}"
    probe = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return f"network namespaces cannot be made: {probe.stderr.strip()}" if probe.returncode else ""


def run(*command: object) -> str:
    """Run a command to its end; what it has printed. Raises RuntimeError with what it says of a failure."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Namespace:
    """One host. `name` is its host name, too; `netns` the namespace's; `keeper` its ssh server."""

    name: str
    netns: str
    address: str
    address6: str
    keeper: subprocess.Popen[bytes] = field(repr=False)

    def command(self, *words: object, folder: str | Path = "/") -> list[str]:
        """What runs `words` on this host, in `folder`."""
        target = str(self.keeper.pid)
        return ["nsenter", "--target", target, "--net", "--uts", "--mount", f"--wd={folder}", *map(str, words)]


class Namespaces:
    """Hosts in one network. Attributes: `hosts`, and `ssh`, the command that leads from one to another."""

    kind: ClassVar[type[Namespace]] = Namespace
    aliases: ClassVar[str] = ""  # more names of a host, {index} being its number from 0

    def __init__(self, names: Sequence[str]) -> None:
        """Make them. Raises RuntimeError or OSError when that fails; then nothing is left."""
        self.folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
        self.tag = f"sp{os.getpid() % 100000:x}"
        self.ssh = f"ssh -F {self.folder}/ssh_config"
        self.hosts: list[Any] = []
        self._bridge = f"{self.tag}br"
        script = _CLEANER.format(
            names=" ".join(self.tag + name for name in names), bridge=self._bridge, folder=self.folder
        )
        self._cleaner = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)
        self._keepers: list[subprocess.Popen[bytes]] = []
        try:
            self._make(names)
        except BaseException:
            self.close()
            raise

    def _make(self, names: Sequence[str]) -> None:
        for key in ("key", "host_key"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key)
        table = "127.0.0.1 localhost\n::1 localhost\n::ffff:127.0.0.1 localhost\n"
        table += "".join(f"10.77.0.{i} {name} {self.aliases.format(index=i - 1)}\n" for i, name in enumerate(names, 1))
        for file, text in (
            ("sshd_config", _SSHD_CONFIG.format(folder=self.folder)),
            ("ssh_config", _SSH_CONFIG.format(folder=self.folder)),
            ("hosts", table),
            ("resolv.conf", ""),
        ):
            (self.folder / file).write_text(text)
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own demand
        run("ip", "link", "add", self._bridge, "type", "bridge")
        run("ip", "link", "set", self._bridge, "up")
        for i, name in enumerate(names, 1):
            self.hosts.append(self._host(i, name))

    def _host(self, i: int, name: str) -> Namespace:
        netns, outside = f"{self.tag}{name}", f"{self.tag}v{i}"
        address, address6 = f"10.77.0.{i}", f"fd77::{i}"
        run("ip", "netns", "add", netns)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", netns)
        run("ip", "link", "set", outside, "master", self._bridge, "up")
        run("ip", "-n", netns, "address", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", netns, "address", "add", f"{address6}/64", "dev", "eth0", "nodad")
        keep = "echo 1 > /proc/sys/net/ipv6/conf/eth0/keep_addr_on_down"  # as IPv4 does, where it is taken down
        run("ip", "netns", "exec", netns, "sh", "-c", keep)
        for device in ("lo", "eth0"):
            run("ip", "-n", netns, "link", "set", device, "up")
        setup = (
            f"hostname {name}; mount --bind {self.folder}/hosts /etc/hosts; "
            f"mount --bind {self.folder}/resolv.conf /etc/resolv.conf; "
            f"exec {shutil.which('sshd')} -D -e -f {self.folder}/sshd_config"
        )
        command = ["ip", "netns", "exec", netns, "unshare", "--uts", "--mount", "sh", "-c", setup]
        nothing = subprocess.DEVNULL
        keeper = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
        self._keepers.append(keeper)
        host = self.kind(name, netns, address, address6, keeper)
        until = time.monotonic() + _LISTENS_WITHIN
        while not _listens(host):
            if keeper.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"sshd on {name} does not listen")
            time.sleep(0.02)
        return host

    def close(self) -> None:
        """Remove them and all that runs there."""
        self._cleaner.communicate(b"\n", timeout=_CLEAN_WITHIN)
        for keeper in self._keepers:
            keeper.kill()
            keeper.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _listens(host: Namespace) -> bool:
    """Whether sshd accepts connections in the host's namespace."""
    probe = "import socket; socket.create_connection(('127.0.0.1', 22), 1)"
    command = host.command(sys.executable, "-I", "-S", "-c", probe)
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main(argv: Sequence[str]) -> int:
    """The subcommand; the exit code is the command's. Raises InvalidValue."""
    parser = argparse.ArgumentParser(
        "superpod-bench namespaces", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("count", type=int, metavar="N", help="how many hosts")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what runs on the first one")
    args = parser.parse_args(argv)
    command, most = args.command[args.command[:1] == ["--"] :], len(string.ascii_lowercase)
    if not 1 <= args.count <= most:
        raise InvalidValue(f"namespaces {args.count} must be a number of hosts from 1 to {most}, a to z")
    if not command:
        raise InvalidValue(f"namespaces {args.count} needs a command to run there: namespaces {args.count} -- COMMAND")
    if reason := why_not():
        raise InvalidValue(f"there can be no hosts here: {reason}")
    with Namespaces(string.ascii_lowercase[: args.count]) as cluster:
        here = cluster.hosts[0].command(*command, folder=Path.cwd())
        process = subprocess.Popen(here, env=child_environment({"SUPERPOD_SSH": cluster.ssh}))
        try:
            code = _wait(process)
        finally:
            end(process)
    return code if code >= 0 else 128 - code


def _wait(process: subprocess.Popen[bytes]) -> int:
    """A Ctrl-C is the command's, which gets it, too: it has its own way to end."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
