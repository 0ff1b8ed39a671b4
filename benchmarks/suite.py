"""Carry a plan out on one number of cards after the other: tables to stdout, rows to a file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from superpod.benchmarks import job, plan, results, table
from superpod.benchmarks.plan import AVERAGES, Plan
from superpod.benchmarks.results import Output
from superpod.interconnect.units import seconds_text, size_text

_PLACES = ("out_of_place", "in_place")


def run(todo: Plan, worlds: tuple[int, ...], *, link: str, output: Output) -> int:
    """Measure, print, write; returns the exit code: 1 if a result was wrong.

    Args:
        link: SUPERPOD_LINK for the cards.
        output: the files, replaced after each number of cards.
    Raises:
        InvalidValue: before anything starts, when one of `worlds` cannot carry the plan out.
        JobFailed: a card failed; what was measured until then has been printed and written.
    """
    for world_size in worlds:
        plan.check_world(todo, world_size, results.memory("MemAvailable"))
    output.check()
    header = results.describe(output.command)
    rows: list[dict[str, Any]] = []
    for world_size in worlds:
        try:
            for row in _measured(todo, world_size, link, header):
                rows.append(row)
        finally:
            output.write(header, rows)
    return 1 if any(row[place]["wrong"] for row in rows for place in _PLACES if row[place]) else 0


def _measured(todo: Plan, world_size: int, link: str, header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one number of cards, printed as they come: a table for each collective and algorithm."""
    print(_preamble(todo, world_size, header), flush=True)
    arriving = job.run(
        world_size,
        "superpod.benchmarks.worker",
        todo.to_json(),
        preload=("superpod.benchmarks.measure",),
        variables={"SUPERPOD_LINK": link},
    )
    for (collective, algorithm, used), rows in groupby(arriving, _table_of):
        print(f"#\n# {collective}: nranks {world_size} link {used} algorithm {algorithm}", table.header(), sep="\n")
        shown: list[dict[str, Any]] = []
        for row in rows:
            print(table.line(row), flush=True)
            shown.append(row)
            yield row
        print(table.footer(shown), flush=True)


def _table_of(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["collective"], row["requested_algorithm"], row["link"]


def _preamble(todo: Plan, world_size: int, header: dict[str, Any]) -> str:
    machine = header["machine"]
    return "\n".join(
        (
            f"# superpod-bench: nranks {world_size} on {machine['cpu']}, {machine['cores']} cores, "
            f"{size_text(machine['memory_bytes'])}; commit {header['commit'] or 'unknown'}",
            f"# minBytes {min(todo.sizes)} maxBytes {max(todo.sizes)} warmup iters: {todo.warmup} iters: {todo.iters} "
            f"agg iters: 1 validation: {int(todo.check)}",
            f"# time: mean of calls that follow one another, {AVERAGES[todo.average]}; "
            f"fewer calls where {todo.iters} take longer than {seconds_text(todo.budget)}",
        )
    )
