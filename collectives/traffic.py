"""What a schedule carries, without the moves: steps that load links alike are told once, however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from superpod.collectives.schedule import Exchange, IntArray, Schedule, Step, Traffic
from superpod.interconnect.errors import ScheduleError


def traffic(schedule: Schedule) -> list[Traffic]:
    """All that a schedule carries: its own shortcut if it has one, else its steps, equal ones in a row told once."""
    if schedule.traffic is not None:
        return [part for part in schedule.traffic() if part.times > 0]
    found: list[Traffic] = []
    last = b""
    for step in schedule.steps():
        flows = merged(step)
        key = b"".join(getattr(flows, name).tobytes() for name in ("src", "dst", "count", "reduce"))
        if key == last:
            found[-1] = replace(found[-1], times=found[-1].times + 1)
        else:
            found.append(Traffic(flows=flows))
        last = key
    return found


def merged(step: Step) -> Step:
    """A step with one entry a pair of ranks and kind, in order of ranks; slots mean nothing any more."""
    if not len(step):
        return step
    n = int(max(step.src.max(), step.dst.max())) + 1
    key = (step.src * n + step.dst) * 2 + step.reduce
    if np.all(np.diff(key) > 0):
        zero = np.zeros_like(key)
        return Step(step.src, step.dst, zero, step.count, zero, step.reduce)
    pair, place = np.unique(key, return_inverse=True)
    count = np.bincount(place, step.count).astype(np.int64)
    return Step.of(pair // 2 // n, pair // 2 % n, 0, count, reduce=(pair % 2).astype(np.bool_))


def exchange_pairs(exchange: Exchange, ranks: IntArray) -> tuple[IntArray, IntArray]:
    """Everyone of `ranks` with every other of its group: (src, dst)."""
    _, size, stride = exchange
    x = ranks // stride % size
    peers = [ranks + ((x + distance) % size - x) * stride for distance in range(1, size)]
    return np.tile(ranks, size - 1), np.concatenate(peers) if peers else np.zeros(0, np.int64)


def expanded(part: Traffic, n: int) -> Iterator[Step]:
    """The steps that `part` stands for, each merged. For worlds whose moves can be built."""
    ranks = np.arange(n)
    for s in range(part.times):
        steps = [] if part.flows is None else [part.flows]
        for exchange in part.exchanges:
            src, dst = exchange_pairs(exchange, ranks)
            steps.append(Step.of(src, dst, 0, exchange.chunks, reduce=part.reduce))
        if part.shift is not None:
            chunks, first, _ = part.shift
            steps.append(Step.of(ranks, (ranks + first + s) % n, 0, chunks, reduce=part.reduce))
        if part.local:
            steps.append(Step.of(ranks, ranks, 0, part.local, reduce=part.reduce))
        yield merged(Step.join(*steps))


def check_traffic(schedule: Schedule) -> None:
    """Compare a schedule's shortcut with its steps. Raises ScheduleError naming the first step that differs."""
    if schedule.traffic is None:
        return
    said: Iterable[Step] = (step for part in traffic(schedule) for step in expanded(part, schedule.world_size))
    pairs = list(zip(said, map(merged, schedule.steps()), strict=False))
    told = sum(part.times for part in traffic(schedule))
    for index, (short, long) in enumerate(pairs):
        if not _same(short, long):
            raise ScheduleError(f"{schedule.where(index, 0, 0)}: traffic and steps disagree; correct Schedule.traffic")
    if told != schedule.nsteps:
        raise ScheduleError(
            f"{schedule.algorithm} {schedule.collective} on {schedule.world_size} ranks: its traffic tells of {told} "
            f"steps, it has {schedule.nsteps}; correct Schedule.traffic"
        )


def _same(a: Step, b: Step) -> bool:
    def rows(step: Step) -> IntArray:
        return np.stack([step.src, step.dst, step.count, step.reduce])

    return len(a) == len(b) and bool(np.array_equal(rows(a), rows(b)))
