"""What the cards print: whole lines with their rank in front to the console, every byte as it came into files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable

from superpod.interconnect.errors import InvalidValue
from superpod.launcher.console import STDERR, STDOUT, Console
from superpod.launcher.job import JobSpec
from superpod.launcher.outcome import LAUNCHER

LONGEST_LINE = 1 << 20  # bytes; a longer line is shown in pieces
_AT_ONCE = 1 << 16  # bytes of one read: what a pipe holds
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


class CardStream:
    """The launcher's end of one stream of one card."""

    def __init__(self, rank: int, stream: int, prefix: bytes | None, console: Console, files: LogFiles) -> None:
        """`prefix`: what stands in front of its lines on the console; None when the console does not show them."""
        self.rank, self.stream = rank, stream
        self._prefix = prefix
        self._console, self._files = console, files
        self._splitter = LineSplitter()
        self.last_lines: deque[bytes] = deque(maxlen=_LAST_LINES if stream == STDERR else 0)
        self._fd, self.card_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        self._fresh = True
        self.open = True

    def fileno(self) -> int:
        return self._fd

    def close_card_end(self) -> None:
        """The card has its end now; only then does the pipe tell that the card has closed it."""
        os.close(self.card_end)

    def read(self, *, all_there_is: bool = False) -> None:
        """Pass on what has arrived; `open` turns False at the end of the stream."""
        while self.open:
            try:
                data = os.read(self._fd, _AT_ONCE)
            except BlockingIOError:
                return
            self._show(self._splitter.feed(data) if data else self._splitter.finish())
            self._files.write(self.rank, self.stream, data)
            self.open = bool(data)
            if not all_there_is:
                return

    def close(self) -> None:
        """Show the line that never got its end, and close."""
        self._show(self._splitter.finish())
        self.open = False
        os.close(self._fd)

    def _show(self, lines: list[bytes]) -> None:
        self.last_lines.extend(lines)
        if self._prefix is not None and lines:
            self._console.write(self.stream, b"".join(b"%s%s\n" % (self._prefix, line) for line in lines))


class Logs:
    """All streams of all cards."""

    def __init__(self, spec: JobSpec, console: Console, files: LogFiles) -> None:
        self._spec, self._console, self._files = spec, console, files
        self._streams: dict[tuple[int, int], CardStream] = {}

    def open(self, rank: int) -> list[CardStream]:
        """Pipes for the stdout and stderr of a card that is about to start."""
        opened = []
        for stream in (STDOUT, STDERR):
            prefix = self._prefix(rank, stream) if goes_to_console(self._spec, rank, stream) else None
            opened.append(CardStream(rank, stream, prefix, self._console, self._files))
            self._streams[rank, stream] = opened[-1]
        return opened

    def open_zygote(self) -> CardStream:
        """One pipe for all that the zygote prints: what modules say while they load, and its own errors."""
        opened = CardStream(LAUNCHER, STDERR, b"[zygote] ", self._console, self._files)
        self._streams[LAUNCHER, STDERR] = opened
        return opened

    def _prefix(self, rank: int, stream: int) -> bytes:
        if self._console.colours(stream):
            return f"\x1b[{_COLOURS[rank % len(_COLOURS)]}m[{rank}]\x1b[0m ".encode()
        return f"[{rank}] ".encode()

    def last_lines(self, rank: int) -> str:
        """What the card printed last on stderr."""
        stream = self._streams.get((rank, STDERR))
        return b"\n".join(stream.last_lines).decode(errors="replace") if stream else ""

    def finish(self) -> None:
        """All cards have ended: pass on what still lies in the pipes, and close."""
        for stream in self._streams.values():
            with contextlib.suppress(OSError):
                stream.read(all_there_is=True)
                stream.close()
        self._files.close()
