"""run_ranks: a function on n cards at once, from a test or a notebook, without superpod-run and without a script.

    def total(comm, start):
        return comm.all_reduce(np.full(4, start + comm.rank)).tolist()

    assert run_ranks(3, total, 10) == [[33, 33, 33, 33]] * 3

The cards are processes, forked from this one: they have all that it has imported, so n = 8 take tens of milliseconds,
and `fn` may be a lambda. With link="memory" they are threads of this process, and nothing is forked.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from superpod.collectives.communicator import Communicator, connect, in_memory
from superpod.interconnect.control import AbortSwitch, Failure
from superpod.interconnect.env import LINKS, LauncherSettings, Place, Settings, worker_environment
from superpod.interconnect.errors import DeadlineExceeded, InvalidValue, PeerLost, RemoteError, ranks_text
from superpod.interconnect.rendezvous import StoreServer
from superpod.launcher.directory import job_directory
from superpod.launcher.processes import die_with_parent, end_in_words, signal_group
from superpod.launcher.worker import is_consequence, without_frames_of
from superpod.launcher.zygote_process import store_endpoint

_AFTER_FAILURE = 1.0  # seconds for the other cards to notice, before they are ended
_PIECE = 1 << 20  # bytes of one read


def run_ranks(
    n: int,
    fn: Callable[..., Any],
    *args: Any,
    link: str = "auto",
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
) -> list[Any]:
    """Call `fn(communicator, *args)` on n cards; returns what each returned, by rank.

    Args:
        link: auto (what superpod-run would take), shm or zmq for processes that meet so; memory (threads).
        timeout: seconds until all must have returned.
        env: more variables for the cards, such as SUPERPOD_SEGMENT.
    Raises:
        whatever the card that failed first raised, with a note that names the rank and has its traceback;
        PeerLost: a card's process ended without a word; RemoteError: it raised what cannot be sent here;
        DeadlineExceeded: naming the ranks that have not returned in time.
    No process, thread or file is left, also after an error; but a thread that never returns to superpod stays.
    """
    if n < 1:
        raise InvalidValue(f"n={n} must be at least 1")
    if link not in (*LINKS, "memory"):
        raise InvalidValue(f"link={link!r} must be one of {', '.join(LINKS)}, memory")
    run, chosen = (_threads, {}) if link == "memory" else (_processes, {"SUPERPOD_LINK": link})
    results = run(n, lambda comm: fn(comm, *args), time.monotonic() + timeout, {**chosen, **(env or {})})
    if failed := [result for result in results if result.error is not None]:
        raise min(failed, key=lambda result: (result.consequence, result.time)).error_with_note(n)
    if late := [result.rank for result in results if not result.returned]:
        raise DeadlineExceeded(f"{ranks_text(late)} of {n} have not returned within {timeout:g} s, and were ended")
    return [result.value for result in results]


@dataclass(slots=True)
class _Result:
    """What one card came to."""

    rank: int
    returned: bool = False
    value: Any = None
    error: BaseException | None = None
    consequence: bool = False
    traceback: str = ""
    time: float = 0.0  # of the error, since the epoch [s]

    def fill(self, call: Callable[[], Any]) -> None:
        """With what `call` returns or raises."""
        try:
            self.value = call()
            self.returned = True
        except BaseException as error:  # noqa: BLE001  # also what a test uses to leave, such as pytest's skip
            error.__traceback__ = without_frames_of(__file__, error.__traceback__)
            self.fail(error, "".join(traceback.format_exception(error)))

    def fail(self, error: BaseException, text: str = "") -> None:
        self.error, self.traceback, self.consequence = error, text, is_consequence(error)
        self.time = time.time()

    def error_with_note(self, n: int) -> BaseException:
        assert self.error is not None
        self.error.add_note(f"on rank {self.rank} of {n}" + (f":\n{self.traceback}" if self.traceback else ""))
        return self.error


# Cards as threads


def _threads(n: int, call: Callable[[Communicator], Any], end: float, env: Mapping[str, str]) -> list[_Result]:
    comms = in_memory(n, Settings.read(env) if env else None)
    results = [_Result(rank) for rank in range(n)]
    over = threading.Semaphore(0)

    def card(rank: int) -> None:
        results[rank].fill(partial(call, comms[rank]))
        if results[rank].error is not None:
            comms[rank].close()  # as a process that fails leaves the others
        over.release()

    threads = [threading.Thread(target=card, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(n)]
    for thread in threads:
        thread.start()
    for _ in range(n):
        if any(result.error for result in results):
            end = min(end, time.monotonic() + _AFTER_FAILURE)
        over.acquire(timeout=max(0.0, end - time.monotonic()))
    snapshot = [replace(result) for result in results]  # what closing makes of the late ones is no result
    for comm in comms:
        comm.close()  # ends every wait
    for thread in threads:
        thread.join(_AFTER_FAILURE)
    return snapshot


# Cards as processes


def _processes(n: int, call: Callable[[Communicator], Any], end: float, env: Mapping[str, str]) -> list[_Result]:
    with job_directory(LauncherSettings.read().runtime_directory) as directory, _Job(n, directory, env) as job:
        for rank in range(n):
            job.start(rank, call)
        return job.collect(end)


class _Job:
    """The launcher's part, as small as it can be: the abort flag, the store, and who still runs."""

    def __init__(self, n: int, directory: Path, env: Mapping[str, str]) -> None:
        self._directory, self._env = directory, env
        self._switch = AbortSwitch(directory)
        self._store = StoreServer(store_endpoint(directory))  # before the fork, so that no card has to knock twice
        self._results = [_Result(rank) for rank in range(n)]
        self._pids: dict[int, int] = {}  # by rank, of those that run
        self._pidfds: dict[int, int] = {}
        self._readers: dict[int, int] = {}
        self._received = [bytearray() for _ in range(n)]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._store, selectors.EVENT_READ, self._store.serve)
        self._parent = os.getpid()

    def __enter__(self) -> _Job:
        return self

    def start(self, rank: int, call: Callable[[Communicator], Any]) -> None:
        reader, writer = os.pipe()
        _flush()  # what lies in the buffers is to be printed once
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking a process with threads: see _card
            pid = os.fork()
        if pid == 0:
            self._switch.close()  # or the parent's pull would not be seen
            self._card(rank, call, writer)
        os.close(writer)
        os.set_blocking(reader, False)
        self._pids[rank], self._readers[rank] = pid, reader
        self._selector.register(reader, selectors.EVENT_READ, partial(self._read, rank))
        # the end of the process, not of the pipe: what the card has started may hold the pipe open
        self._pidfds[rank] = os.pidfd_open(pid)
        self._selector.register(self._pidfds[rank], selectors.EVENT_READ, partial(self._finish, rank))

    def _card(self, rank: int, call: Callable[[Communicator], Any], writer: int) -> NoReturn:
        """The card's whole life. It uses no thread, lock or ZeroMQ context of the parent's, and ends by os._exit."""
        try:
            os.setpgid(0, 0)
            die_with_parent(self._parent, signal.SIGKILL)
            place = Place(rank, len(self._results), rank, len(self._results))
            result = _Result(rank)
            result.fill(partial(self._live, place, call))
            with open(writer, "wb") as pipe:
                pipe.write(_pickled(result))
            _flush()
        finally:
            os._exit(0)

    def _live(self, place: Place, call: Callable[[Communicator], Any]) -> Any:
        store = store_endpoint(self._directory)
        os.environ.update(worker_environment(place, directory=self._directory, store=store, master_port=0))
        os.environ.update(self._env)
        comm = connect(Settings.read(), place)
        value = call(comm)
        comm.close()
        return value

    def collect(self, end: float) -> list[_Result]:
        """Until every card has ended, but not beyond `end` (time.monotonic()), nor long after a failure."""
        failed = False
        while self._pids and (rest := end - time.monotonic()) > 0:
            for key, _ in self._selector.select(rest):
                key.data()
            if not failed and any(result.error for result in self._results):
                failed, end = True, min(end, time.monotonic() + _AFTER_FAILURE)
        return self._results

    def _read(self, rank: int) -> None:
        """What has arrived of a card's result."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._readers[rank], _PIECE):
                self._received[rank] += data
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._readers[rank])  # the end of the pipe: nothing more to wait for

    def _finish(self, rank: int) -> None:
        """A card's process has ended."""
        self._read(rank)
        self._selector.unregister(self._pidfds[rank])
        pid = self._pids.pop(rank)
        signal_group(pid, signal.SIGKILL)  # what it has started
        cause = end_in_words(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        result = self._results[rank]
        try:
            result = self._results[rank] = pickle.loads(self._received[rank])
            cause = f"raised {type(result.error).__name__}: {result.error}"
        except Exception:  # noqa: BLE001  # whatever a torn pickle brings
            result.fail(PeerLost(f"rank {rank} (pid {pid}) {cause}"))
            result.consequence = False  # the caller hears of it in this way, but it is the cause
        if result.error is not None:
            self._switch.pull(Failure(rank, socket.gethostname(), pid, cause))

    def __exit__(self, *_: object) -> None:
        for pid in self._pids.values():
            signal_group(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._selector.close()
        for fd in (*self._readers.values(), *self._pidfds.values()):
            os.close(fd)
        self._switch.close()
        self._store.close()


def _pickled(result: _Result) -> bytes:
    try:
        data = pickle.dumps(result)
        pickle.loads(data)  # some errors can be pickled, but not read
    except Exception as problem:  # noqa: BLE001  # whatever the value's own methods raise
        if result.error is None:
            result.fail(TypeError(f"rank {result.rank} returned what cannot be sent to the caller: {problem}"))
            result.value = None
        else:
            text = f"rank {result.rank} raised {type(result.error).__qualname__}: {result.error}"
            result.error = RemoteError(text)
        data = pickle.dumps(result)
    return data


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
