"""Turns: who gets how many calls, what becomes a row, what cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from superpod.benchmarks import memory_limit, plan, turns, turns_table
from superpod.benchmarks.peers import Field, field
from superpod.benchmarks.plan import AUTO, Plan
from superpod.interconnect.errors import InvalidValue

TASK = {"calls": 20, "warmup": 5, "check": True}


def names(of: Field, *algorithms: str) -> list[str]:
    return [entrant.name for entrant in of.entrants(algorithms or (AUTO,))]


class FakeStage:
    """Players that take a given time; what they were asked."""

    world_size = 4

    def __init__(self, **seconds: list[float]) -> None:
        self._seconds = {name: iter(some) for name, some in seconds.items()}
        self.asked: list[tuple[str, int, int]] = []

    def turn(self, player: str, order: dict[str, Any]) -> tuple[float, int]:
        self.asked.append((player, order["calls"], order["warmup"]))
        return next(self._seconds[player]), int(player == "mpich")


def test_players_take_turns_and_the_slow_one_gets_fewer_calls() -> None:
    stage: Any = FakeStage(superpod=[0.001, 0.002, 0.001, 0.009], mpich=[0.1, 0.3, 0.1, 0.2])
    found = turns.measure(stage, ("superpod", "mpich"), TASK, 3, budget=1.0)
    first, *rest = stage.asked[:2], *[stage.asked[i : i + 2] for i in (2, 4, 6)]
    assert first == [("superpod", 1, 1), ("mpich", 1, 1)]
    assert rest == [[("superpod", 20, 5), ("mpich", 3, 3)]] * 3
    assert found["superpod"] == {
        "median_us": 2000.0,
        "min_us": 1000.0,
        "max_us": 9000.0,
        "calls": 20,
        "turns": 3,
        "wrong": 0,
    }
    assert (found["mpich"]["median_us"], found["mpich"]["wrong"]) == (200_000.0, 4)


def test_results_that_were_not_checked_are_no_failure() -> None:
    stage: Any = FakeStage(superpod=[0.001] * 3)
    found = turns.measure(stage, ("superpod",), TASK | {"check": False}, 2, budget=1.0)
    assert found["superpod"]["wrong"] is None


def test_a_peer_is_compared_with_superpod_called_in_the_same_way() -> None:
    todo = Plan(plan.series(("all_reduce",), algorithm="auto", dtype="float32", op="sum"), (4000,))
    times = {"superpod": 100.0, "superpod-torch": 200.0, "gloo": 1000.0, "openmpi": 300.0}
    found = {name: turns.summary([us * 1e-6], 9, 0) for name, us in times.items()}
    field = Field(("gloo", "openmpi"), link="shm")
    made = turns_table.make_rows(todo, todo.series[0], 1000, 4, found, field.entrants(), field, 32e6)
    rows = {row["player"]: row for row in made}
    assert {name: row["ratio"] for name, row in rows.items()} == {
        "superpod": 1.0,
        "superpod-torch": 1.0,
        "gloo": 5.0,
        "openmpi": 3.0,
    }
    assert (rows["superpod"]["best_peer_ratio"], rows["superpod-torch"]["best_peer_ratio"]) == (3.0, 1.5)
    assert (rows["superpod"]["link"], rows["openmpi"]["link"]) == ("shm", "openmpi")
    assert rows["superpod"]["busbw_gbps"] == pytest.approx(0.06)  # 40 MB/s, of which 2·3/4 go over a link
    assert rows["superpod"]["memory_share"] == pytest.approx(10.0)  # 4 ranks read and write 4 kB in 100 µs
    columns = turns_table.titles(field.entrants())
    assert columns == ["size", *found, "gloo/ours", "openmpi/ours", "memory", "#wrong"]
    assert turns_table.line(columns, made).split()[-4:] == ["5.00", "3.00", "1000.0%", "0"]
    assert len(turns_table.line(columns, made)) == len(turns_table.header(columns))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": 0}, "--turns 0 must be at least 1"),
        ({"dtype": "float16"}, "-d float16 is not for all peers; choose from float32"),
        ({"op": "avg"}, "-o avg is no operation of MPI; compare sum"),
        ({"worlds": (0,)}, "-n 0 must be at least 1 card"),
    ],
)
def test_what_cannot_be_compared(options: dict[str, Any], message: str) -> None:
    given = {"algorithm": "auto", "dtype": "float32", "op": "sum", "worlds": (2,), "turns": 1} | options
    series = plan.series(("all_reduce",), **{name: given[name] for name in ("algorithm", "dtype", "op")})
    with pytest.raises(InvalidValue, match=message):
        turns.check(Plan(series, (64,)), given["worlds"], Field(("openmpi",)), given["turns"])
    turns.check(
        Plan(plan.series(("all_reduce",), algorithm="auto", dtype="float32", op="avg"), (64,)), (2,), Field(()), 1
    )


def test_peers_that_are_unknown_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="--peers 'nccl' is unknown; choose from gloo, openmpi, mpich, or all"):
        field("nccl", tmp_path, "auto")
    with pytest.raises(InvalidValue, match=r"--peers mpich: there is no .*mpich/bin/mpirun; make bench-peers"):
        field("gloo,mpich", tmp_path, "auto")
    assert names(field("gloo,gloo", tmp_path, "auto")) == ["superpod", "superpod-torch", "gloo"]
    assert names(field("", tmp_path, "auto")) == ["superpod"]


def test_memory_carries_something() -> None:
    found = memory_limit.measure(cores=1)
    assert set(found) == {"copy", "add"}
    assert min(found.values()) > 1e8
