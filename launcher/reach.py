"""How the other hosts of a job are reached, and what their agents are told beside the job itself."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from superpod.interconnect.env import launchers_own
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import MOST_SECONDS

SILENCE = 3.0  # seconds: a host that says nothing for so long is lost; its agent speaks every half second
_CONNECT = 15  # seconds that ssh may take to reach a host
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Reach:
    """Attributes:
    ssh: the command that starts a command on a host, such as ("ssh", "-p", "2222").
    python: the interpreter on the other hosts; "" for the path of the one that runs here.
    workdir: the directory in which the cards run, on all hosts; "" for the one that the launcher was started in.
    exports: variables that all cards get, on all hosts.
    interface: which of a host's network interfaces the cards use, as NCCL_SOCKET_IFNAME has it; "" for the one on the
        way to the other hosts.
    ports: 0, or a range of ports for the cards, such as "29600-29700".
    silence: seconds after which a host that says nothing is lost.
    encrypt: whether what cards of several hosts tell one another is encrypted.
    """

    ssh: tuple[str, ...] = ("ssh",)
    python: str = ""
    workdir: str = ""
    exports: Mapping[str, str] = field(default_factory=dict)
    interface: str = ""
    ports: str = "0"
    silence: float = SILENCE
    encrypt: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.silence <= MOST_SECONDS:
            raise InvalidValue(
                f"--host-timeout {self.silence:g} must be 1 second or more, for a busy host speaks late; such as 3; "
                f"at most {MOST_SECONDS:.0f}"
            )

    def command(self, host: str, module: str, path: str) -> list[str]:
        """What starts `python -m module` on `host`. `path`: PYTHONPATH there; "" if it needs none."""
        words = [*(("env", f"PYTHONPATH={path}") if path else ()), self.python or sys.executable, "-u", "-m", module]
        return [*self._ssh(_CONNECT), host, shlex.join(["exec", *words])]

    def shell(self, host: str, within: int) -> list[str]:
        """What starts a shell on `host` that reads its commands from standard input; `within`: seconds to get there."""
        return [*self._ssh(within), host, "exec sh -s"]

    def _ssh(self, within: int) -> list[str]:
        own = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={within}", "-T", "--"]
        return [*self.ssh, *(own if os.path.basename(self.ssh[0]) == "ssh" else ())]

    def at(self, directory: str) -> Reach:
        """The same with a working directory: `directory` unless the user has named one."""
        return replace(self, workdir=os.path.join(directory, self.workdir))

    def variables(self) -> dict[str, str]:
        """What cards on all hosts get to know: the user's exports, and how hosts talk to one another."""
        own = {
            "SUPERPOD_INTERFACE": self.interface,
            "SUPERPOD_PORTS": self.ports if self.ports != "0" else "",
            "SUPERPOD_ENCRYPTION": "" if self.encrypt else "off",
        }
        return {**{name: value for name, value in own.items() if value}, **self.exports}


def exports(words: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """-x NAME and -x NAME=value → variables; a NAME without a value has that of `environ`. Raises InvalidValue."""
    found = {}
    for word in words:
        name, given, value = word.partition("=")
        if not _NAME.fullmatch(name):
            raise InvalidValue(f"-x {word} must be NAME or NAME=value, with a name of letters, digits and underscores")
        if not given and name not in environ:
            raise InvalidValue(f"-x {name}: there is no variable of that name here; set it, or write -x {name}=value")
        if name in launchers_own():
            raise InvalidValue(f"-x {word} must not name what superpod-run itself tells every card; leave it out")
        found[name] = value if given else environ[name]
    return found


def shell_words(text: str) -> tuple[str, ...]:
    """ "ssh -p 2222" → its words. Raises InvalidValue."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidValue(f"--ssh {text!r} must be a command with its options: {error}") from error
    if not words:
        raise InvalidValue("--ssh '' must be a command, such as 'ssh -p 2222'")
    return words
