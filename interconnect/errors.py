"""Every error superpod raises, and what it names.

SuperpodError                     (RuntimeError)
├── InvalidValue                  (ValueError)   a value breaks a rule; the message says value, rule, way out
├── ScheduleError                 a schedule is wrong: rank, chunk, step
├── BadFrame                      a foreign or torn message arrived: what was wrong with it
├── LinkClosed                    the card's own mesh is closed
├── DeadlineExceeded              (TimeoutError) a wait took longer than it may: whom it waited for, in what
├── OutOfMemory                   (MemoryError)  a card's memory budget does not suffice: rank, budget
├── CollectiveMismatch            two ranks made different calls: both ranks, both calls
└── JobFailure                    another card ended the job
    ├── PeerLost                  a card died or left: rank, cause
    └── RemoteError               another card raised: rank, its text
"""

from __future__ import annotations

from collections.abc import Iterable


class SuperpodError(RuntimeError):
    """The root: `except SuperpodError` catches all that superpod raises."""


class InvalidValue(SuperpodError, ValueError):
    """A value breaks a rule. The message names the value, the rule and the way out."""


class ScheduleError(SuperpodError):
    """A schedule is wrong. The message names rank, chunk and step."""


class BadFrame(SuperpodError):
    """A foreign or torn message. Nothing was allocated for it; the connection's other messages go on."""


class LinkClosed(SuperpodError):
    """This card's own mesh is closed, so nothing can be sent or received on it any more."""


class DeadlineExceeded(SuperpodError, TimeoutError):
    """A wait took longer than its deadline. The message names the ranks waited for, the call and the seconds."""


class OutOfMemory(SuperpodError, MemoryError):
    """A card's memory budget does not suffice for what it was asked for. The message names the card and the budget."""


class CollectiveMismatch(SuperpodError):
    """Two ranks of a group made different calls. The message names both ranks and both calls."""


class JobFailure(SuperpodError):
    """Another card ended the job; this card only hears of it. Never the first failure of a job."""


class PeerLost(JobFailure):
    """A card died or left while others needed it. The message names the card and the cause."""


class RemoteError(JobFailure):
    """Another card raised an error; the message carries its rank and text."""


def ranks_text(ranks: Iterable[int]) -> str:
    """Ranks in words: [0, 1, 2, 5] → "ranks 0-2, 5"; [3] → "rank 3"; [] → "no rank"."""
    ordered = sorted(set(ranks))
    if not ordered:
        return "no rank"
    runs: list[list[int]] = []
    for rank in ordered:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    words = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
    return f"rank {words}" if len(ordered) == 1 else f"ranks {words}"
