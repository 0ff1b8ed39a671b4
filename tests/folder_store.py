"""A store in a folder, where the cards of a test meet that no launcher has started."""

from __future__ import annotations

import os
import time
from pathlib import Path

from superpod.interconnect.errors import DeadlineExceeded


class FolderStore:
    """One file a key, as torch's FileStore has one for all. The folder is made when it is not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def set(self, key: str, value: bytes) -> None:
        path = self._path(key)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_bytes(value)
        draft.rename(path)

    def get(self, key: str, timeout: float) -> bytes:
        end = time.monotonic() + timeout
        while not self._path(key).exists():
            if time.monotonic() > end:
                raise DeadlineExceeded(f"nobody set {key!r}")
            time.sleep(0.001)
        return self._path(key).read_bytes()

    def _path(self, key: str) -> Path:
        return self._folder / key.replace("/", "_")
