"""What the cards print: whole lines with their rank in front to the console, every byte as it came into files."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable

from superpod.interconnect.errors import InvalidValue
from superpod.launcher.console import STDERR, STDOUT, Console
from superpod.launcher.job import JobSpec

LONGEST_LINE = 1 << 20  # bytes; a longer line is shown in pieces
_NAMES = {STDOUT: "stdout", STDERR: "stderr"}
_COLOURS = (36, 33, 32, 35, 34, 31)
_LAST_LINES = 20  # of stderr, kept for the report of a card that ends without telling why
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class LineSplitter:
    """Bytes as they arrive → the lines that are complete, without their ends.

    Of a line that was rewritten in place with carriage returns (a progress bar) the last state is the line.
    """

    def __init__(self, longest: int = LONGEST_LINE) -> None:
        self._longest = longest
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > self._longest:
            lines.append(self._rest[: self._longest])
            self._rest = self._rest[self._longest :]
        return [_last_state(line) for line in lines]

    def finish(self) -> list[bytes]:
        """The line that never got its end, if there is one."""
        rest, self._rest = self._rest, b""
        return [_last_state(rest)] if rest else []


def _last_state(line: bytes) -> bytes:
    return line.rstrip(b"\r").rpartition(b"\r")[2] if b"\r" in line else line


class LogFiles:
    """rank3.stdout, rank3.stderr, ... in one folder. Earlier ones of the same name are replaced.

    Files that cannot be written later (a full disk) are given up with one warning: they must not end a job that runs.
    """

    def __init__(self, spec: JobSpec, warn: Callable[[str], None]) -> None:
        """Raises InvalidValue when the folder cannot be used at all."""
        self._folder = spec.log_dir
        self._warn = warn
        self._files: dict[tuple[int, int], int] = {}
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for rank in range(spec.world_size):
                for stream in (STDOUT, STDERR):
                    if goes_to_file(spec, rank, stream):
                        self._files[rank, stream] = self._create(rank, stream)
        except OSError as error:
            self.close()
            if error.errno not in _FULL:
                raise InvalidValue(
                    f"log directory {self._folder} must be one that can be written: {error.strerror}; name another"
                ) from error
            self._give_up(error)

    def _create(self, rank: int, stream: int) -> int:
        assert self._folder is not None
        path = self._folder / f"rank{rank}.{_NAMES[stream]}"
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def write(self, rank: int, stream: int, data: bytes) -> None:
        fd = self._files.get((rank, stream))
        rest = memoryview(data)
        while fd is not None and rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except OSError as error:
                self._give_up(error)
                return

    def _give_up(self, error: OSError) -> None:
        self.close()
        self._warn(f"cannot write log files in {self._folder}: {error.strerror}; the job goes on without them")

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


def goes_to_file(spec: JobSpec, rank: int, stream: int) -> bool:
    if spec.log_dir is None:
        return False
    chosen = spec.redirects.has(rank, stream) or spec.tee.has(rank, stream)
    return chosen or not (spec.redirects or spec.tee)


def goes_to_console(spec: JobSpec, rank: int, stream: int) -> bool:
    if spec.shown_ranks is not None and rank not in spec.shown_ranks:
        return False
    return spec.tee.has(rank, stream) or not spec.redirects.has(rank, stream)


class _Output:
    """One stream of one card, as its bytes arrive."""

    def __init__(self, prefix: bytes | None, last: int) -> None:
        """`prefix`: what stands in front of its lines on the console; None when the console does not show them."""
        self.prefix = prefix
        self.splitter = LineSplitter()
        self.last_lines: deque[bytes] = deque(maxlen=last)


class Logs:
    """All streams of all cards, and of the hosts' zygotes: those have the negative ranks -1 - number of the host."""

    def __init__(self, spec: JobSpec, console: Console, files: LogFiles) -> None:
        self._spec, self._console, self._files = spec, console, files
        self._outputs: dict[tuple[int, int], _Output] = {}

    def write(self, rank: int, stream: int, data: bytes) -> None:
        """What a card has written; nothing: its stream has ended."""
        output = self._outputs.get((rank, stream))
        if output is None:
            prefix = self._prefix(rank, stream) if goes_to_console(self._spec, rank, stream) else None
            output = _Output(prefix, _LAST_LINES if stream == STDERR else 0)
            self._outputs[rank, stream] = output
        self._show(stream, output, output.splitter.feed(data) if data else output.splitter.finish())
        self._files.write(rank, stream, data)

    def _show(self, stream: int, output: _Output, lines: list[bytes]) -> None:
        output.last_lines.extend(lines)
        if output.prefix is not None and lines:
            self._console.write(stream, b"".join(b"%s%s\n" % (output.prefix, line) for line in lines))

    def _prefix(self, rank: int, stream: int) -> bytes:
        if rank < 0:
            return f"[zygote{self._at(-1 - rank)}] ".encode()
        name = f"{rank}{self._at(self._spec.host_of(rank))}"
        if self._console.colours(stream):
            return f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m[{name}]\x1b[0m ".encode()
        return f"[{name}] ".encode()

    def _at(self, number: int) -> str:
        return f"@{self._spec.hosts[number].plain}" if len(self._spec.hosts) > 1 else ""

    def last_lines(self, rank: int) -> str:
        """What the card printed last on stderr."""
        output = self._outputs.get((rank, STDERR))
        return b"\n".join(output.last_lines).decode(errors="replace") if output else ""

    def finish(self) -> None:
        """All cards have ended: show the lines that never got their end, and close the files."""
        for (_, stream), output in self._outputs.items():
            self._show(stream, output, output.splitter.finish())
        self._files.close()
