"""Predictions on the terminal: nccl-tests' columns, then those of a model."""

from __future__ import annotations

from superpod.collectives.simulate import Machine
from superpod.simulator.predict import Row, mark_text

_LINE = "{:>12}  {:>6}  {:>5} {:>11} {:>8} {:>8}  {:>6}  {:>9} {:>5} {:>6}  {}"


def header(machine: Machine, collective: str, n: int, faults: str) -> str:
    """What the rows are about, how sure the figures are, and the columns' titles."""
    topology = machine.topology
    lines = [
        f"# {collective} predicted for {n} cards of {topology.name}: {topology.title}",
        f"# routing {topology.routing}, faults: {faults}",
        f"# predicted, not measured; least sure figure in it is marked {mark_text(topology.weakest_mark())}",
        "#"
        + _LINE.format(
            "size", "type", "redop", "time", "algbw", "busbw", "steps", "waits for", "busy", "bound", "algorithm"
        )[1:],
        "#" + _LINE.format("(B)", "", "", "(us)", "(GB/s)", "(GB/s)", "", "", "(%)", "(%)", "")[1:].rstrip(),
    ]
    return "\n".join(lines)


def line(row: Row) -> str:
    """One row. "busy": the share of the time in which its busiest link works; "bound": 100 is the fastest possible."""
    reduces = row["collective"] in ("all_reduce", "reduce", "reduce_scatter")
    return _LINE.format(
        row["nbytes"],
        "float",
        "sum" if reduces else "none",
        _time(row["seconds"] * 1e6),
        f"{row['algbw_gbps']:.2f}",
        f"{row['busbw_gbps']:.2f}",
        row["steps"],
        row["bottleneck"],
        f"{100 * row['utilisation']:.0f}",
        f"{100 * row['share_of_bound']:.1f}",
        row["algorithm"] + (" (some distances stand for all)" if row["sampled"] else ""),
    )


def _time(microseconds: float) -> str:
    return f"{microseconds:.{2 if microseconds < 100 else 1 if microseconds < 10_000 else 0}f}"
