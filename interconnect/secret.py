"""The job's secret: who knows it, belongs to the job. Keys and signatures follow from it, a kind for each purpose.

Made anew for every job. It reaches a card through the memory of the process that it was forked from or through
SUPERPOD_SECRET in its environment, which only the same user can read; it is in no command line, log or store.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from superpod.interconnect.errors import InvalidValue

_LENGTH = 32  # bytes


class JobSecret:
    """256 random bits. Its repr does not show them."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        """`raw`: 32 bytes that nobody can guess."""
        self._raw = raw

    @staticmethod
    def new() -> JobSecret:
        return JobSecret(secrets.token_bytes(_LENGTH))

    @staticmethod
    def from_text(text: str) -> JobSecret:
        """The secret whose `text` this is. Raises InvalidValue, which does not quote it."""
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            raw = b""
        if len(raw) != _LENGTH or len(text) != 2 * _LENGTH:
            raise InvalidValue(
                f"a job's secret of {len(text)} characters must be {2 * _LENGTH} hexadecimal digits; "
                "make one with `openssl rand -hex 32`"
            )
        return JobSecret(raw)

    @property
    def text(self) -> str:
        """64 hexadecimal digits, for SUPERPOD_SECRET."""
        return self._raw.hex()

    def key(self, purpose: str) -> bytes:
        """32 bytes for one purpose, which say nothing of those for another one. HKDF's second half (RFC 5869)."""
        return hmac.digest(self._raw, b"superpod 1 " + purpose.encode() + b"\x01", hashlib.sha256)

    def sign(self, data: bytes) -> bytes:
        """32 bytes that only those can make who know the secret. HMAC-SHA256 (RFC 2104)."""
        return hmac.digest(self.key("signature"), data, hashlib.sha256)

    def check(self, data: bytes, signature: bytes) -> bool:
        """Whether `signature` is `sign(data)`, in a time that does not depend on how wrong it is."""
        return hmac.compare_digest(self.sign(data), signature)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobSecret) and hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self.key("hash"))

    def __repr__(self) -> str:
        return "JobSecret(hidden)"
