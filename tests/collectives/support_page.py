"""The page of the probes: docs/support.md from what superpod and gloo gave and what is written about MPI and NCCL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import support_facts
from support_calls import CALLS, COPYING, REDUCING, Probe
from support_cards import WORKS, WRONG
from support_probes import DTYPES, REDUCTIONS

Outcomes = Mapping[Probe, str]

_TOP = """\
# What works where

Every operation of `torch.distributed` on CPU tensors, with every dtype and every reduction it could be asked for. The
page is made by `make support-table`; a test fails when it is not what the probes give.

- **S**, superpod, and **G**, gloo (torch {torch}): measured. Each combination is run on 2 and 3 ranks, and it counts as
  working when every rank got the right numbers, element by element.
- **M**, torch's MPI backend, and **N**, torch's NCCL backend (on CUDA tensors): what is written about them. torch's
  table of functions by backend (docs/source/distributed.md) and what its sources pass on (ProcessGroupMPI,
  ProcessGroupNCCL, NCCLUtils, distributed_c10d); the NCCL User Guide, "Types" and "User Defined Reduction Operators";
  MPI 4.1, section 6.9.2.
- A letter that is missing: it is refused there, or, for M and N, nobody says that it works. A dash: nowhere.

| | combinations | S | G | M | N |
|---|---|---|---|---|---|
{counts}

What the rows mean in superpod, in which precision it adds up, and what a refusal says: [torch.md](torch.md).
"""
_BOTTOM = """\
## Remarks

- SUM, MAX and BOR of bool are "or"; PRODUCT, MIN and BAND are "and".
- Some functions of torch hand complex tensors on as pairs of real numbers. `all_reduce` therefore refuses PRODUCT of
  complex numbers for every backend; the group's own method, which `reduce` and `reduce_scatter` lead to, has it here.
{wrong}- `monitored_barrier` of torch asks the group's name and serves gloo's only; `split_group` of torch asks for an
  accelerator. superpod has both as methods of the group.
- NCCL adds float8 up natively from version 2.24 on. NCCL's messages are matched in order, tags are not kept apart.
"""


def page(superpod: Outcomes, gloo: Outcomes, torch_version: str) -> str:
    """The whole page. `torch_version`: with which gloo was measured."""
    letters = {probe: _letters(probe, superpod, gloo) for probe in superpod}
    parts = [_TOP.format(torch=torch_version, counts="\n".join(_counts(letters)))]
    for operations, rows in _alike(letters):
        parts += [f"## {' · '.join(operations)}", _table(("dtype", *REDUCTIONS), rows)]
    parts += ["## Copies and messages", _copies(letters)]
    parts += [
        "## Order, objects, groups",
        _table(("operation", "works with"), [(f"`{name}`", letters[name, "", ""]) for name in CALLS]),
    ]
    parts.append(_BOTTOM.format(wrong=_wrong({"superpod": superpod, "gloo": gloo})))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _letters(probe: Probe, superpod: Outcomes, gloo: Outcomes) -> str:
    works = (superpod[probe] == WORKS, gloo[probe] == WORKS, support_facts.mpi(probe), support_facts.nccl(probe))
    return "".join(letter for letter, one in zip("SGMN", works, strict=True) if one) or "–"


def _counts(letters: Mapping[Probe, str]) -> Iterable[str]:
    kinds = {"reductions": REDUCING, "copies and messages": COPYING, "order, objects, groups": CALLS}
    for kind, operations in kinds.items():
        mine = [text for (operation, _, _), text in letters.items() if operation in operations]
        counts = " | ".join(str(sum(letter in text for text in mine)) for letter in "SGMN")
        yield f"| {kind}: {len(operations)} operations | {len(mine)} | {counts} |"


def _alike(letters: Mapping[Probe, str]) -> Iterable[tuple[list[str], list[tuple[str, ...]]]]:
    """Reductions that have the same table, with its rows; dtypes that have the same row, together."""
    tables: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for operation in REDUCING:
        rows = _merged(DTYPES, lambda dtype: tuple(letters[operation, dtype, op] for op in REDUCTIONS))  # noqa: B023
        tables.setdefault(tuple(rows), []).append(operation)
    for rows_alike, operations in tables.items():
        yield operations, list(rows_alike)


def _copies(letters: Mapping[Probe, str]) -> str:
    columns = _merged(DTYPES, lambda dtype: tuple(letters[operation, dtype, ""] for operation in COPYING))
    heads, *rows = zip(*columns, strict=True)
    return _table(("operation", *heads), [(f"`{name}`", *row) for name, row in zip(COPYING, rows, strict=True)])


def _merged(names: Iterable[str], cells: Callable[[str], tuple[str, ...]]) -> list[tuple[str, ...]]:
    """One row for all names that have the same cells: the names, then the cells."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        rows.setdefault(cells(name), []).append(name)
    return [(", ".join(found), *row) for row, found in rows.items()]


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _wrong(measured: Mapping[str, Outcomes]) -> str:
    """A line on what came out wrong, if anything did."""
    where: dict[tuple[str, str], list[str]] = {}
    for backend, outcomes in measured.items():
        for (operation, dtype, reduction), outcome in outcomes.items():
            if outcome == WRONG:
                where.setdefault((f"{reduction} of {dtype}", operation), []).append(backend)
    listed = [f"  {what} by {how} ({', '.join(backends)})" for (what, how), backends in where.items()]
    return (
        "- Where torch hands such pairs on unasked, the numbers are wrong:\n" + ";\n".join(listed) + ".\n"
        if listed
        else ""
    )
