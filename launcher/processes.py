"""What Linux offers to keep processes together: names, death signals, orphans, and how an end is put into words."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_libc = ctypes.CDLL(None, use_errno=True)


def python_command(*args: str) -> list[str]:
    """The command for a fresh interpreter with `args`, and with what changes how this one runs code: -O, -X, -W.

    Where this one may look for modules (-I, -E, -s, -P) is not handed on: a command that was installed for all users
    has such options, and the user's program must find what is the user's.
    """
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *(flag for flag in flags if flag not in ("-I", "-E", "-s", "-P")), *args]


def die_with_parent(parent: int, signum: int) -> None:
    """Have the kernel send `signum` to this process when its parent `parent` dies, however it dies.

    The caller must be the parent's child by a fork of its main thread. A parent that died before is noticed.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def adopt_orphans() -> None:
    """From now on descendants whose parent dies become this process's children, instead of init's."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def set_process_name(name: str) -> None:
    """The name that ps and top show; the kernel keeps 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def flush_c_streams() -> None:
    """What C code printed and still holds in its buffers goes out."""
    _libc.fflush(None)


def children(pid: int) -> list[int]:
    """The living children of `pid`; zombies are left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as stat:
                state, parent = stat.read().rpartition(b")")[2].split()[:2]
                if int(parent) == pid and state != b"Z":
                    found.append(int(entry))
    return found


def kill_children(seconds: float, spare: Collection[int] = ()) -> dict[int, int]:
    """SIGKILL for every descendant but `spare`, and reap them.

    A killed child's children become ours (see `adopt_orphans`), so going on until none is left gets them all.
    Returns what was reaped: pid → wait status. Gives up after `seconds`.
    """
    reaped: dict[int, int] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        victims = [pid for pid in children(os.getpid()) if pid not in spare]
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        gone = reap()
        reaped |= gone
        if not victims and not gone:
            break
        if not gone:
            time.sleep(0.002)  # they are dying; nothing tells when
    return reaped


def reap() -> dict[int, int]:
    """All children that have ended: pid → wait status. Never blocks."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = found[1]
    return ended


def signal_group(pid: int, signum: int) -> None:
    """Send `signum` to the process group that `pid` leads, or to `pid` alone while it has none yet."""
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"  # real-time signals have no name


def end_in_words(code: int) -> str:
    """How a process ended, from its exit code (negative: the signal): "exited with code 3", "was killed by SIGKILL"."""
    return f"was killed by {signal_name(-code)}" if code < 0 else f"exited with code {code}"


def age() -> float:
    """Seconds since this process was started, to 10 ms; what ran before Python's first line is counted."""
    with open("/proc/self/stat", "rb") as stat:
        ticks = int(stat.read().rpartition(b")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
