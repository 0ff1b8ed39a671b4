"""A card's thread that says what the card is doing, also while its main thread is stuck; and how cards ask one another.

The thread sleeps on the card's desk until it is asked. It is made with the card's first group, for it costs memory.
What it cannot answer, before that or while native code keeps the interpreter's lock, a signal handler does: stacks.py.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from superpod.collectives import stacks
from superpod.collectives.places import stack
from superpod.collectives.recorder import Record, Recorder, read_record_of
from superpod.collectives.standing import Standing, describe, standing_from
from superpod.interconnect.control import send_news
from superpod.interconnect.env import Settings
from superpod.interconnect.errors import SuperpodError
from superpod.interconnect.forked import call_in_child
from superpod.interconnect.inquiry import ANSWER_WITHIN, Desk, ask, desks, silence

if TYPE_CHECKING:
    from superpod.interconnect.rendezvous import AddressBook

_ASK_ALL = 64  # ranks of a group; in larger ones only those who are awaited, and those whom they await
_FIND_WITHIN = 0.2  # seconds to find a card's desk in the store
_GROWTH = 2.0  # between two reports of one wait


class Group(Protocol):
    """What a reporter knows of a group: an Engine."""

    name: str
    ranks: tuple[int, ...]

    def awaited(self) -> list[int]:
        """The ranks that its collective under way waits for."""
        ...


class Reporter:
    """Answers for one card, and asks others; made once a process."""

    def __init__(self, recorder: Recorder, rank: int, settings: Settings) -> None:
        self._recorder, self._rank = recorder, rank
        self._directory, self._watchdog = settings.directory, settings.watchdog
        self._desk = Desk(self._directory, rank)
        self._groups: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        self._books: list[AddressBook] = []  # where the others' desks are, without a directory
        self._told: dict[tuple[str, int, str, float], float] = {}  # a wait → its age at the next report [s]
        call_in_child(self._desk.abandon)
        if self._directory is not None and recorder.fd is not None:
            send_news(self._directory, rank, "record", descriptor=recorder.fd)
        threading.Thread(target=self._loop, name="superpod reporter", daemon=True).start()

    def publish(self, book: AddressBook) -> None:
        """Without a directory: tell those who can read `book` where this card can be asked."""
        if self._directory is None:
            desks_book = book.beside("desk")
            desks_book.publish(self._rank, self._desk.address)
            self._books.append(desks_book)

    def add(self, group: Group) -> None:
        """Know of a group as long as it lives."""
        self._groups[group.name] = group

    # Answering

    def _loop(self) -> None:
        while True:
            patience = self._watch() if self._watchdog else None
            with contextlib.suppress(OSError):
                if (asked := self._desk.wait(patience)) is not None:
                    self._desk.answer(*asked, self.answer())

    def answer(self) -> dict[str, Any]:
        """What this card is doing: see Standing."""
        groups = dict(self._groups)
        return {
            "rank": self._rank,
            "calls": [call.to_json() for call in _latest(self._recorder.records())],
            "groups": {name: list(group.ranks) for name, group in groups.items()},
            "awaited": {name: awaited for name, group in groups.items() if (awaited := group.awaited())},
            "stack": [list(frame) for frame in stack(threading.main_thread().ident or 0)],
        }

    # Asking

    def explain(self, group: str, late: Collection[int]) -> list[str]:
        """What the ranks are doing on which a wait in `group` depends; takes a second if one of them is silent."""
        known = self._groups.get(group)
        members = list(late) if known is None or len(known.ranks) > _ASK_ALL else known.ranks
        standings = self.inquire([r for r in members if r != self._rank], group)
        return describe(standings, states=("waiting", "failed"))  # a moment ago others may have run out of time, too

    def inquire(self, ranks: Iterable[int], group: str) -> dict[int, Standing]:
        """Ask `ranks`, and whom they await in `group`; includes this card itself."""
        ranks, found = list(ranks), {} if self._directory is None else desks(self._directory)

        def where(rank: int) -> str | None:
            return found.get(rank, (None,))[0] if self._directory is not None else self._look_up(rank)

        def follow(answer: dict[str, Any]) -> list[int]:
            awaited = standing_from(-1, answer).awaited.get(group, [])
            asked.update(awaited)
            return [rank for rank in awaited if rank != self._rank]

        asked = set(ranks)
        answers, absent = ask(ranks, where, follow, seconds=ANSWER_WITHIN)
        standings = {rank: standing_from(rank, answer) for rank, answer in answers.items()}
        standings[self._rank] = standing_from(self._rank, self.answer())
        silent = asked - standings.keys()
        pids, questions = dict[int, int](), dict[int, stacks.Question | None]()
        if self._directory is not None:
            pids = stacks.writers(self._directory)
            questions = {rank: stacks.ask(self._directory, rank, pids[rank]) for rank in silent & pids.keys()}
        if any(questions.values()):
            time.sleep(stacks.ANSWER_WITHIN)
        for rank in silent:
            pid, question = pids.get(rank, 0), questions.get(rank)
            how = silence(pid, has_desk=rank not in absent)
            calls, groups = read_record_of(pid) if pid else ((), {})
            stack = question.answer() if question else ()
            standings[rank] = Standing(rank, tuple(calls), groups, stack=stack, silent=how)
        return standings

    def _look_up(self, rank: int) -> str | None:
        for book in reversed(self._books):
            with contextlib.suppress(SuperpodError):
                return book.find(rank, _FIND_WITHIN)
        return None

    # Watching

    def _watch(self) -> float:
        """Report the waits that are due; returns the seconds until the next one may be."""
        now, rest = time.time(), self._watchdog
        waits = {(c.group, c.number, c.call, c.started): c for c in self._recorder.records() if c.waits}
        self._told = {key: due for key, due in self._told.items() if key in waits}
        for key, call in waits.items():
            due = self._told.setdefault(key, self._watchdog)
            if now - call.started >= due:
                due = self._told[key] = max(due, now - call.started) * _GROWTH
                self._tell(call, now - call.started)
            rest = min(rest, due - (now - call.started))
        return max(rest, 0.05)

    def _tell(self, call: Record, seconds: float) -> None:
        """The launcher reports for all cards; without one, the first of the ranks that wait in a call does."""
        if self._directory is not None:
            send_news(self._directory, self._rank, "late", call=call.title, group=call.group, seconds=seconds)
        else:  # in a thread of its own, for the others ask at the same time, and this one is to answer
            threading.Thread(target=self._print, args=(call, seconds), name="superpod watchdog", daemon=True).start()

    def _print(self, call: Record, seconds: float) -> None:
        group = self._groups.get(call.group)
        standings = self.inquire([r for r in group.ranks if r != self._rank], call.group) if group else {}
        same = (call.group, call.call)
        waiting = [r for r, s in standings.items() if any((c.group, c.call) == same for c in s.under_way)]
        if self._rank == min(waiting, default=self._rank):
            lines = "\n".join(f"  {line}" for line in describe(standings))
            print(f"superpod: rank {self._rank} has waited for {seconds:.0f} s:\n{lines}", file=sys.stderr, flush=True)


def _latest(records: list[Record]) -> Iterator[Record]:
    """Of all that is remembered, what is under way and the last collective of each group."""
    last = {record.group: record for record in records if record.kind == "collective"}
    kept = [record for record in records if record.waits or last.get(record.group) is record]
    return iter(kept[-16:])


class Flight:
    """The recorder and the reporter of this process, made when its first runtime is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[Recorder, Reporter] | None = None
        call_in_child(self._forget)

    def of_process(self, rank: int, settings: Settings) -> tuple[Recorder, Reporter]:
        with self._lock:
            if self._made is None:
                recorder = Recorder(settings.record, shared=True)
                self._made = recorder, Reporter(recorder, rank, settings)
            return self._made

    def _forget(self) -> None:
        self._lock, self._made = threading.Lock(), None


flight = Flight()
