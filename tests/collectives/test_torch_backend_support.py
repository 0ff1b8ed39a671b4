"""docs/support.md is what the probes give; and the probes can tell right from wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import make_support
import pytest
import support_cards
import support_facts
import torch
import torch.distributed as dist
from support_calls import Probe, probes
from support_cards import MIXED, REFUSED, WORKS, WRONG, outcomes, same
from support_facts import mpi, nccl
from support_page import page
from support_probes import Case
from torch_cards import TorchCards

TORCH_HANDS_ON_PAIRS = {("functional reduce_scatter_tensor", f"complex{bits}", "PRODUCT") for bits in (64, 128)}


@pytest.mark.parametrize("worlds", [(2,), pytest.param((3,), marks=pytest.mark.slow)])
def test_the_page_is_what_the_probes_give(torch_cards: TorchCards, worlds: tuple[int, ...]) -> None:
    found = outcomes(torch_cards, "superpod", worlds)
    assert {probe for probe, outcome in found.items() if outcome == WRONG} == TORCH_HANDS_ON_PAIRS
    assert MIXED not in found.values()
    made = page(found, *make_support.recorded())
    assert made == make_support.PAGE.read_text(), "docs/support.md is out of date: make support-table"


GLOO_RACES = {("split_group (method of the group)", "", "")}  # mostly it gives up, and now and then it is in time


@pytest.mark.slow
@pytest.mark.timeout(400)  # gloo gives up on a group that cannot be split after 25 s, twice
def test_gloo_is_as_recorded(torch_cards: TorchCards) -> None:
    gloo, version = make_support.recorded()
    if torch.__version__.partition("+")[0] != version:
        pytest.skip(f"gloo was measured with torch {version}")
    found = outcomes(torch_cards, "gloo")
    for outcome in (WORKS, WRONG):  # whether all ranks are refused, or only some, may depend on who is quicker
        now, then = ({p for p, one in some.items() if one == outcome} for some in (found, gloo))
        assert now - GLOO_RACES == then - GLOO_RACES


def test_what_gloo_does_superpod_does_too() -> None:
    """Except what torch itself keeps for groups called gloo. The page is held to superpod by the test above."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in make_support.PAGE.read_text().splitlines()]
    found = [
        row
        for row in rows[1:]
        if row[:1] != [""] and any(set(cell) <= set("SGMN") and "G" in cell and "S" not in cell for cell in row[1:])
    ]
    assert found == [["`monitored_barrier`", "G"]]


def probe_again(rank: int, n: int) -> list[str]:
    group = dist.group.WORLD
    float8 = Case(rank, n, group, torch.float8_e5m2)
    found = [support_cards._outcome(float8, "all_reduce")]
    reduced, Case.reduced = Case.reduced, lambda self, length=6: reduced(self, length) + (self.rank == 1)
    found.append(support_cards._outcome(float8, "all_reduce"))
    return [*found, support_cards._outcome(Case(rank, n, group, torch.complex64, "MIN"), "all_reduce")]


def test_a_wrong_number_on_one_rank_is_seen(torch_cards: TorchCards) -> None:
    assert torch_cards(2, probe_again) == [[WORKS, WORKS, REFUSED], [WORKS, WRONG, REFUSED]]


class OfEachRank:
    """Cards whose ranks had these outcomes."""

    def __init__(self, *by_rank: str) -> None:
        self._by_rank = by_rank

    def __call__(self, n: int, *args: Any, **how: Any) -> Iterator[list[str]]:
        return iter([[one] * len(list(probes())) for one in self._by_rank])


@pytest.mark.parametrize(
    ("by_rank", "together"),
    [((WORKS, WORKS), WORKS), ((WORKS, REFUSED), MIXED), ((WORKS, WRONG), WRONG), ((REFUSED, REFUSED), REFUSED)],
)
def test_ranks_that_differ(by_rank: tuple[str, ...], together: str) -> None:
    assert set(outcomes(OfEachRank(*by_rank), "any").values()) == {together}  # type: ignore[arg-type]


def test_values_are_exact_in_the_narrowest_dtype() -> None:
    for n in (2, 3):
        for reduction in ("SUM", "PRODUCT", "AVG", "PREMUL_SUM"):
            case = Case(0, n, None, torch.float8_e5m2, reduction)
            assert same(case.reduced().to(case.dtype), case.reduced())
            assert len({value.tolist() == case.value(0).tolist() for value in case.all()}) == 2  # ranks differ


def test_what_is_written_is_about_probes() -> None:
    assert {"SUM", "AVG"} <= {reduction for _, _, reduction in probes()}
    operations = {operation for operation, _, _ in probes()}
    assert operations >= support_facts._MPI | support_facts._NCCL | support_facts._PAIRS


@pytest.mark.parametrize(
    ("probe", "in_mpi", "in_nccl"),
    [
        (("all_reduce", "float32", "SUM"), True, True),
        (("all_reduce", "int16", "SUM"), True, False),
        (("all_reduce", "bfloat16", "PREMUL_SUM"), False, True),
        (("all_reduce", "complex64", "SUM"), True, True),
        (("all_reduce", "complex64", "PRODUCT"), False, False),
        (("all_reduce", "int32", "BAND"), False, False),
        (("all_reduce", "bool", "AVG"), False, False),
        (("recv (from anybody)", "int8", ""), True, False),
        (("all_gather (uneven)", "int8", ""), False, True),
    ],
)
def test_what_is_written(probe: Probe, in_mpi: bool, in_nccl: bool) -> None:
    assert (mpi(probe), nccl(probe)) == (in_mpi, in_nccl)
