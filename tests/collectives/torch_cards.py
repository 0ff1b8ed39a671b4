"""Ranks with torch, forked from one process that has imported it: importing takes seconds, forking some milliseconds.

    def card(rank, n, arg): ...                    # in a test's file, at its top level
    results = torch_cards(4, card, arg)            # the fixture; each rank has initialised its process group

The process that forks is one of its own, because pytest's has threads.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

_LENGTH = struct.Struct("<Q")


class TorchCards:
    """The testing process's end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(
        self,
        n: int,
        fn: Callable[..., Any],
        *args: Any,
        backend: str | None = "superpod",
        preload: str = "torch",
        timeout: float = 60,
    ) -> list[Any]:
        """Call `fn(rank, n, *args)` on n ranks.

        backend: of the default group; None makes it `fn(rank, n, folder, *args)`, which initialises the group itself.
        preload: a module that takes long to import, which all ranks need.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _write(self._process.stdin, (fn.__code__.co_filename, fn.__name__, n, args, backend, preload, timeout))
        results = _read(self._process.stdout)
        failures = [f"rank {rank}: {text}" for rank, (text, _) in enumerate(results) if text]
        assert not failures, "\n".join(failures)
        return [value for _, value in results]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)


def _write(stream: BinaryIO, value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: BinaryIO) -> Any:
    head = stream.read(_LENGTH.size)
    return pickle.loads(stream.read(_LENGTH.unpack(head)[0])) if head else None


# The process that forks

_modules: dict[str, ModuleType] = {}


def main() -> None:
    import torch

    torch.set_num_threads(1)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what ranks print must not get between the answers
    while (request := _read(requests)) is not None:
        _write(answers, _serve(*request))
    os._exit(0)  # taking torch apart takes a second


def _serve(
    file: str, name: str, n: int, args: tuple[Any, ...], backend: str | None, preload: str, timeout: float
) -> list[Any]:
    importlib.import_module(preload)
    if file not in _modules:
        spec = importlib.util.spec_from_file_location(Path(file).stem, file)
        assert spec is not None
        assert spec.loader is not None
        _modules[file] = sys.modules[Path(file).stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_modules[file])
    with tempfile.TemporaryDirectory() as folder, selectors.DefaultSelector() as selector:
        pids, data = [], [b""] * n
        for rank in range(n):
            reader, writer = os.pipe()
            if (pid := os.fork()) == 0:
                _rank(getattr(_modules[file], name), rank, n, args, backend, folder, writer)
            os.close(writer)
            selector.register(reader, selectors.EVENT_READ, rank)
            pids.append(pid)
        end = time.monotonic() + timeout
        while selector.get_map() and (rest := end - time.monotonic()) > 0:
            for key, _ in selector.select(rest):
                if more := os.read(key.fd, 1 << 20):
                    data[key.data] += more
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        for key in list(selector.get_map().values()):
            os.close(key.fd)
    return [pickle.loads(d) if d else (f"no result, exit code {c}", None) for d, c in zip(data, codes, strict=True)]


def _rank(
    fn: Callable[..., Any], rank: int, n: int, args: tuple[Any, ...], backend: str | None, folder: str, writer: int
) -> None:
    import torch.distributed as dist

    os.setpgid(0, 0)
    result: tuple[str, Any]
    try:
        if backend is None:
            result = "", fn(rank, n, folder, *args)
        else:
            join(rank, n, folder, backend)
            result = "", fn(rank, n, *args)
            if dist.is_initialized():
                dist.destroy_process_group()
        data = pickle.dumps(result)
    except BaseException:
        data = pickle.dumps((traceback.format_exc(), None))
    with open(writer, "wb") as pipe:
        pipe.write(data)
    os._exit(0)


def join(rank: int, n: int, folder: str, backend: str = "superpod", seconds: float = 30) -> None:
    """Initialise the default group over a file in `folder`."""
    import torch.distributed as dist

    limit = timedelta(seconds=seconds)
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=n, timeout=limit)


if __name__ == "__main__":
    main()
