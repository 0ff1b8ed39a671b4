"""A secret for the tasks of a Slurm step, by MUNGE, which Slurm itself trusts: a credential that only the same user on
the cluster's hosts can make and read.

Task 0 listens; another task shows a credential and a word that it made up; task 0 answers with a credential for this
user alone that holds the word, the job's secret and the port of the agents' channel. Nothing that others can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.secret import JobSecret

_MOST = 8192  # bytes of a credential
_AT_ONCE = 64  # connections that may be under way; strangers do not get more
_PATIENCE = 5.0  # seconds for an answer
_TOOL_WITHIN = 10  # seconds for munge and unmunge
_AGAIN = 0.3  # seconds until task 0 is called again


def has_munge() -> bool:
    """Whether there are both commands, and a munged that answers them."""
    return bool(shutil.which("munge") and shutil.which("unmunge")) and _made({}) is not None


def _made(content: dict[str, Any]) -> bytes | None:
    """A credential that only this user can read; None when munge cannot."""
    command = ["munge", "--restrict-uid", str(os.geteuid())]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, input=json.dumps(content).encode(), capture_output=True, timeout=_TOOL_WITHIN, check=True
        )
        return done.stdout.strip()
    return None


def _read(credential: bytes) -> dict[str, Any] | None:
    """What is in a credential that this user has made, on whichever host, a moment ago; None for any other."""
    if not credential.startswith(b"MUNGE:"):
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        done = subprocess.run(
            ["unmunge", "--numeric", "--keys", "STATUS,UID"],
            input=credential,
            capture_output=True,
            timeout=_TOOL_WITHIN,
            check=True,  # too old, replayed and forged ones exit with another code
        )
        head, _, content = done.stdout.partition(b"\n\n")
        fields = dict(line.split(b":", 1) for line in head.splitlines() if b":" in line)
        if fields[b"UID"].strip() == str(os.geteuid()).encode():
            found = json.loads(content)
            return found if isinstance(found, dict) else None
    return None


class SecretDesk:
    """Task 0's end: hands out the secret. Registers itself in `selector`, whose keys have functions as their data."""

    def __init__(self, ports: Sequence[int], step: str, selector: selectors.BaseSelector) -> None:
        """`ports`: it takes the first free one; `step`: the name of the job step. Raises InvalidValue."""
        self.secret = JobSecret.new()
        self._step, self._selector = step, selector
        self._port = 0  # of the agents' channel
        self._callers: dict[socket.socket, bytes] = {}
        self._listener = _first_free(ports)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def announce(self, port: int) -> None:
        """Where the agents' channel is."""
        self._port = port

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            caller, _ = self._listener.accept()
            caller.setblocking(False)
            if len(self._callers) >= _AT_ONCE:
                self._drop(next(iter(self._callers)))  # the oldest
            self._callers[caller] = b""
            self._selector.register(caller, selectors.EVENT_READ, lambda: self._hear(caller))

    def _hear(self, caller: socket.socket) -> None:
        if caller not in self._callers:  # dropped in this very round of the loop
            return
        try:
            data = caller.recv(_MOST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._callers[caller] += data
        if data and b"\n" not in self._callers[caller] and len(self._callers[caller]) < _MOST:
            return
        asked = _read(self._callers[caller].strip()) or {}
        if asked.get("step") == self._step and isinstance(asked.get("word"), str):
            answer = _made({"word": asked["word"], "secret": self.secret.text, "port": self._port})
            with contextlib.suppress(OSError):
                caller.sendall((answer or b"") + b"\n")
        self._drop(caller)

    def _drop(self, caller: socket.socket) -> None:
        del self._callers[caller]
        self._selector.unregister(caller)
        caller.close()

    def close(self) -> None:
        for caller in list(self._callers):
            self._drop(caller)
        self._selector.unregister(self._listener)
        self._listener.close()


def _first_free(ports: Sequence[int]) -> socket.socket:
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    for port in ports:
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", port), family=family, backlog=1024, dualstack_ipv6=family == socket.AF_INET6
            )
    raise InvalidValue(
        f"one of the ports {ports[0]} to {ports[-1]} must be free on this host for the job's tasks to meet; "
        "end what holds them, or start another step"
    )


def fetch(endpoints: Sequence[tuple[str, int]], step: str, within: float) -> tuple[JobSecret, int]:
    """The secret and the port of the agents' channel, for another task. Raises InvalidValue after `within` seconds."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        for host, port in endpoints:
            with contextlib.suppress(OSError):
                found = _ask(host, port, step)
                if found is not None:
                    return found
        time.sleep(_AGAIN)  # task 0 may start later; nothing tells when
    where = endpoints[0][0]
    raise InvalidValue(f"task 0 of {step} has not been there at {where} within {within:.0f} s; see its output")


def _ask(host: str, port: int, step: str) -> tuple[JobSecret, int] | None:
    with socket.create_connection((host, port), timeout=_PATIENCE) as line:
        word = secrets.token_hex(16)
        line.sendall((_made({"step": step, "word": word}) or b"") + b"\n")
        data = b""
        while b"\n" not in data and len(data) < _MOST and (more := line.recv(_MOST)):
            data += more
    answer = _read(data.strip()) or {}
    if answer.get("word") != word or not isinstance(answer.get("port"), int) or not answer["port"]:
        return None
    return JobSecret.from_text(str(answer["secret"])), answer["port"]
