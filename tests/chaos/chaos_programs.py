"""Random programs: from a seed, a list of calls that all ranks of a job make, and a fault if one is wanted.

A program is data, so that a rank that has only the seed knows what all others do, and what must come of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from superpod.collectives import algorithms
from superpod.interconnect.env import COLLECTIVES

NUMPY, TORCH = "numpy", "torch"
FLOATS = ("float64", "float32", "float16")
SMALL_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
COMPLEX = ("complex64", "complex128")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
REDUCING = ("all_reduce", "reduce", "reduce_scatter", "coalesced")
ROOTED = ("broadcast", "reduce", "gather", "scatter")
OPERATIONS = {
    **dict.fromkeys((*FLOATS, *SMALL_FLOATS), ("sum", "avg", "product", "min", "max")),
    **dict.fromkeys(COMPLEX, ("sum", "avg")),
    **dict.fromkeys(INTEGERS, ("sum", "product", "min", "max", "band", "bor", "bxor")),
    "bool": ("sum", "product", "min", "max", "band", "bor", "bxor"),
}
BLOCKS = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
MESSAGES = ("message", "anyone", "batch")
KINDS = {NUMPY: (*COLLECTIVES, "message"), TORCH: (*COLLECTIVES, "coalesced", *MESSAGES)}
LATE = 1 << 30  # as a place to wait: at the end


@dataclass(frozen=True)
class Call:
    """One call, as every rank of its group makes it.

    Attributes:
        number: its place in the program; with a rank it decides what that rank brings.
        group: which of the program's groups.
        kind: a collective; "message" from one rank to another; "anyone", where `root` receives from all others;
            "batch", where everybody sends to the next; "coalesced", several all_reduces in one call.
        count: elements of a block, or of the array where there are no blocks.
        uneven: blocks differ in length (torch).
        root: group rank; of a message the receiver.
        sender: group rank of a message's sender.
        algorithm: by name, or None (numpy).
        views: arrays do not lie in memory in one piece.
    """

    number: int
    group: int
    kind: str
    dtype: str
    count: int
    op: str = ""
    root: int = 0
    sender: int = 0
    tag: int = 0
    uneven: bool = False
    async_op: bool = False
    algorithm: str | None = None
    views: bool = False

    def blocks(self, n: int) -> list[int]:
        """The lengths of n blocks."""
        return [(self.count + 3 * r) % 7 * 5 if self.uneven else self.count for r in range(n)]

    def stream(self) -> tuple[Any, ...]:
        """Calls of one stream must be made in one order by all ranks."""
        if self.kind == "message":
            return self.group, self.sender, self.root, self.tag
        return self.group, self.number if self.kind in MESSAGES else None


@dataclass(frozen=True)
class Fault:
    """What goes wrong: `rank` is killed, or makes `instead` of the program's call `number`.

    Attributes:
        seconds: how long after the call has begun it dies; 0: before it.
    """

    rank: int
    number: int
    instead: Call | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Program:
    """What n ranks do, one call after the other; the last one is a barrier of all."""

    seed: int
    n: int
    api: str
    link: str
    groups: tuple[tuple[int, ...], ...]
    calls: tuple[Call, ...]
    env: dict[str, str] = field(default_factory=dict)
    fault: Fault | None = None

    def mine(self, rank: int) -> Iterator[tuple[Call, list[int]]]:
        """The calls of `rank` in its own order, each with the numbers of those that it waits for before it."""
        random = Random(f"{self.seed} as seen by {rank}")
        calls = _shuffled([c for c in self.calls if rank in self.groups[c.group]], random)
        waits: dict[int, list[int]] = {}
        last = next(i for i, call in enumerate(calls) if call.number >= len(self.calls) - len(self.groups))
        for at, call in enumerate(calls):
            wrong = self.fault is not None and call.number == self.fault.number  # to be noticed before all is over
            if call.async_op and (wrong or random.random() < 0.7):
                earliest = next(
                    i for i in range(at, len(calls)) if not calls[i].async_op
                )  # of what others may do first
                place = random.randint(earliest, len(calls))
                waits.setdefault(min(place, last) if wrong else place, []).append(call.number)
        for at, call in enumerate(calls):
            due = waits.get(at, [])
            random.shuffle(due)
            yield call, due

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.n} ranks, {self.api}, {self.link}, {self.env}, groups {self.groups}"]
        return "\n  ".join([*lines, *map(str, self.calls), f"fault: {self.fault}"])


def program(seed: int, link: str, *, faulty: bool = False) -> Program:
    """The program of a seed; a faulty one goes wrong at a random place."""
    random = Random(f"{seed} {faulty}")
    n, api = random.randint(2, 9), random.choice((NUMPY, TORCH))
    groups = [tuple(range(n))]
    for _ in range(random.randint(0, 3)):
        members = random.sample(range(n), random.randint(1, n))
        groups.append(tuple(members if api == NUMPY else sorted(members)))
    env = _environment(random, api, link)
    longest = 5_000 if env.get("SUPERPOD_WINDOW") == "1K" else 200_000  # or messages take a thousand turns
    calls = [_call(random, number, api, groups, longest) for number in range(random.randint(8, 30))]
    if "SUPERPOD_DETERMINISTIC" in env:
        calls = [replace(call, algorithm=None) for call in calls]
    count = len(calls)
    calls += [Call(count + i, g, "barrier", "bool", 1) for i, g in enumerate(reversed(range(len(groups))))]
    made = Program(seed, n, api, link, tuple(groups), tuple(calls), env)
    return replace(made, fault=_fault(random, made)) if faulty else made


def _environment(random: Random, api: str, link: str) -> dict[str, str]:
    """What the environment says to all cards; through torch it is the only way to ask for an algorithm."""
    env = {}
    segment, window = random.choice(((0, 0), (0, 0), (1, 1), (4, 16), (64, 256)))
    if segment:
        env |= {"SUPERPOD_SEGMENT": f"{segment}K", "SUPERPOD_WINDOW": f"{window}K"}
    if link == "zmq" and random.random() < 0.2:
        env["SUPERPOD_ZMQ_TRANSPORT"] = "tcp"
    if random.random() < 0.3:
        env["SUPERPOD_DETERMINISTIC"] = "1"
    elif api == TORCH:
        some = random.sample(COLLECTIVES, random.randint(0, 4))
        env |= {f"SUPERPOD_{name.upper()}": random.choice(algorithms.names(name)) for name in some}
    return env


def _call(random: Random, number: int, api: str, groups: Sequence[tuple[int, ...]], longest: int) -> Call:
    group = random.choice((0, 0, *range(len(groups))))
    n = len(groups[group])
    kind = random.choice(KINDS[api])
    if n == 1 and kind in MESSAGES:
        kind = "all_reduce"
    dtypes = (*FLOATS, *COMPLEX, *INTEGERS, "bool", *(SMALL_FLOATS if api == TORCH else ()))
    dtype = random.choice(dtypes)
    most = min(random.choice((50, 50, 5_000, 5_000, 80_000, 200_000)), longest)
    if kind in BLOCKS:
        most = max(1, most // n)
    count = random.choice((0, 1, 2, n, *[random.randint(1, most)] * 4))
    if kind in ("message", "anyone", "batch"):
        count = max(1, count)
    root, sender = random.sample(range(n), 2) if n > 1 else (0, 0)
    algorithm = None
    if api == NUMPY and kind != "message" and random.random() < 0.5:
        algorithm = random.choice(algorithms.names(kind))
    return Call(
        number,
        group,
        kind,
        dtype,
        count,
        random.choice(OPERATIONS[dtype]) if kind in REDUCING else "",
        root,
        sender,
        random.randint(0, 3),
        api == TORCH and kind in ("reduce_scatter", "all_gather", "all_to_all") and random.random() < 0.4,
        random.random() < 0.5 and kind != "anyone",  # who takes from anyone must be there before others wait for it
        algorithm,
        random.random() < 0.2,
    )


def _shuffled(calls: Sequence[Call], random: Random) -> list[Call]:
    """Asynchronous calls that stand together, in any order that keeps each stream's."""
    result: list[Call] = []
    run: list[Call] = []
    for call in (*calls, None):
        if call is not None and call.async_op:
            run.append(call)
            continue
        order = [c.stream() for c in run]
        random.shuffle(order)
        waiting = {stream: [c for c in run if c.stream() == stream] for stream in order}
        result += [waiting[stream].pop(0) for stream in order]
        run = []
        if call is not None:
            result.append(call)
    return result


# Faults


def _fault(random: Random, made: Program) -> Fault:
    if random.random() < 0.5:
        rank = random.randrange(made.n)
        number = random.choice([c.number for c in made.calls if rank in made.groups[c.group]])
        return Fault(rank, number, None, random.choice((0.0, 0.0, 0.001, 0.01)))
    candidates = [c for c in made.calls[: -len(made.groups)] if _can_be_altered(c, len(made.groups[c.group]))]
    if not candidates:  # too short a program
        return Fault(0, made.calls[-1].number)
    call = random.choice(candidates)
    group = made.groups[call.group]
    members = [group[call.sender], group[call.root]] if call.kind == "message" else group
    return Fault(random.choice(members), call.number, _altered(random, call, len(group), made))


def _can_be_altered(call: Call, n: int) -> bool:
    """Calls without any data meet nobody, so nobody can tell."""
    return n > 1 and call.kind not in ("anyone", "batch") and min(call.blocks(n)) > 0


def _altered(random: Random, call: Call, n: int, made: Program) -> Call:
    """The same call but for one thing."""
    ways = ["dtype", "count"] if call.kind != "barrier" else []
    ways += ["root"] * (call.kind in ROOTED) + ["op"] * (call.kind in REDUCING)
    ways += ["kind"] * (call.kind != "message")
    way = random.choice(ways)
    if way == "dtype":
        others = [d for d in (*FLOATS, *INTEGERS) if d != call.dtype and (not call.op or call.op in OPERATIONS[d])]
        return replace(call, dtype=random.choice(others))
    if way == "count":
        return replace(call, count=call.count + random.choice((1, 7 if not call.uneven else 1)))
    if way == "root":
        return replace(call, root=random.choice([r for r in range(n) if r != call.root]))
    if way == "op":
        return replace(call, op=random.choice([op for op in OPERATIONS[call.dtype] if op != call.op]))
    kind = random.choice([k for k in COLLECTIVES if k != call.kind])
    op = random.choice(OPERATIONS[call.dtype]) if kind in REDUCING else ""
    return replace(call, kind=kind, op=op, uneven=False, count=max(1, call.count), algorithm=None)
