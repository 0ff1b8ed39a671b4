"""What a card knows of the others: where they are, how it lost those that are gone, what it refused from strangers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Set
from typing import NamedTuple

from superpod.interconnect.errors import BadFrame, DeadlineExceeded, PeerLost
from superpod.interconnect.link import Broken
from superpod.interconnect.rendezvous import AddressBook

log = logging.getLogger("superpod")

_FIRST_SLICE, _SLICE = 0.125, 1.0  # seconds between two looks at failures: at first, and at the most
LEFT_JOB = "left the job"  # as it continues "rank 3 ..."
_LAST_LOOK = 0.1  # seconds for the address of a card that has ended
_MOST_REFUSED = 100  # refused messages that are kept for whoever asks


class _Book(NamedTuple):
    ranks: frozenset[int]
    book: AddressBook


class Peers:
    """The other cards of one card's job. One thread at a time, except `find`."""

    def __init__(self, book: AddressBook, gone: Callable[[int], str | None] = lambda _: None) -> None:
        """`gone` tells how a rank has ended that the launcher has seen ending, see AbortFlag."""
        self.lost: dict[int, str] = {}  # rank → how it was lost, in words that continue "rank 3 ..."
        self.gone = gone
        self._book = book
        self._books: list[_Book] = []  # the latest last

    def learn(self, ranks: Set[int], book: AddressBook) -> None:
        """Look for the addresses of `ranks` in `book` from now on."""
        self._books.append(_Book(frozenset(ranks), book))

    def publish(self, rank: int, name: str, address: str) -> None:
        """Put another address of `rank`'s, this card, wherever others may look for it."""
        for book in self._books_of(rank):
            book.beside(name).publish(rank, address)

    def _books_of(self, rank: int) -> list[AddressBook]:
        """The latest first."""
        return [*(b.book for b in reversed(self._books) if rank in b.ranks), self._book]

    def find(self, peer: int, seconds: float, check: Callable[[], None], name: str = "") -> str:
        """The peer's address, waiting at most `seconds` until it is published; calls `check` at least once a second.

        `name` is that of another address than the mesh's own.
        Raises DeadlineExceeded when the peer has not joined by then, PeerLost when it never will, and what `check`
        raises.
        """
        books = [book.beside(name) for book in self._books_of(peer)] if name else self._books_of(peer)[:1]
        end, pause = time.monotonic() + seconds, _FIRST_SLICE
        while True:
            rest = end - time.monotonic()
            gone = self.gone(peer)  # before the look: what it has published, it has published by now
            try:
                return _first(books, peer, min(max(rest, 0.001), pause if gone is None else _LAST_LOOK))
            except DeadlineExceeded as error:
                if gone is not None:
                    how = self.lost.setdefault(peer, gone if name else f"{gone} before it joined")
                    raise PeerLost(f"rank {peer} {how}") from error
                if rest <= pause:
                    raise DeadlineExceeded(
                        f"rank {peer} has not joined within {seconds:.1f} s: it was not started, or it is dead"
                    ) from error
            check()
            pause = min(2 * pause, _SLICE)

    def broke(self, event: Broken) -> None:
        """The connection to a peer broke; if it said farewell before, it left."""
        self.lost.setdefault(event.peer, event.how)

    def left(self, peer: int) -> None:
        self.lost[peer] = LEFT_JOB

    def all_lost(self, ranks: Set[int]) -> str | None:
        """How `ranks` were lost, in words, if none of them is left."""
        if not self.lost.keys() >= ranks:
            return None
        if not ranks:
            return "nobody is there to send"
        return f"rank {(first := min(ranks))} {self.lost[first]}"


def _first(books: list[AddressBook], peer: int, seconds: float) -> str:
    """The peer's address in the first book that has one; each of them gets its part of the time."""
    for book in books[:-1]:
        with contextlib.suppress(DeadlineExceeded):
            return book.find(peer, seconds / len(books))
    return books[-1].find(peer, seconds / len(books))


class Refusals(list[BadFrame]):
    """The foreign and torn messages that a card refused, the first hundred of them. The very first is logged."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def add(self, error: BadFrame) -> None:
        if not self:
            log.warning("rank %d refused a message: %s", self._rank, error)
        if len(self) < _MOST_REFUSED:
            self.append(error)
