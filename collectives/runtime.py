"""What all groups of a process share: link, mesh, selector, statistics; made once, closed once."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from superpod.collectives.engine import Engine
from superpod.collectives.recorder import Recorder
from superpod.collectives.reporter import Reporter, flight
from superpod.collectives.select import Selector
from superpod.collectives.selection import Selection, tuned_link
from superpod.collectives.statistics import Statistics
from superpod.interconnect.board import possible
from superpod.interconnect.control import AbortFlag
from superpod.interconnect.env import Place, Settings
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.host_link import HostLink, for_several_hosts, introduce
from superpod.interconnect.link import Link
from superpod.interconnect.memory_link import MemoryFabric
from superpod.interconnect.mesh import Mesh
from superpod.interconnect.rendezvous import AddressBook, DictStore, LauncherStore, Store
from superpod.interconnect.shm_link import ShmLink
from superpod.interconnect.shm_link import possible as shm_possible
from superpod.interconnect.zmq_link import ZmqLink

if TYPE_CHECKING:
    from superpod.collectives.clock import Clock

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
        clock: Clock | None = None,
        selection: Selection = Selection(),  # noqa: B008  # frozen
    ) -> None:
        self.mesh = mesh
        self.clock = clock
        self._recorder, self._reporter = recorder, reporter
        if reporter is not None:
            mesh.inquire = reporter.explain
        self.world_size = world_size
        self.statistics = Statistics(mesh.rank, settings.directory)
        self._board = mesh.link.name == "shm" and possible() and not settings.time_scale
        self._selector = Selector(
            settings.overrides,
            board=self._board,
            deterministic=settings.deterministic,
            link=tuned_link(mesh.link.name, settings),
            selection=selection,
        )
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
        # a wrong override is told before anything is opened
        selection = Selection.of_card(settings)
        Selector(settings.overrides, deterministic=settings.deterministic, selection=selection)
        clock = _clock(settings, place)
        link = _link(settings, place)
        with contextlib.ExitStack() as opened:
            opened.callback(link.close, 0)
            store: LauncherStore | None = None
            if book is None and settings.store is not None:
                context = link.context if isinstance(link, ZmqLink | HostLink) else None
                store = LauncherStore(settings.store, context, settings.hosts.secret)
                opened.callback(store.close)
            book = book or AddressBook(store or _nobodys(place), f"superpod/mesh/{next(_generations)}")
            abort = None
            if settings.directory is not None:
                abort = AbortFlag(settings.directory, own_ranks=not place.is_the_launchers())
            recorder, reporter = flight.of_process(place.rank, settings)
            reporter.publish(book)
            mesh = _mesh(link if clock is None else clock.shaped(link, settings.time_scale), book, settings, abort)
            runtime = Runtime(mesh, settings, place.world_size, recorder, reporter, store, clock, selection)
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
        clock = None if self.clock is None else self.clock.group(ranks, name, self.statistics)
        engine = Engine(
            self.mesh,
            ranks,
            name,
            self._selector,
            self.statistics,
            timeout,
            self._recorder,
            board=self._board,
            clock=clock,
        )
        if self._reporter is not None:
            self._reporter.add(engine)
        return engine

    def join(self, ranks: Sequence[int], book: AddressBook) -> None:
        """Meet `ranks` in another store than the first one's, whose world they need not belong to."""
        book = introduce(self.mesh.link, book)
        if self._reporter is not None:
            self._reporter.publish(book)
        self.mesh.learn(ranks, book)

    def close(self) -> None:
        """Tell the launcher what was done, leave the mesh. Idempotent."""
        atexit.unregister(self.close)
        if self.mesh.closed:
            return
        if isinstance(self.mesh.link, HostLink):
            self.statistics.to_other_hosts(self.mesh.link.bytes_far)
        self.statistics.tell()
        if self.clock is not None:
            self.clock.tell()
        if self._store is not None:
            self._store.close()
        self.mesh.close()


def _clock(settings: Settings, place: Place) -> Clock | None:
    """The modelled clock, if there is a machine to go by. Raises InvalidValue for a machine that cannot be."""
    if settings.time_scale and (settings.topology is None or settings.hosts.several or settings.directory is None):
        raise InvalidValue(
            f"SUPERPOD_TIME_SCALE={settings.time_scale:g} must go with SUPERPOD_TOPOLOGY and one host's cards of a "
            "superpod-run, which share one calendar of their links; unset it, or use superpod-run --topology T --shape"
        )
    if settings.topology is None:
        return None
    from superpod.collectives.clock import of_process  # loads the simulator

    return of_process(place, settings)


def _nobodys(place: Place) -> Store:
    """A store for a card that is alone."""
    if place.world_size > 1:
        raise InvalidValue(
            f"WORLD_SIZE={place.world_size} but there is no SUPERPOD_STORE to meet the other cards in; "
            "start with superpod-run, or use torch.distributed, which brings a store of its own"
        )
    return DictStore()


def _link(settings: Settings, place: Place) -> ZmqLink | ShmLink | HostLink:
    """Raises InvalidValue when the wanted link cannot be had here."""
    near: ZmqLink | ShmLink
    if settings.link == "shm" or (settings.link == "auto" and shm_possible()):
        near = ShmLink(place.rank, directory=settings.directory)
    else:
        near = ZmqLink(place.rank, directory=settings.directory, transport=settings.transport)
    return for_several_hosts(near, settings.hosts) if settings.hosts.several else near


def _mesh(link: Link, book: AddressBook, settings: Settings, abort: AbortFlag | None) -> Mesh:
    book = introduce(link, book)
    return Mesh(link, book, segment=settings.segment, window=settings.window, patience=settings.timeout, abort=abort)


def _log_to_stderr() -> None:
    log = logging.getLogger("superpod")
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("superpod: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
