"""Part of `verify`: what the ranks execute must say what the steps say, and come to an end.

Each rank is a process that shares nothing with the others but messages. Sends never wait; a receive takes what comes
first from its peer. What such processes do does not depend on who runs when, so running them once proves it for every
timing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from superpod.collectives.schedule import IntArray, Move, Program, Schedule, Step
from superpod.interconnect.errors import ScheduleError

Lines = defaultdict[tuple[int, int], deque[tuple[int, Move]]]
"""(sender, receiver) → messages under way, each with the step in which it was sent."""


def check_programs(schedule: Schedule) -> None:
    """Run the programs of all ranks, then compare them with the steps. Raises ScheduleError (see `verify`)."""
    steps = tuple(schedule.steps())
    kept = replace(schedule, build=steps.__getitem__)  # steps built once, not once a rank
    programs = [kept.for_rank(r) for r in range(schedule.world_size)]
    _run(schedule, programs)
    _compare(schedule, steps, programs)


def _run(schedule: Schedule, programs: Sequence[Program]) -> None:
    lines: Lines = defaultdict(deque)
    processes = {r: _process(schedule, r, program, lines) for r, program in enumerate(programs)}
    waits: dict[int, tuple[int, Move] | None] = dict.fromkeys(processes)
    progress = True
    while progress:
        progress = False
        for rank in list(waits):
            wait = next(processes[rank], None)
            progress |= wait is None or wait is not waits[rank]
            if wait is None:
                del waits[rank]
            else:
                waits[rank] = wait
    stuck = {rank: wait for rank, wait in waits.items() if wait is not None}
    if stuck:
        raise _stuck(schedule, stuck)
    for (sender, receiver), line in lines.items():
        for index, move in line:
            where = schedule.where(index, sender, move.first)
            raise ScheduleError(f"{where}: is sent to rank {receiver}, which never receives it")


def _process(schedule: Schedule, rank: int, program: Program, lines: Lines) -> Iterator[tuple[int, Move]]:
    """One rank; yields (step, receive) for as long as it waits for that message."""
    for part in program:
        for move in part.sends:
            lines[rank, move.peer].append((part.index, move))
        for move in part.receives:
            line, wait = lines[move.peer, rank], (part.index, move)
            while not line:
                yield wait
            sent = line.popleft()
            if sent != (part.index, Move(rank, move.first, move.count, move.to, move.reduce)):
                raise ScheduleError(
                    f"{schedule.where(part.index, rank, move.to)}: expects {_text(*wait)} of rank {move.peer}, "
                    f"which sends {_text(*sent)}"
                )


def _text(index: int, move: Move) -> str:
    what = "to be added" if move.reduce else "to be kept"
    return f"{move.count} slots from {move.first} for slot {move.to}, {what}, in step {index}"


def _stuck(schedule: Schedule, waits: dict[int, tuple[int, Move]]) -> ScheduleError:
    """The error for ranks that wait forever: for one another in a circle, or for one that has finished."""
    path = [min(waits)]
    while (peer := waits[path[-1]][1].peer) in waits and peer not in path:
        path.append(peer)
    if peer not in waits:
        index, move = waits[path[-1]]
        where = schedule.where(index, path[-1], move.to)
        return ScheduleError(f"{where}: waits for a message of rank {peer}, which never sends it")
    circle = path[path.index(peer) :]
    links = (f"rank {r} in step {waits[r][0]} waits for rank {waits[r][1].peer}" for r in circle)
    index, move = waits[circle[0]]
    return ScheduleError(f"{schedule.where(index, circle[0], move.to)}: deadlock: {', '.join(links)}")


def _compare(schedule: Schedule, steps: Sequence[Step], programs: Sequence[Program]) -> None:
    """Local moves, sends and receives of every rank and step must be the steps' own, in their order."""
    index = np.repeat(np.arange(len(steps)), [len(s) for s in steps])
    whole = Step.join(Step.of([], [], [], []), *steps)
    local = whole.src == whole.dst
    for part, mine, peer, rows in (
        ("local", whole.src, whole.dst, local),
        ("sends", whole.src, whole.dst, ~local),
        ("receives", whole.dst, whole.src, ~local),
    ):
        columns = (mine, index, peer, whole.first, whole.count, whole.to, whole.reduce)
        said = np.stack([c[rows] for c in columns], axis=1)
        said = said[np.lexsort((said[:, 1], said[:, 0]))]  # by rank, then by step; stable
        _compare_part(schedule, part, _table(programs, part), said)


def _table(programs: Sequence[Program], part: str) -> IntArray:
    """One row a move: rank, step, peer, first, count, to, reduce."""
    rows = [
        (rank, step.index, m.peer, m.first, m.count, m.to, m.reduce)
        for rank, program in enumerate(programs)
        for step in program
        for m in getattr(step, part)
    ]
    return np.array(rows, np.int64).reshape(-1, 7)


def _compare_part(schedule: Schedule, part: str, done: IntArray, said: IntArray) -> None:
    """Both by rank, then by step: the first difference is an error."""
    common = min(len(done), len(said))
    differs = np.flatnonzero((done[:common] != said[:common]).any(axis=1))
    if not len(differs) and len(done) == len(said):
        return
    at = int(differs[0]) if len(differs) else common
    rank, index, slot = (said if at < len(said) else done)[at, [0, 1, 5]].tolist()
    raise ScheduleError(
        f"{schedule.where(index, rank, slot)}: the rank's program and the steps disagree on its {part}; "
        "correct Schedule.program, or leave it out"
    )
