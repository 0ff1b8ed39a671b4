"""Who is where: a key-value store in which every card publishes its address and finds its peers' on demand.

Three fillings: torch's Store, whichever the script brought; the launcher's own, served by superpod-run; a dictionary
for cards that are threads of one process.
"""

from __future__ import annotations

import hmac
import select
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgpack
import zmq

from superpod.interconnect.errors import DeadlineExceeded, InvalidValue, JobFailure, LinkClosed
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_contexts import OwnContext
from superpod.interconnect.zmq_keys import Doorkeeper, KeyPair, knock, let_in, listen

_ANSWER = 0.1  # seconds in which a store says what it has
_LOOK = 0.1  # seconds after which a request that waits looks whether a handler, within it, has taken its answer
MAX_VALUE = 64 * 1024  # bytes of one key or value
_ROLE = "store"
_SIGNATURE = 32  # bytes


class Store(Protocol):
    """A key-value store that all cards of a job share."""

    def set(self, key: str, value: bytes) -> None: ...

    def get(self, key: str, timeout: float) -> bytes:
        """The key's value, waiting for it at most `timeout` seconds.

        Raises DeadlineExceeded, or JobFailure when the store itself has gone.
        """
        ...


class TorchStore:
    """torch.distributed's Store (TCPStore, FileStore, HashStore, PrefixStore, ...), without importing torch."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def set(self, key: str, value: bytes) -> None:
        try:
            self._store.set(key, value)
        except RuntimeError as error:
            raise _gone(error) from error

    def get(self, key: str, timeout: float) -> bytes:
        end, pause = time.monotonic() + timeout, 0.001
        try:
            while not self._store.check([key]):  # its own wait() logs a warning every time that it runs out
                if (rest := end - time.monotonic()) <= 0:
                    raise _missing(key, timeout)
                time.sleep(min(pause, rest))
                pause = min(2 * pause, 0.05)
            return bytes(self._store.get(key))
        except DeadlineExceeded:
            raise
        except RuntimeError as error:
            raise _gone(error) from error


class DictStore:
    """A dictionary, for cards that are threads of one process."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str, timeout: float) -> bytes:
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout):
                raise _missing(key, timeout)
            return self._values[key]


class LauncherStore:
    """A card's end of the launcher's own store. One thread at a time, and the signals' handlers that interrupt it."""

    def __init__(
        self,
        endpoint: str,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        secret: JobSecret | None = None,
    ) -> None:
        """Go where a StoreServer with the same secret listens.

        Args:
            context: one that the process has already; None makes one, which goes with the store.
            secret: the job's; it counts for an endpoint of tcp only, for others are this user's anyway.
        """
        self._own = OwnContext(self) if context is None else None
        self._socket = (context or self._own.context).socket(zmq.DEALER)  # type: ignore[union-attr]
        if self._own is not None:
            self._own.keep(self._socket.close)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # so that sending never blocks, even if nobody serves
        self._socket.setsockopt(zmq.IPV6, "[" in endpoint)
        if secret is not None and endpoint.startswith("tcp:"):
            pair = KeyPair.of(secret, _ROLE)
            knock(self._socket, pair, pair.public)
        self._socket.connect(endpoint)
        self._lock = threading.RLock()
        self._requests = 0
        self._answers: dict[int, bytes | None] = {}  # to the requests that are under way
        self._latest: dict[str, int] = {}  # key → the request for it that the server knows of

    def set(self, key: str, value: bytes) -> None:
        if len(value) > MAX_VALUE:
            raise InvalidValue(f"value of {len(value)} B for {key!r} is longer than the {MAX_VALUE} B a store keeps")
        with self._lock:
            self._refuse_if_closed()
            self._socket.send(msgpack.packb(("set", 0, key, value)))

    def get(self, key: str, timeout: float) -> bytes:
        with self._lock:
            self._refuse_if_closed()
            end = time.monotonic() + timeout  # from now on: another thread's request may have taken long
            request = self._requests = self._requests + 1
            self._answers[request] = None
            try:
                while (value := self._answers[request]) is None and (rest := end - time.monotonic()) > 0:
                    if self._latest.get(key) != request:  # a handler's has taken its place
                        self._latest[key] = request
                        self._socket.send(msgpack.packb(("get", request, key, b"")))
                    self._take_answer(min(rest, _LOOK))
            finally:
                del self._answers[request]
                if self._latest.get(key) == request:
                    del self._latest[key]
        if value is not None:
            return value
        raise _missing(key, timeout)

    def _take_answer(self, seconds: float) -> None:
        """Wait for an answer, to whichever request; a handler may wait for its own within somebody else's wait."""
        try:
            if self._socket.poll(int(seconds * 1000) + 1):
                request, value = msgpack.unpackb(self._socket.recv(zmq.NOBLOCK))
                if request in self._answers:  # else the late answer to a request that was given up
                    self._answers[request] = bytes(value)
        except zmq.Again:  # a handler has taken it
            pass
        except zmq.ZMQError:
            self._refuse_if_closed()
            raise

    def close(self) -> None:
        with self._lock:  # a socket is one thread's at a time, and a `get` ends soon
            self._socket.close()
            if self._own is not None:
                self._own.is_closed_by_owner()
                self._own.context.term()  # waits until what was set has left, for at most LINGER

    def _refuse_if_closed(self) -> None:
        if self._socket.closed:
            raise LinkClosed("this card has left the launcher's store; make a new communicator or process group")


class StoreServer:
    """The launcher's store. It owns no thread: poll `fileno()`, then call `serve()`, which never blocks.

    With `upstream` it is a branch of another store: `upstream("set", key, value)` is called for what is set here, and
    `upstream("get", key, b"")` for the first who asks for a key that is unknown here; `offer` then brings the value.
    """

    def __init__(
        self, endpoint: str, secret: JobSecret | None = None, upstream: Callable[[str, str, bytes], None] | None = None
    ) -> None:
        """Listen at `endpoint`: ipc://path, or tcp://address:port, where port 0 and ranges are possible.

        Args:
            secret: the job's. For tcp: only those who know it are let in, and what is said is encrypted.
            upstream: tells the store that this one is a branch of.
        Raises:
            InvalidValue: it cannot listen there.
        """
        if secret is None and endpoint.startswith("tcp:"):
            raise InvalidValue(f"a store at {endpoint} needs the job's secret, or anybody could write into it")
        secret = secret if endpoint.startswith("tcp:") else None
        self._own = OwnContext(self)
        self._context = self._own.context
        self._door = None if secret is None else Doorkeeper(self._context, _only(KeyPair.of(secret, _ROLE)))
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, 0),
            (zmq.MAXMSGSIZE, 2 * MAX_VALUE + 1024),
            (zmq.BACKLOG, 4096),
        ):
            self._socket.setsockopt(option, value)
        if secret is not None and self._door is not None:
            self._door.watch(self._socket)
            let_in(self._socket, KeyPair.of(secret, _ROLE))
            self._own.keep(self._door.close)
        self._own.keep(self._socket.close)
        try:
            self.endpoint = listen(self._socket, endpoint)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise InvalidValue(f"the launcher's store cannot listen at {endpoint}: {error.strerror}") from error
        self._poll = select.epoll()
        for descriptor in (self._socket.FD, *([] if self._door is None else self._door.descriptors)):
            self._poll.register(descriptor, select.EPOLLIN)
        self._file = endpoint.removeprefix("ipc://") if endpoint.startswith("ipc:///") else None
        self._upstream = upstream
        self._values: dict[str, bytes] = {}
        self._waiting: dict[str, dict[bytes, int]] = defaultdict(dict)  # key → client → its latest request

    def fileno(self) -> int:
        return self._poll.fileno()

    def serve(self) -> None:
        """Handle every request that has arrived; a request that makes no sense is left unanswered."""
        if self._door is not None:
            self._door.serve()
        while True:
            try:
                client, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if self._door is not None:
                self._door.spoke(frames[-1])
            if (request := _parse([frame.bytes for frame in frames])) is not None:
                self._handle(client.bytes, *request)

    def _handle(self, client: bytes, operation: str, request: int, key: str, value: bytes) -> None:
        if operation == "set":
            self._keep(key, value)
            if self._upstream is not None:
                self._upstream("set", key, value)
        elif operation == "get":
            if key in self._values:
                self._socket.send_multipart([client, msgpack.packb((request, self._values[key]))])
            else:
                first = key not in self._waiting
                self._waiting[key][client] = request
                if first and self._upstream is not None:
                    self._upstream("get", key, b"")

    def _keep(self, key: str, value: bytes) -> None:
        self._values[key] = value
        for waiter, number in self._waiting.pop(key, {}).items():
            self._socket.send_multipart([waiter, msgpack.packb((number, value))])

    def offer(self, key: str, value: bytes) -> None:
        """A value from upstream."""
        self._keep(key, value)
        self.serve()  # sending may have taken the news of an arrival, which `fileno()` tells once only

    def close(self) -> None:
        self._own.is_closed_by_owner()
        self._poll.close()
        if self._door is not None:
            self._socket.disable_monitor()
            self._door.close()
        self._socket.close()
        self._context.term()
        if self._file is not None:
            Path(self._file).unlink(missing_ok=True)


class AddressBook:
    """The cards' addresses in a store, under a prefix that tells this mesh from the next one in the same store.

    With the job's secret all that is in it is signed, so that a store that is open to others can withhold addresses,
    but not make them up.
    """

    def __init__(self, store: Store, prefix: str, secret: JobSecret | None = None) -> None:
        self._store = store
        self._prefix = prefix
        self._secret = secret

    def beside(self, name: str) -> AddressBook:
        """A book in the same store for other addresses of the same cards."""
        return AddressBook(self._store, f"{self._prefix}/{name}", self._secret)

    def signed(self, secret: JobSecret | None) -> AddressBook:
        """The same book, with everything signed."""
        return AddressBook(self._store, self._prefix, secret)

    def publish(self, rank: int, address: str) -> None:
        self.note(str(rank), address)

    def find(self, rank: int, timeout: float) -> str:
        """Raises DeadlineExceeded naming the rank that never published its address, InvalidValue for a forged one."""
        try:
            value = self._store.get(f"{self._prefix}/{rank}", timeout)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"rank {rank} has not joined within {timeout:.1f} s: it is not started, or dead"
            ) from error
        text = self._opened(str(rank), value)
        if text is None:
            raise InvalidValue(
                f"the address of rank {rank} is not signed with this job's secret: give all cards the same "
                "SUPERPOD_SECRET; if they have it, somebody else writes into the store in which they meet"
            )
        return text

    def note(self, name: str, text: str) -> None:
        """Put something else into the book."""
        key, value = f"{self._prefix}/{name}", text.encode()
        self._store.set(key, value if self._secret is None else self._secret.sign(_entry(key, value)) + value)

    def knows(self, name: str) -> bool:
        """Whether there is now something under this name that a card has put there."""
        try:
            return self._opened(name, self._store.get(f"{self._prefix}/{name}", _ANSWER)) is not None
        except DeadlineExceeded:
            return False

    def _opened(self, name: str, value: bytes) -> str | None:
        """What a value says, None if it was made up."""
        if self._secret is None:
            return value.decode(errors="replace")
        signature, value = value[:_SIGNATURE], value[_SIGNATURE:]
        genuine = self._secret.check(_entry(f"{self._prefix}/{name}", value), signature)
        return value.decode(errors="replace") if genuine else None


def _entry(key: str, value: bytes) -> bytes:
    """What is signed: the value and where it stands."""
    return b"%d %s %s" % (len(key), key.encode(), value)


def _only(pair: KeyPair) -> Callable[[bytes], bool]:
    return lambda key: hmac.compare_digest(key, pair.public)


def _parse(parts: list[bytes]) -> tuple[str, int, str, bytes] | None:
    """A request to the store, or None if it is none. Allocates nothing that a forged length could inflate."""
    try:
        (frame,) = parts
        fields = msgpack.unpackb(frame, max_array_len=4, max_map_len=0)
    except (ValueError, msgpack.UnpackException):
        return None
    if not isinstance(fields, list) or [type(field) for field in fields] != [str, int, str, bytes]:
        return None
    operation, request, key, value = fields
    return operation, request, key, value


def _gone(error: RuntimeError) -> JobFailure:
    return JobFailure(f"the store in which the cards meet has gone: {error}")


def _missing(key: str, timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"nobody set {key!r} in the store within {timeout:.1f} s")
