from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import threading
import time
import tracemalloc

import msgpack
import pytest
import zmq
from cards import SOON, eventually, exit_code, forked, start, together, within

from superpod.interconnect.errors import DeadlineExceeded, InvalidValue, JobFailure, LinkClosed
from superpod.interconnect.rendezvous import MAX_VALUE, AddressBook, DictStore, LauncherStore, StoreServer, TorchStore
from superpod.interconnect.secret import JobSecret


class Server:
    """A StoreServer that a thread serves."""

    def __init__(self, endpoint: str, secret: JobSecret | None = None) -> None:
        self.endpoint = endpoint
        self.store = StoreServer(endpoint, secret)
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self._end not in select.select([self.store.fileno(), self._end], [], [])[0]:
            self.store.serve()

    def stop(self) -> None:
        if self._thread.is_alive():
            os.write(self._ended, b"x")
            self._thread.join(SOON)
            self.store.close()
            os.close(self._end)
            os.close(self._ended)


@pytest.fixture
def server(tmp_path):
    server = Server(f"ipc://{tmp_path}/store")
    yield server
    server.stop()


@pytest.fixture
def client(server):
    """`client()`: a new card's end of the launcher's store."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())

        def make() -> LauncherStore:
            store = LauncherStore(server.endpoint, context)
            stack.callback(store.close)
            return store

        yield make


@pytest.fixture(params=["dictionary", "launcher", "torch hash", "torch file", "torch tcp", "torch prefix"])
def ends(request, tmp_path):
    """Two ends of one store, for every kind of store."""
    kind = request.param
    if kind == "dictionary":
        return [DictStore()] * 2
    if kind == "launcher":
        make = request.getfixturevalue("client")
        return [make(), make()]
    distributed = pytest.importorskip("torch.distributed")
    if kind == "torch hash":
        return [TorchStore(distributed.HashStore())] * 2
    if kind == "torch file":
        return [TorchStore(distributed.FileStore(str(tmp_path / "file"), 2)) for _ in range(2)]
    host = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    guest = distributed.TCPStore("127.0.0.1", host.port, is_master=False, wait_for_workers=False)
    if kind == "torch prefix":
        return [TorchStore(distributed.PrefixStore("job", store)) for store in (host, guest)]
    return [TorchStore(host), TorchStore(guest)]


# Every store


def test_what_one_sets_the_other_gets(ends):
    one, other = ends
    value = bytes(range(256))
    one.set("key", value)
    assert other.get("key", SOON) == value
    assert one.get("key", SOON) == value
    other.set("key", b"new")
    other.set("another", b"")
    assert one.get("another", SOON) == b""
    assert one.get("key", SOON) == b"new"


def test_a_get_waits_for_the_set(ends):
    one, other = ends
    getting = start(lambda: one.get("late", SOON))
    other.set("else", b"x")
    assert not getting.done()
    other.set("late", b"here")
    assert getting.result(SOON) == b"here"


@pytest.mark.parametrize("timeout", [0.0, 0.05, -1.0])
def test_a_get_that_runs_out_names_the_key(ends, timeout):
    one, other = ends
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"nobody set 'nothing' in the store within -?[0-9.]+ s"):
        one.get("nothing", timeout)
    assert max(timeout, 0) <= time.monotonic() - begin < 2
    other.set("nothing", b"late")
    other.set("something", b"x")
    assert one.get("something", SOON) == b"x"  # not the late answer
    assert one.get("nothing", SOON) == b"late"


def test_many_threads_share_an_end(ends):
    one, other = ends

    def talk(i: int) -> None:
        for j in range(10):
            one.set(f"{i}/{j}", f"{i}.{j}".encode())
            assert other.get(f"{(i + 1) % 6}/{j}", SOON) == f"{(i + 1) % 6}.{j}".encode()

    if isinstance(one, LauncherStore):  # one request at a time: who waits must not hold up who would set
        for i in range(6):
            for j in range(10):
                one.set(f"{i}/{j}", f"{i}.{j}".encode())
    together(*[lambda i=i: talk(i) for i in range(6)])


def test_an_address_book(ends):
    one, other = ends
    AddressBook(one, "mesh/0").publish(3, "ipc://@x#00#host")
    assert AddressBook(other, "mesh/0").find(3, SOON) == "ipc://@x#00#host"
    with pytest.raises(DeadlineExceeded, match=r"rank 3 has not joined within 0\.1 s: it is not started, or dead"):
        AddressBook(other, "mesh/1").find(3, 0.1)


# torch's


def test_a_torch_store_whose_host_has_gone():
    distributed = pytest.importorskip("torch.distributed")
    host = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = TorchStore(distributed.TCPStore("127.0.0.1", host.port, is_master=False, wait_for_workers=False))
    store.set("key", b"x")
    del host
    with within(10):
        with pytest.raises(JobFailure, match="the store in which the cards meet has gone: "):
            store.get("other", SOON)
        with pytest.raises(JobFailure, match="the store in which the cards meet has gone: "):
            [store.set("key", b"y") for _ in range(3)]  # the first may still be buffered


# The launcher's


def test_cards_in_other_processes(server, client):
    def card() -> None:
        with zmq.Context() as context, contextlib.closing(LauncherStore(server.endpoint, context)) as store:
            store.set("from child", store.get("from parent", SOON) + b"!")

    with forked(card) as pid:
        client().set("from parent", b"hello")
        assert client().get("from child", SOON) == b"hello!"
        assert exit_code(pid) == 0


def test_what_was_set_last_before_closing_is_kept(server):
    with zmq.Context() as context:
        store = LauncherStore(server.endpoint, context)
        store.set("key", b"x")
        store.close()
    with zmq.Context() as context, contextlib.closing(LauncherStore(server.endpoint, context)) as store:
        assert store.get("key", SOON) == b"x"


def test_a_value_that_is_too_long(client):
    store = client()
    with pytest.raises(InvalidValue, match=f"value of {MAX_VALUE + 1} B for 'key' is longer than the {MAX_VALUE} B a"):
        store.set("key", bytes(MAX_VALUE + 1))
    store.set("key", bytes(MAX_VALUE))
    assert len(store.get("key", SOON)) == MAX_VALUE


def test_a_closed_end(client):
    store = client()
    store.close()
    store.close()
    for call in (lambda: store.get("key", 1), lambda: store.set("key", b"")):
        with pytest.raises(LinkClosed, match="this card has left the launcher's store; make a new communicator"):
            call()


def test_closing_waits_for_who_is_getting(client):
    store = client()
    getting = start(lambda: store.get("nothing", 0.2))
    eventually(lambda: store._answers or getting.done())
    store.close()
    with pytest.raises(DeadlineExceeded):
        getting.result(SOON)


def test_who_had_to_wait_for_another_thread_still_asks(client):
    store = client()
    store.set("here", b"1")
    getting = start(lambda: store.get("nothing", 0.3))
    eventually(lambda: store._answers)
    assert store.get("here", 0.1) == b"1"
    with pytest.raises(DeadlineExceeded):
        getting.result(SOON)


@pytest.fixture
def interrupted():
    """`interrupted(wait, handler)`: what `wait` returns, which a signal's `handler` interrupts in this thread."""
    before = signal.getsignal(signal.SIGUSR1)

    def run(wait, handler):
        signal.signal(signal.SIGUSR1, lambda *_: handler())
        sending = threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
        sending.start()
        try:
            return wait()
        finally:
            sending.join()

    yield run
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("first", ["inner", "outer"])
def test_a_signals_handler_may_ask_while_its_thread_waits(client, interrupted, first):
    """Whichever answer comes first: the handler also takes the one that is meant for the wait that it interrupted."""
    store, other, got = client(), client(), []

    def handler() -> None:
        if first == "outer":
            other.set("outer", b"1")
            eventually(lambda: other.get("outer", SOON))
        threading.Timer(0.05, other.set, ("inner", b"2")).start()
        got.append(store.get("inner", SOON))
        store.set("said", b"3")
        if first == "inner":
            threading.Timer(0.05, other.set, ("outer", b"1")).start()

    with within(5):
        assert interrupted(lambda: store.get("outer", SOON), handler) == b"1"
    assert got == [b"2"]
    assert other.get("said", SOON) == b"3"


@pytest.mark.parametrize("within_it", [0.2, SOON])
def test_a_signals_handler_may_ask_for_the_same_key(client, interrupted, within_it):
    """Whether it gets it or gives up: the server knows a card's latest request for a key only."""
    store, other, got = client(), client(), []

    def handler() -> None:
        threading.Timer(0.5, other.set, ("key", b"1")).start()
        with contextlib.suppress(DeadlineExceeded):
            got.append(store.get("key", within_it))

    with within(5):
        assert interrupted(lambda: store.get("key", SOON), handler) == b"1"
    assert got == [b"1"] * (within_it == SOON)
    assert not store._latest


def test_a_signals_handler_may_leave_while_its_thread_waits(client, interrupted):
    store = client()
    with within(5), pytest.raises(LinkClosed, match="this card has left the launcher's store"):
        interrupted(lambda: store.get("nothing", SOON), store.close)


def test_without_a_server_nothing_blocks(tmp_path):
    with zmq.Context() as context, contextlib.closing(LauncherStore(f"ipc://{tmp_path}/nobody", context)) as store:
        store._socket.setsockopt(zmq.LINGER, 0)
        with within(5):
            for i in range(3000):  # more than ZeroMQ's own limit
                store.set(f"{i}", b"x")
            with pytest.raises(DeadlineExceeded):
                store.get("0", 0.05)


def test_a_server_that_ends_leaves_no_file(tmp_path, server, client):
    client().set("key", b"x")
    assert (tmp_path / "store").exists()
    server.stop()
    assert not (tmp_path / "store").exists()


def test_one_who_asks_again_and_again_is_remembered_once(server, client):
    store = client()
    for _ in range(20):
        with pytest.raises(DeadlineExceeded):
            store.get("key", 0.001)
    store.set("other", b"x")
    store.get("other", SOON)
    assert [len(waiting) for waiting in server.store._waiting.values()] == [1]
    store.set("key", b"y")
    assert store.get("key", SOON) == b"y"
    assert not server.store._waiting


NESTED = b"\xdd\x00\x01\xff\xff" * 20_000  # arrays of 131071 in arrays: 20 GB if they were made

GARBAGE = [
    [b""],
    [b"\xc1"],
    [b"garbage"],
    [msgpack.packb("get")],
    [msgpack.packb(["get", 1, "key"])],
    [msgpack.packb(["get", 1, "key", b"", 0])],
    [msgpack.packb(["get", "1", "key", b""])],
    [msgpack.packb(["get", float("inf"), "key", b""])],
    [msgpack.packb(["set", 0, "key", 1 << 40])],  # bytes(2^40) would be a terabyte
    [msgpack.packb(["set", 0, "key", [300]])],
    [msgpack.packb(["set", 0, ["key"], b""])],
    [msgpack.packb([["set"], 0, "key", b""])],
    [msgpack.packb(["fly", 0, "key", b""])],
    [msgpack.packb({"get": "key"})],
    [msgpack.packb(["set", 0, "key", b"x"]), b"more"],
    [b"\xdd\xff\xff\xff\xff"],
    [NESTED],
    *([random.Random(seed).randbytes(50)] for seed in range(20)),
]


@pytest.fixture
def stranger(server):
    with zmq.Context() as context, context.socket(zmq.DEALER) as line:
        line.setsockopt(zmq.LINGER, 0)
        line.connect(server.endpoint)
        yield line


def test_garbage_is_left_unanswered(stranger, client):
    tracemalloc.start()
    try:
        for parts in GARBAGE:
            stranger.send_multipart(parts)
        stranger.send(msgpack.packb(["get", 7, "key", b""]))
        store = client()
        store.set("key", b"right")
        assert stranger.poll(SOON * 1000)
        assert msgpack.unpackb(stranger.recv()) == [7, b"right"]  # the only answer
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert store.get("key", SOON) == b"right"


def test_a_request_that_is_too_long_costs_its_sender_the_connection(stranger, client):
    stranger.send(msgpack.packb(["set", 0, "key", bytes(4 * MAX_VALUE)]))
    store = client()
    store.set("key", b"right")
    assert store.get("key", SOON) == b"right"


def test_garbage_on_the_line(tmp_path, server, client):
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(SOON)
        line.connect(str(tmp_path / "store"))
        with contextlib.suppress(OSError):
            line.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
            line.shutdown(socket.SHUT_WR)
            while line.recv(4096):
                pass
    store = client()
    store.set("key", b"right")
    assert store.get("key", SOON) == b"right"
