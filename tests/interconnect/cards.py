"""What the tests of the interconnect share: cards of every link in one process, cards in forked processes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from superpod.interconnect.calendar import Calendar
from superpod.interconnect.host import Address
from superpod.interconnect.host_link import HostLink
from superpod.interconnect.interfaces import tcp_endpoint
from superpod.interconnect.keys import Keys
from superpod.interconnect.link import Link
from superpod.interconnect.memory_link import MemoryFabric
from superpod.interconnect.mesh import Mesh
from superpod.interconnect.rendezvous import AddressBook, DictStore
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.shaped_link import Roads, ShapedLink
from superpod.interconnect.shm_link import ShmLink, possible
from superpod.interconnect.streams import Pending, Receive, Send
from superpod.interconnect.topology import Level, Topology
from superpod.interconnect.topology_faults import lay
from superpod.interconnect.zmq_link import ZmqLink

GROUP = 7
SOON = 20.0  # seconds after which a test that hangs gives up

MakeLink = Callable[[int, Path], Any]
ZMQ: dict[str, MakeLink] = {
    "zmq-ipc": lambda rank, directory: ZmqLink(rank, directory=directory),
    "zmq-abstract": lambda rank, directory: ZmqLink(rank),
    "zmq-tcp": lambda rank, directory: ZmqLink(rank, transport="tcp"),
}
SHM: dict[str, MakeLink] = {
    "shm-file": lambda rank, directory: ShmLink(rank, directory=directory),
    "shm-abstract": lambda rank, directory: ShmLink(rank),
}
NEAR = {"zmq": ZMQ["zmq-ipc"], **({"shm": SHM["shm-file"]} if possible() else {})}


def near_and_far(near: str, host: Callable[[int], str], keys: Callable[[], Keys | None]) -> MakeLink:
    """Cards of several hosts; `host` says which one a rank plays to be on."""

    def make(rank: int, directory: Path) -> HostLink:
        here = NEAR[near](rank, directory)
        here._host = host(rank)
        here._address = Address.parse(here._address)._replace(host=host(rank)).text()
        return HostLink(here, ZmqLink(rank, between_hosts=tcp_endpoint("127.0.0.1"), keys=keys()))

    return make


SECRET = JobSecret.new()
HOSTS = {
    f"{near}-{name}": near_and_far(near, host, keys)
    for near in NEAR
    for name, host, keys in (
        ("one-host", lambda rank: "a", lambda: Keys(SECRET)),
        ("two-hosts", lambda rank: "ab"[rank % 2], lambda: Keys(SECRET)),
        ("open", lambda rank: "ab"[rank % 2], lambda: None),
    )
}
REAL = {**ZMQ, **(SHM if possible() else {}), **HOSTS}  # between processes
SHAPED = tuple(f"shaped-{kind}" for kind in ("memory", "zmq-ipc", "shm-file") if kind in ("memory", *REAL))
LINKS = ("memory", *REAL, *SHAPED)
QUICK = Topology("quick", levels=(Level("switch", "switch", 16, 4e9, 1e-4),))  # a machine that tests need not wait for


def make_links(kind: str, n: int, directory: Path) -> Sequence[Link]:
    """The links of n cards in this process."""
    if kind in SHAPED:
        links, wires = make_links(kind.removeprefix("shaped-"), n, directory), lay(QUICK)
        calendar = Calendar(wires.nlinks)
        return [ShapedLink(link, Roads(wires, np.arange(n), 1.0), calendar) for link in links]
    if kind == "memory":
        return MemoryFabric(n).links
    return [REAL[kind](rank, directory) for rank in range(n)]


class Card:
    """A mesh with an open group, and short words for what tests do with it."""

    def __init__(self, link: Link, book: AddressBook, **settings: Any) -> None:
        book.publish(link.rank, link.address)
        self.rank = link.rank
        self.mesh = Mesh(link, book, **settings)
        self.probes: list[tuple[int, str]] = []
        self.group = self.open(GROUP)

    def open(self, ident: int) -> Any:
        return self.mesh.open_group(ident, f"g{ident}", lambda peer, header: self.probes.append((peer, header.text)))

    def send(self, peer: int, data: bytes, tag: int = 0, **how: Any) -> Send:
        return self.mesh.send(how.pop("group", self.group), peer, tag, memoryview(data), **how)

    def expect(self, peer: int, into: int | np.ndarray, tag: int = 0, **how: Any) -> Receive:
        """`into`: an array, or a number of bytes."""
        array = np.empty(into, np.uint8) if isinstance(into, int) else into
        return self.mesh.receive(how.pop("group", self.group), peer, tag, array, **how)

    def wait(self, *pendings: Pending, seconds: float = SOON, what: str = "a test", group: Any = None) -> None:
        self.mesh.wait(pendings, group or self.group, seconds=seconds, what=what)

    def recv(self, peer: int, nbytes: int, tag: int = 0, **how: Any) -> bytes:
        group = how.get("group")
        receive = self.expect(peer, nbytes, tag, **how)
        self.wait(receive, group=group)
        return receive.into.tobytes()

    def look(self) -> None:
        """Handle what has arrived."""
        self.mesh.advance([], self.group, seconds=0)

    def until(self, condition: Callable[[], Any]) -> None:
        """Move messages until the condition holds."""
        end = time.monotonic() + SOON
        while not condition():
            assert time.monotonic() < end, "it never happened"
            self.look()
            os.sched_yield()

    def close(self) -> None:
        self.mesh.close()


def start(function: Callable[[], Any]) -> Future[Any]:
    """Run a function in a thread; `result(SOON)` is what it returns or raises."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions in threads of their own, and return their results; the first error in their order is raised."""
    return [future.result(3 * SOON) for future in [start(function) for function in functions]]


def eventually(condition: Callable[[], Any]) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.0005)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block takes less time than this."""
    begin = time.monotonic()
    yield
    took = time.monotonic() - begin
    assert took < seconds, f"took {took:.2f} s, may take {seconds} s"


@contextlib.contextmanager
def forked(main: Callable[[], None]) -> Iterator[int]:
    """Run a function in a forked process for as long as the block lasts; yields its pid."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            main()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def exit_code(pid: int) -> int:
    """The exit code of a forked process, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dictionary() -> AddressBook:
    return AddressBook(DictStore(), "test")
