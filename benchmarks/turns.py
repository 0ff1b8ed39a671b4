"""superpod-bench COLLECTIVE --peers: superpod and others on the same data, in turn, in one run.

In a turn, calls follow one another and their mean time on the slowest rank counts; the median of all turns is stated.
Each peer is compared with superpod called in the same way: gloo through torch, an MPI on numpy arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

import numpy as np

from superpod.benchmarks import memory_limit, plan, results
from superpod.benchmarks.busbw import algbw, busbw, least_bytes
from superpod.benchmarks.peers import DTYPES, NUMPY, OURS, THROUGH, Field
from superpod.benchmarks.plan import AUTO, Plan, Series
from superpod.benchmarks.results import Row
from superpod.benchmarks.stage import Stage
from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.units import size_text


def run(todo: Plan, worlds: tuple[int, ...], field: Field, turns: int, output: results.Output) -> int:
    """Measure, print, write; returns the exit code: 1 if a result was wrong. Raises InvalidValue, JobFailed."""
    check(todo, worlds, field, turns)
    output.check()
    limit = memory_limit.measure()
    header = results.describe(output.command) | {"memory_limit_gbps": {k: round(v / 1e9, 2) for k, v in limit.items()}}
    print(f"# memory on all cores: copy {limit['copy'] / 1e9:.1f} GB/s, add {limit['add'] / 1e9:.1f} GB/s")
    rows: list[Row] = []
    for world_size in worlds:
        with Stage(world_size) as stage:
            field.start(stage)
            for row in _measured(stage, todo, field, turns, max(limit.values())):
                rows.append(row)
                output.write(header, rows)
    return 1 if any(row["wrong"] for row in rows) else 0


def check(todo: Plan, worlds: tuple[int, ...], field: Field, turns: int) -> None:
    """Raises InvalidValue for what cannot be compared."""
    if turns < 1:
        raise InvalidValue(f"--turns {turns} must be at least 1")
    for world_size in worlds:
        plan.check_world(todo, world_size, results.memory("MemAvailable"))
    for one in todo.series:
        if one.algorithm != AUTO:
            raise InvalidValue(f"--algorithm {one.algorithm} is for superpod by itself; leave it out with --peers")
        if one.dtype not in DTYPES:
            raise InvalidValue(f"-d {one.dtype} is not for all peers; choose from {', '.join(DTYPES)}")
        if one.op == "avg" and any(peer not in OURS.values() and THROUGH[peer] == NUMPY for peer in field.names):
            raise InvalidValue("-o avg is no operation of MPI; compare sum, or leave the MPIs out of --peers")


def _measured(stage: Stage, todo: Plan, field: Field, turns: int, limit: float) -> Iterator[Row]:
    for series in todo.series:
        print(
            f"#\n# {series.collective}: nranks {stage.world_size} type {series.dtype} redop {series.op} link "
            f"{field.link}; median of {turns} turns in us ± half the range",
            _header(field.names),
            sep="\n",
            flush=True,
        )
        for count in todo.counts(series, stage.world_size):
            found = measure(stage, field.names, order(todo, series, count), turns, todo.budget)
            rows = [_row(todo, series, count, stage.world_size, name, found, field.link, limit) for name in found]
            print(_line(rows), flush=True)
            yield from rows


def order(todo: Plan, series: Series, count: int) -> Row:
    """What the players are told of a case."""
    what = {"collective": series.collective, "count": count, "dtype": series.dtype, "op": series.op, "root": todo.root}
    return what | {"check": todo.check, "warmup": todo.warmup, "calls": todo.iters}


def measure(stage: Stage, names: tuple[str, ...], task: Row, turns: int, budget: float) -> dict[str, Row]:
    """All players in turn: a first turn of each tells how many calls are affordable, at most the order's own number.

    `budget`: seconds of timed calls of one player, all turns together.
    """
    calls: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in names}
    wrong = dict.fromkeys(names, 0)
    for name in names:
        seconds, wrong[name] = stage.turn(name, task | {"calls": 1, "warmup": 1})
        calls[name] = max(1, min(task["calls"], int(budget / turns / max(seconds, 1e-9))))
    for _ in range(turns):
        for name in names:
            how = {"calls": calls[name], "warmup": min(task["warmup"], calls[name])}
            seconds, mistakes = stage.turn(name, task | how)
            times[name].append(seconds)
            wrong[name] += mistakes
    checked = task.get("check", True)
    return {name: summary(times[name], calls[name], wrong[name] if checked else None) for name in names}


def summary(times: list[float], calls: int, wrong: int | None) -> Row:
    """The figures of one player: median, least and greatest of the turns; `wrong` is None if nobody looked."""
    figures = {"median_us": median(times), "min_us": min(times), "max_us": max(times)}
    return {k: round(v * 1e6, 3) for k, v in figures.items()} | {"calls": calls, "turns": len(times), "wrong": wrong}


def ratio(found: Mapping[str, Row], name: str) -> float:
    """A program's time / that of superpod called in the same way."""
    return round(float(found[name]["median_us"]) / float(found[OURS[THROUGH[name]]]["median_us"]), 3)


def _row(
    todo: Plan,
    series: Series,
    count: int,
    world_size: int,
    name: str,
    found: Mapping[str, Row],
    link: str,
    limit: float,
) -> Row:
    """One program's row, with the fields of superpod-bench's others; a peer's link and algorithm are its own affair."""
    result, nbytes = found[name], count * np.dtype(series.dtype).itemsize
    seconds = result["median_us"] * 1e-6
    ours = name in OURS.values()
    what = {"collective": series.collective, "backend": name, "through": THROUGH[name], "world_size": world_size}
    how = {"nbytes": nbytes, "dtype": series.dtype, "op": series.op, "root": todo.root if series.case.rooted else -1}
    by = {"link": link if ours else name, "algorithm": AUTO if ours else name}
    needed = least_bytes(series.collective, nbytes=nbytes, world_size=world_size)
    rates = {
        "time_us": result["median_us"],
        "algbw_gbps": round(algbw(nbytes=nbytes, seconds=seconds) / 1e9, 6),
        "busbw_gbps": round(busbw(series.collective, nbytes=nbytes, seconds=seconds, world_size=world_size) / 1e9, 6),
        "memory_share": round(needed / seconds / limit, 4),
        "ratio": ratio(found, name),
    }
    peers = [one["median_us"] for peer, one in found.items() if peer not in OURS.values()]
    best = {"best_peer_ratio": round(min(peers) / result["median_us"], 3)} if ours and peers else {}
    return what | how | by | result | rates | best


def _header(names: tuple[str, ...]) -> str:
    peers = [name for name in names if name not in OURS.values()]
    return "#" + _cells("size", *names, *(f"{name}/ours" for name in peers), "memory", "#wrong")[1:]


def _line(rows: list[Row]) -> str:
    peers = [row for row in rows if row["backend"] not in OURS.values()]
    return _cells(
        size_text(rows[0]["nbytes"]),
        *(_time(row) for row in rows),
        *(f"{row['ratio']:.2f}" for row in peers),
        f"{rows[0]['memory_share']:.1%}",
        "N/A" if rows[0]["wrong"] is None else sum(row["wrong"] for row in rows),
    )


def _time(row: Row) -> str:
    half = (row["max_us"] - row["min_us"]) / 2 / row["median_us"]
    return f"{row['median_us']:,.{1 if row['median_us'] < 1000 else 0}f} ±{half:.0%}"


def _cells(*cells: object) -> str:
    return "".join(f"{cell!s:>15}" for cell in cells)
