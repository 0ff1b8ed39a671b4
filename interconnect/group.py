"""A group of ranks as the mesh sees it, and how its failure is put into words and back."""

from __future__ import annotations

from collections.abc import Callable

from superpod.interconnect.errors import CollectiveMismatch, PeerLost, RemoteError, SuperpodError
from superpod.interconnect.wire import Header

ProbeHandler = Callable[[int, Header], None]


class Group:
    """What the mesh knows of a group: id on the wire, name for people, who hears its probes, whether it has failed."""

    def __init__(self, ident: int, name: str, on_probe: ProbeHandler) -> None:
        self.ident = ident
        self.name = name
        self.on_probe = on_probe
        self.failure: SuperpodError | None = None


def mismatch(group: Group, one: tuple[int, str], other: tuple[int, str]) -> CollectiveMismatch:
    """The error for two ranks, each with its call in words, that disagree in `group`."""
    (a, call_a), (b, call_b) = sorted((one, other))
    return CollectiveMismatch(f"in group {group.name}: rank {a} called {call_a}, but rank {b} called {call_b}")


def again(error: SuperpodError) -> SuperpodError:
    """A fresh copy: one failure is raised in many threads, each with a traceback of its own."""
    return type(error)(*error.args)


def error_text(rank: int, error: SuperpodError) -> str:
    """A failure as it travels; `error_from` reads it."""
    return f"{type(error).__name__}\n{rank}\n{error}"


def error_from(text: str) -> SuperpodError:
    """The error that another card reports: what concerns all keeps its class, the rest becomes a RemoteError."""
    kind, _, rest = text.partition("\n")
    rank, _, message = rest.partition("\n")
    for known in (CollectiveMismatch, PeerLost, RemoteError):
        if kind == known.__name__:
            return known(message)
    return RemoteError(f"rank {rank} failed with {kind}: {message}")
