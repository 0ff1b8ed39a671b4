"""The job's own directory: sockets, abort flag. Only its owner can enter it, and it goes when the job goes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from superpod.interconnect.errors import InvalidValue

LONGEST = 72  # bytes: a socket's path may have 107, and its name in the directory needs the rest


@contextlib.contextmanager
def job_directory(preferred: str | None) -> Iterator[Path]:
    """A fresh 0700 directory with a short path, removed at the end; in `preferred` if that can be written.

    Raises InvalidValue when none can be made.
    """
    path = create_directory(preferred)
    try:
        yield path
    finally:
        remove_directory(path)


def create_directory(preferred: str | None = None) -> Path:
    candidates = [preferred, tempfile.gettempdir(), "/tmp"]
    why = ""
    for base in dict.fromkeys(c for c in candidates if c):
        if len(os.fsencode(base)) > LONGEST - len("/superpod-12345678"):
            why = f"{base} is too long"
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="superpod-", dir=base))  # mode 0700
        except OSError as error:
            why = f"{base}: {error.strerror}"
    raise InvalidValue(
        f"no directory for the job's sockets ({why}); it must be a path under {LONGEST} bytes that can be written: "
        "set TMPDIR to one"
    )


def remove_directory(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
