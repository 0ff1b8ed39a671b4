"""What superpod and others have needed, as rows and as a table on the terminal: a column for each, then comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from superpod.benchmarks.busbw import algbw, busbw, least_bytes
from superpod.benchmarks.peers import Entrant, Field
from superpod.benchmarks.plan import Plan, Series
from superpod.benchmarks.results import Row
from superpod.interconnect.units import size_text

Found = Mapping[str, Row]  # name of an entrant → its figures


def make_rows(
    todo: Plan,
    series: Series,
    count: int,
    world_size: int,
    found: Found,
    entrants: Sequence[Entrant],
    field: Field,
    limit: float,
) -> list[Row]:
    """A row for each entrant, with the fields of superpod-bench's others.

    `limit`: what the memory of this host carries [B/s].
    """
    nbytes = count * np.dtype(series.dtype).itemsize
    what = {"world_size": world_size, "nbytes": nbytes, "dtype": series.dtype, "op": series.op}
    how = {"root": todo.root if series.case.rooted else -1}
    where = {} if field.hosts is None else {"hosts": str(field.hosts)}
    needed = least_bytes(series.collective, nbytes=nbytes, world_size=world_size)
    rows = []
    for one in entrants:
        seconds = found[one.name]["median_us"] * 1e-6
        bus = busbw(series.collective, nbytes=nbytes, seconds=seconds, world_size=world_size)
        rates = {
            "time_us": found[one.name]["median_us"],
            "algbw_gbps": round(algbw(nbytes=nbytes, seconds=seconds) / 1e9, 6),
            "busbw_gbps": round(bus / 1e9, 6),
            "memory_share": round(needed / seconds / limit, 4),
        }
        who = {"collective": series.collective, "backend": one.program, "through": one.through}
        rows.append(
            who | what | how | where | _by(one, field) | found[one.name] | rates | _beside(one, found, entrants)
        )
    return rows


def _by(one: Entrant, field: Field) -> Row:
    """A peer's link and algorithm are its own affair."""
    if not one.ours:
        return {"player": one.name, "link": one.program, "algorithm": one.program}
    encryption = {} if one.encrypted is None else {"encryption": one.encrypted}
    return {"player": one.name, "link": field.link, "algorithm": one.algorithm} | encryption


def _beside(one: Entrant, found: Found, entrants: Sequence[Entrant]) -> Row:
    """Compared with the others: with superpod called in the same way, the best peer, and superpod in clear."""
    time = float(found[one.name]["median_us"])
    ours = next(other for other in entrants if other.ours and other.through == one.through)
    row: Row = {"ratio": round(time / float(found[ours.name]["median_us"]), 3)}
    peers = [float(found[other.name]["median_us"]) for other in entrants if not other.ours]
    if one.ours and peers:
        row["best_peer_ratio"] = round(min(peers) / time, 3)
    if (clear := _in_clear(one, entrants)) is not None:
        row["encryption_ratio"] = round(time / float(found[clear.name]["median_us"]), 3)
    return row


def _in_clear(one: Entrant, entrants: Sequence[Entrant]) -> Entrant | None:
    """The same as `one`, which encrypts, without that."""
    if not one.encrypted:
        return None
    wanted = (one.program, one.algorithm, False)
    return next((other for other in entrants if (other.program, other.algorithm, other.encrypted) == wanted), None)


def titles(entrants: Sequence[Entrant]) -> list[str]:
    """Of the columns."""
    compared = [f"{one.name}/ours" for one in entrants if not one.ours]
    price = ["encrypted/clear"] if any(_in_clear(one, entrants) for one in entrants) else []
    return ["size", *(one.name for one in entrants), *compared, *price, "memory", "#wrong"]


def header(columns: Sequence[str]) -> str:
    """The line of titles."""
    return "#" + _cells(columns, columns)[1:]


def line(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """The rows of one size."""
    cells = [
        size_text(rows[0]["nbytes"]),
        *(_time(row) for row in rows),
        *(f"{row['ratio']:.2f}" for row in rows if not row["backend"].startswith("superpod")),
        *(f"{rows[0][name]:.2f}" for name in ("encryption_ratio",) if name in rows[0]),
        f"{rows[0]['memory_share']:.1%}",
        "N/A" if rows[0]["wrong"] is None else str(sum(row["wrong"] for row in rows)),
    ]
    return _cells(columns, cells)


def _time(row: Row) -> str:
    half = (row["max_us"] - row["min_us"]) / 2 / row["median_us"]
    return f"{row['median_us']:,.{1 if row['median_us'] < 1000 else 0}f} ±{half:.0%}"


def _cells(columns: Sequence[str], cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{max(15, len(column) + 1)}}" for column, cell in zip(columns, cells, strict=True))
