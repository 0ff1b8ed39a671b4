"""The keys of a card in a job of several hosts."""

from __future__ import annotations

import hmac

from superpod.interconnect.rendezvous import AddressBook
from superpod.interconnect.secret import JobSecret
from superpod.interconnect.zmq_keys import KeyPair


class Keys:
    """Which keys a card listens and connects with, and whose it lets in.

    With the job's secret all cards have one pair, which follows from it. Without one each has its own, and puts the
    public half where the cards' addresses are: then whoever can write there gets in.
    """

    def __init__(self, secret: JobSecret | None) -> None:
        self.secret = secret
        self.own = KeyPair.fresh() if secret is None else KeyPair.of(secret, "cards")
        self._books: list[AddressBook] = []

    def introduce(self, book: AddressBook, rank: int) -> None:
        """Be known, and let in those who are, to everybody who reads `book`. Before this card's address is in it."""
        if self.secret is None:
            book.beside("key").note(self.own.public.hex(), str(rank))
            self._books.append(book.beside("key"))

    def of_peer(self, published: str) -> bytes:
        """What a peer must listen with; `published` is what its address says [hexadecimal]."""
        return self.own.public if self.secret is not None else bytes.fromhex(published)

    def admits(self, key: bytes) -> bool:
        """Whether a card of this job has the key. From any thread."""
        if self.secret is not None:
            return hmac.compare_digest(key, self.own.public)
        return any(book.knows(key.hex()) for book in reversed(self._books))
