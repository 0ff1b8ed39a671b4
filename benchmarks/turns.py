"""superpod-bench COLLECTIVE --peers: superpod and others on the same data, in turn, in one run.

In a turn, calls follow one another and their mean time on the slowest rank counts; the median of all turns is stated.
Each peer is compared with superpod called in the same way: gloo through torch, an MPI on numpy arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from superpod.benchmarks import memory_limit, plan, results
from superpod.benchmarks.peers import DTYPES, NUMPY, OURS, THROUGH, Field
from superpod.benchmarks.plan import Plan, Series
from superpod.benchmarks.results import Row
from superpod.benchmarks.stage import Stage
from superpod.benchmarks.turns_table import Found, header, line, make_rows, titles
from superpod.interconnect.errors import InvalidValue


def run(todo: Plan, worlds: tuple[int, ...], field: Field, turns: int, output: results.Output) -> int:
    """Measure, print, write; returns the exit code: 1 if a result was wrong. Raises InvalidValue, JobFailed."""
    check(todo, worlds, field, turns)
    output.check()
    address = "" if field.hosts is None else field.hosts.address()
    limit = memory_limit.measure()
    header = results.describe(output.command) | {"memory_limit_gbps": {k: round(v / 1e9, 2) for k, v in limit.items()}}
    print(f"# memory on all cores: copy {limit['copy'] / 1e9:.1f} GB/s, add {limit['add'] / 1e9:.1f} GB/s")
    rows: list[Row] = []
    for world_size in worlds:
        with Stage(world_size, address) as stage:
            field.start(stage, tuple(dict.fromkeys(series.algorithm for series in todo.series)))
            for row in _measured(stage, todo, field, turns, max(limit.values())):
                rows.append(row)
                output.write(header, rows)
    return 1 if any(row["wrong"] for row in rows) else 0


def check(todo: Plan, worlds: tuple[int, ...], field: Field, turns: int) -> None:
    """Raises InvalidValue for what cannot be compared."""
    if turns < 1:
        raise InvalidValue(f"--turns {turns} must be at least 1")
    for world_size in worlds:
        most = world_size if field.hosts is None else max(host.cards for host in field.hosts.hosts)
        plan.check_world(todo, world_size, results.memory("MemAvailable") * world_size // most if most > 0 else 0)
    for one in todo.series:
        if one.dtype not in DTYPES:
            raise InvalidValue(f"-d {one.dtype} is not for all peers; choose from {', '.join(DTYPES)}")
        if one.op == "avg" and any(peer not in OURS.values() and THROUGH[peer] == NUMPY for peer in field.peers):
            raise InvalidValue("-o avg is no operation of MPI; compare sum, or leave the MPIs out of --peers")


def contests(todo: Plan) -> dict[Series, tuple[str, ...]]:
    """Series that differ in nothing but the algorithm are one table: the first of them → the algorithms of all."""
    first: dict[tuple[str, str, str], Series] = {}
    found: dict[Series, tuple[str, ...]] = {}
    for series in todo.series:
        one = first.setdefault((series.collective, series.dtype, series.op), series)
        found[one] = (*found.get(one, ()), series.algorithm)
    return found


def _measured(stage: Stage, todo: Plan, field: Field, turns: int, limit: float) -> Iterator[Row]:
    for series, algorithms in contests(todo).items():
        entrants = field.entrants(algorithms)
        names, columns = [one.name for one in entrants], titles(entrants)
        where = "" if field.hosts is None else f"hosts {field.hosts} "
        print(
            f"#\n# {series.collective}: nranks {stage.world_size} {where}type {series.dtype} redop {series.op} link "
            f"{field.link}; median of {turns} turns in us ± half the range",
            header(columns),
            sep="\n",
            flush=True,
        )
        for count in todo.counts(series, stage.world_size):
            found = measure(stage, names, order(todo, series, count), turns, todo.budget)
            rows = make_rows(todo, series, count, stage.world_size, found, entrants, field, limit)
            print(line(columns, rows), flush=True)
            yield from rows


def order(todo: Plan, series: Series, count: int) -> Row:
    """What the players are told of a case."""
    what = {"collective": series.collective, "count": count, "dtype": series.dtype, "op": series.op, "root": todo.root}
    return what | {"check": todo.check, "warmup": todo.warmup, "calls": todo.iters}


def measure(stage: Stage, names: Sequence[str], task: Row, turns: int, budget: float) -> dict[str, Row]:
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


def ratio(found: Found, name: str) -> float:
    """A program's time / that of superpod called in the same way."""
    return round(float(found[name]["median_us"]) / float(found[OURS[THROUGH[name]]]["median_us"]), 3)
