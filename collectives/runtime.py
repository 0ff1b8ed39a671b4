"""What all groups of a process share: link, mesh, selector, statistics; made once, closed once."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
from collections.abc import Sequence
from itertools import count

from superpod.collectives.engine import Engine
from superpod.collectives.recorder import Recorder
from superpod.collectives.reporter import Reporter, flight
from superpod.collectives.select import Selector
from superpod.collectives.statistics import Statistics
from superpod.interconnect.board import possible
from superpod.interconnect.control import AbortFlag
from superpod.interconnect.env import Place, Settings, on_one_host
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.link import Link
from superpod.interconnect.memory_link import MemoryFabric
from superpod.interconnect.mesh import Mesh
from superpod.interconnect.rendezvous import AddressBook, DictStore, LauncherStore, Store
from superpod.interconnect.shm_link import ShmLink
from superpod.interconnect.shm_link import possible as shm_possible
from superpod.interconnect.zmq_link import ZmqLink

_generations = count()  # the meshes of a process, one after the other, may meet in the same store


class Runtime:
    """A card's part in a job. Closed at the latest when the interpreter ends."""

    def __init__(
        self,
        mesh: Mesh,
        settings: Settings,
        world_size: int,
        recorder: Recorder,
        reporter: Reporter | None = None,
        store: LauncherStore | None = None,
    ) -> None:
        self.mesh = mesh
        self._recorder, self._reporter = recorder, reporter
        if reporter is not None:
            mesh.inquire = reporter.explain
        self.world_size = world_size
        self.statistics = Statistics(mesh.rank, settings.directory)
        self._board = mesh.link.name == "shm" and possible()
        self._selector = Selector(settings.overrides, board=self._board)
        self._store = store
        if settings.debug == "info":
            _log_to_stderr()
        atexit.register(self.close)

    @staticmethod
    def from_settings(settings: Settings, place: Place, book: AddressBook | None = None) -> Runtime:
        """The runtime of this process.

        Args:
            book: where the cards meet; by default in the launcher's store.
        Raises:
            InvalidValue: there are several cards and no store, or a setting makes no sense.
        """
        Selector(settings.overrides)  # a wrong override is told before anything is opened
        link = _link(settings, place)
        with contextlib.ExitStack() as opened:
            opened.callback(link.close, 0)
            store: LauncherStore | None = None
            if book is None and settings.store is not None:
                store = LauncherStore(settings.store, link.context if isinstance(link, ZmqLink) else None)
                opened.callback(store.close)
            book = book or AddressBook(store or _nobodys(place), f"superpod/mesh/{next(_generations)}")
            abort = None
            if settings.directory is not None:
                abort = AbortFlag(settings.directory, own_ranks=not place.is_the_launchers())
            recorder, reporter = flight.of_process(place.rank, settings)
            reporter.publish(book)
            mesh = _mesh(link, book, settings, abort)
            runtime = Runtime(mesh, settings, place.world_size, recorder, reporter, store)
            opened.pop_all()
        return runtime

    @staticmethod
    def in_memory(n: int, settings: Settings) -> list[Runtime]:
        """The runtimes of n cards that are threads of this process."""
        fabric, book = MemoryFabric(n), AddressBook(DictStore(), "superpod/mesh")
        meshes = [_mesh(link, book, settings, None) for link in fabric.links]
        return [Runtime(mesh, settings, n, Recorder(settings.record)) for mesh in meshes]

    def engine(self, ranks: Sequence[int], name: str, timeout: float) -> Engine:
        """This card's end of a new group."""
        engine = Engine(
            self.mesh, ranks, name, self._selector, self.statistics, timeout, self._recorder, board=self._board
        )
        if self._reporter is not None:
            self._reporter.add(engine)
        return engine

    def join(self, ranks: Sequence[int], book: AddressBook) -> None:
        """Meet `ranks` in another store than the first one's, whose world they need not belong to."""
        book.publish(self.mesh.rank, self.mesh.link.address)
        if self._reporter is not None:
            self._reporter.publish(book)
        self.mesh.learn(ranks, book)

    def close(self) -> None:
        """Tell the launcher what was done, leave the mesh. Idempotent."""
        atexit.unregister(self.close)
        if self.mesh.closed:
            return
        self.statistics.tell()
        if self._store is not None:
            self._store.close()
        self.mesh.close()


def _nobodys(place: Place) -> Store:
    """A store for a card that is alone."""
    if place.world_size > 1:
        raise InvalidValue(
            f"WORLD_SIZE={place.world_size} but there is no SUPERPOD_STORE to meet the other cards in; "
            "start with superpod-run, or use torch.distributed, which brings a store of its own"
        )
    return DictStore()


def _link(settings: Settings, place: Place) -> ZmqLink | ShmLink:
    """Raises InvalidValue when the wanted link cannot be had here."""
    if settings.link == "shm" or (settings.link == "auto" and shm_possible() and on_one_host()):
        return ShmLink(place.rank, directory=settings.directory)
    return ZmqLink(place.rank, directory=settings.directory, transport=settings.transport)


def _mesh(link: Link, book: AddressBook, settings: Settings, abort: AbortFlag | None) -> Mesh:
    book.publish(link.rank, link.address)
    return Mesh(link, book, segment=settings.segment, window=settings.window, patience=settings.timeout, abort=abort)


def _log_to_stderr() -> None:
    log = logging.getLogger("superpod")
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("superpod: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
