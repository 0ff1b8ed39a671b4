"""A host behind ssh: the system's OpenSSH starts an agent there, and its encrypted channel is the line to it.

The user's configuration, keys, ports and jump hosts count, for it is plain `ssh HOST command`. What is secret travels
over ssh's standard input.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess

from superpod.interconnect.errors import InvalidValue
from superpod.launcher.line import PipeLine
from superpod.launcher.logs import LineSplitter
from superpod.launcher.pipes import Drain
from superpod.launcher.processes import end_in_words
from superpod.launcher.reach import Reach

MODULE = "superpod.launcher.remote"
_FAILED = 255  # ssh's exit code for its own errors
_LAST_WAIT = 3.0  # seconds for an ssh whose agent has ended
_WHY_WITHIN = 1.0  # seconds for it to say why the line has ended: the other hosts must not think that the head is lost
_LAST_LINES = 5  # of what ssh says


class SshHost:
    """Attributes:
    line: to the agent.
    said: what ssh, or Python there, has said on stderr: the last lines.
    """

    def __init__(self, host: str, reach: Reach, path: str, selector: selectors.BaseSelector) -> None:
        """Start it. `path`: see Reach.command. Raises InvalidValue when there is no such command here."""
        command = reach.command(host, MODULE, path)
        self.said: list[str] = []
        self._selector = selector
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C at the terminal is the launcher's alone
            )
        except OSError as error:
            raise InvalidValue(
                f"ssh command {command[0]!r} cannot be started: {error.strerror}; install OpenSSH's client, or name "
                "another one with --ssh"
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        ends = [os.dup(end.fileno()) for end in (self._process.stdout, self._process.stdin)]
        self._process.stdin.close()
        self._process.stdout.close()
        self.line = PipeLine(*ends, greeted=True)
        self.drain = Drain(selector, self.line, lambda held: None)  # orders are few
        self._errors = self._process.stderr
        os.set_blocking(self._errors.fileno(), False)
        self._splitter = LineSplitter()
        selector.register(self._errors, selectors.EVENT_READ, self._listen)

    def _listen(self) -> None:
        if self._errors.closed:  # in this very round of the loop
            return
        try:
            data = os.read(self._errors.fileno(), 1 << 16)
        except BlockingIOError:
            return
        lines = self._splitter.feed(data) if data else self._splitter.finish()
        self.said = [*self.said, *(line.decode(errors="replace") for line in lines if line.strip())][-_LAST_LINES:]
        if not data:
            self._deafen()

    def _deafen(self) -> None:
        if not self._errors.closed:
            self._selector.unregister(self._errors)
            self._errors.close()

    def why(self) -> str:
        """Why the line has ended, in words; waits a second for ssh to end."""
        try:
            code: int | None = self._process.wait(_WHY_WITHIN)
        except subprocess.TimeoutExpired:
            code = None
        while not self._errors.closed:
            before = len(self.said)
            self._listen()
            if code is None or (before == len(self.said) and not self._errors.closed):
                break
        said = "; ".join(self.said)
        if code in (None, 0):
            return said or "its agent has closed the line"
        if code == _FAILED:
            return said or "its agent was killed, or ssh has lost it"
        return f"its agent {end_in_words(code if code < 128 else 128 - code)}" + (f": {said}" if said else "")

    def close(self, *, kill: bool = False) -> None:
        """`kill`: do not wait for the agent to end."""
        self.drain.close()
        self.line.close()
        if kill:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WAIT)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._deafen()
