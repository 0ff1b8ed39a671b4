"""From a copy of the zygote to a card: what a new process must not share with its parent.

Every card leads a process group of its own: one signal to it reaches the card's children as well. All are in the
zygote's session: a Ctrl-C at the terminal reaches the launcher alone, which decides what becomes of it. A session for
each card would make a scheduling group of each (Linux' autogroups), within which giving way to others is giving way to
nobody: 64 cards that meet on a board took four times as long. Every card dies with its zygote (PR_SET_PDEATHSIG,
SIGKILL), so that killing the zygote leaves no card.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from superpod.launcher.processes import die_with_parent, python_command, set_process_name
from superpod.launcher.worker import LauncherLine

_BOOT = "import sys; sys.flags.safe_path or sys.path.pop(0); from superpod.launcher.worker import main; main()"
_CANNOT_EXECUTE = 126  # what shells exit with


def leave_parent(parent: int, name: str) -> None:
    """Own process group, own answers to signals, own name; the first thing a child does."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, 0)
    die_with_parent(parent, signal.SIGKILL)
    set_process_name(name)


def connect_streams(stdout: int, stderr: int) -> None:
    """These descriptors become the process's standard streams."""
    for fd, stream in ((stdout, 1), (stderr, 2)):
        os.dup2(fd, stream)
        os.close(fd)


def renew_randomness() -> None:
    """Random numbers as in a fresh interpreter: different in every card. Python's own are renewed by every fork."""
    if numpy_random := sys.modules.get("numpy.random"):
        numpy_random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()
    if multiprocessing := sys.modules.get("multiprocessing.process"):
        multiprocessing.current_process().authkey = os.urandom(32)


def exec_interpreter(kind: str, target: str, args: list[str]) -> NoReturn:
    """Become a fresh interpreter that runs the target."""
    _exec(python_command("-c", _BOOT, kind, target, *args))


def exec_program(program: str, args: list[str]) -> NoReturn:
    """Become the program. Python in it prints line by line, as the cards of the other kinds do."""
    os.environ["PYTHONUNBUFFERED"] = "1"
    LauncherLine().tell("up")
    _exec([program, *args])


def _exec(command: list[str]) -> NoReturn:
    for signum in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_DFL)  # Python ignores some of them, and a program inherits that
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]} cannot be executed: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(_CANNOT_EXECUTE)
