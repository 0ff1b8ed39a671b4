"""The agents of a job's hosts: called together before anything starts, then handed to the head."""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import socket
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from superpod.interconnect.env import travelling_environment
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.interfaces import local_address
from superpod.interconnect.secret import JobSecret
from superpod.launcher.agent import Agent
from superpod.launcher.gather import Gathering, check_agreement, machines
from superpod.launcher.head import Head
from superpod.launcher.job import JobSpec
from superpod.launcher.remote_agent import FarHost, RemoteAgent
from superpod.launcher.selection import selection_for
from superpod.launcher.share import Share
from superpod.launcher.signals import SignalInbox
from superpod.launcher.ssh import SshHost

_BURIAL = 4.0  # seconds for another ssh to end what a frozen host still has
_REACHED = 1  # second for it to get there: a host whose link is down must not keep the others waiting


class Crew:
    """Use: `join(head, directory)`; `close()` when the head has closed.

    Attributes:
        spec: the job, with its hosts.
        local: cards on this host.
    """

    def __init__(
        self, spec: JobSpec, far: Mapping[int, FarHost], addresses: Mapping[int, str], machines: Collection[str] = ()
    ) -> None:
        """A crew that has been called together.

        Args:
            far: the hosts that are not this one, by number.
            addresses: where each host's cards can be reached.
            machines: those hosts' machines in words.
        """
        self.spec, self._far, self._addresses = spec, far, addresses
        self.local = sum(size for number, size in enumerate(spec.sizes) if number not in far)
        self._burials: list[subprocess.Popen[bytes]] = []
        self._spared = set[int]()  # this process's children that do not belong to the agent here
        self._selection = selection_for(spec.sizes, machines, spec.variables()).text()
        several = len(spec.sizes) > 1
        self._secret = JobSecret.new().text if several and spec.reach.encrypt else ""

    def join(self, head: Head, directory: Path) -> None:
        """Give the head an agent for every host. `directory`: the job's on this host."""
        reach = self.spec.reach
        for number in range(len(self.spec.sizes)):
            share, tell = self._share(number, directory.name), partial(head.hear, number)
            if (host := self._far.get(number)) is None:
                head.add(Agent(share, directory, head.selector, tell, self._spared))
                continue
            host.line.send({"do": "job", "share": share.as_message(), "silence": float(reach.silence)})
            bury = partial(self._bury, self.spec.hosts[number].name) if isinstance(host, SshHost) else None
            head.add(RemoteAgent(host, reach.silence, head.selector, tell, bury))

    def _share(self, number: int, job: str) -> Share:
        spec = self.spec
        return Share(
            kind=spec.kind,
            target=spec.target,
            args=spec.args,
            start_method=spec.start_method,
            preload=spec.preload,
            auto_preload=spec.auto_preload,
            bind_to=spec.bind_to,
            number=number,
            names=tuple(host.plain for host in spec.hosts) or (socket.gethostname(),),
            sizes=spec.sizes,
            job=job,
            workdir=spec.reach.workdir,
            address=self._addresses.get(number, ""),
            secret=self._secret,
            selection=self._selection,
            more=spec.variables(),
        )

    def _bury(self, host: str, processes: list[int], groups: list[int], directory: str) -> None:
        """End what a host that has fallen silent may still have: stopped processes obey SIGKILL, if ssh gets there."""
        script = "".join(f"kill -9 {pid} 2>/dev/null\n" for pid in processes)
        script += "".join(f"kill -9 -{pid} 2>/dev/null\n" for pid in groups)
        if "/superpod-" in directory:
            script += f"rm -rf -- {shlex.quote(directory)}\n"
        with contextlib.suppress(OSError):
            shell = subprocess.Popen(
                self.spec.reach.shell(host, _REACHED),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._burials.append(shell)
            self._spared.add(shell.pid)
            assert shell.stdin is not None
            shell.stdin.write(script.encode())
            shell.stdin.close()

    def close(self) -> None:
        for shell in self._burials:
            with contextlib.suppress(subprocess.TimeoutExpired):
                shell.wait(_BURIAL)
            if shell.poll() is None:
                shell.kill()
                shell.wait()
        for host in self._far.values():
            host.close()


def call_hosts(spec: JobSpec, selector: selectors.BaseSelector, inbox: SignalInbox) -> Crew:
    """Start agents on all hosts of `spec` but this one, and check that they can run the job.

    Raises InvalidValue naming hosts that cannot, or a table of what differs between them; Interrupted.
    """
    _refuse_twins(spec)
    far: dict[int, FarHost] = {}
    environment = travelling_environment()
    try:
        for number, host in enumerate(spec.hosts):
            if not host.is_here():
                far[number] = SshHost(host.name, spec.reach, environment.get("PYTHONPATH", ""), selector)
        if not far:
            return Crew(spec, far, {})
        spec = replace(spec, reach=spec.reach.at(os.getcwd()))
        by_name = {spec.hosts[number].name: host for number, host in far.items()}
        answers = Gathering(by_name, selector, inbox).ask(_question(spec, environment))
        check_agreement(socket.gethostname(), answers)
        addresses = _addresses(spec, {n: answers[spec.hosts[n].name] for n in far})
        return Crew(spec, far, addresses, machines(answers))
    except BaseException:
        for known in far.values():
            known.close(kill=True)
        raise


def _question(spec: JobSpec, environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        "do": "muster",
        "environment": {**environment, **spec.reach.variables()},
        "workdir": spec.reach.workdir,
        "kind": spec.kind,
        "target": spec.target,
        "interface": spec.reach.interface,
    }


def _addresses(spec: JobSpec, answers: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Where each host's cards can be reached by the others'. Raises InvalidValue when this host has no way to them."""
    found = {number: str(answer["address"]) for number, answer in answers.items()}
    if len(found) < len(spec.hosts):
        here = local_address(spec.reach.interface or None, next(iter(found.values())))
        found |= {number: here for number in range(len(spec.hosts)) if number not in found}
    return found


def _refuse_twins(spec: JobSpec) -> None:
    """This host under several names would be two hosts in name only."""
    here = [host.name for host in spec.hosts if host.is_here()]
    if len(here) > 1:
        raise InvalidValue(f"hosts {', '.join(here)} are all this host, which must be named once; add up its cards")
