"""Several hosts: who takes part, what each launcher is told, what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from superpod.benchmarks import page, peers, plan, turns, turns_table
from superpod.benchmarks.hosts import Hosts, hosts_from
from superpod.benchmarks.peers import Field
from superpod.benchmarks.plan import AUTO, Plan
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.options import job_from, parser

TWO = hosts_from("a:4,me@b:2,[fd77::3]", "", "on,off", ("gloo",))


def four_and_four(encryption: str = "", peers: tuple[str, ...] = ("gloo", "openmpi"), interface: str = "") -> Hosts:
    hosts = hosts_from("a:4,b:4", interface, encryption, peers)
    assert hosts is not None
    return hosts


def test_hosts_as_they_are_typed() -> None:
    assert TWO is not None
    assert (str(TWO), TWO.world_size, TWO.encryption) == ("4+2+1", 7, (True, False))
    assert [host.name for host in TWO.hosts] == ["a", "me@b", "fd77::3"]
    assert four_and_four().encryption == (True,)
    assert four_and_four("off,off").encryption == (False,)
    assert hosts_from("", "", "", ()) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "eth0", "", ()), "--interface eth0 is for cards on several hosts; name them: --hosts a:4,b:4"),
        (("", "", "off", ()), "--encryption off is for cards on several hosts"),
        (("a:4,b:0", "", "", ()), "host 'b:0' in --hosts 'a:4,b:0' must be a name"),
        (("a:4,b:4", "", "maybe", ()), "--encryption 'maybe' is unknown; choose from on, off"),
        (("a:4,b:4", "", "", ("gloo", "mpich")), "--peers mpich does not go with --hosts a:4,b:4; leave it out"),
        (("a:4,me@b:4", "", "", ("openmpi",)), "--hosts me@b: Open MPI's hostfile has no users; say User"),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        hosts_from(*arguments)


def test_superpod_run_understands_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TWO is not None
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    spec = job_from(parser().parse_args([*TWO.superpod_run(encrypted=True), __file__]))
    assert ([(host.name, host.cards) for host in spec.hosts], spec.world_size) == (
        [("a", 4), ("me@b", 2), ("fd77::3", 1)],
        7,
    )
    assert spec.reach.encrypt
    assert spec.reach.exports == {"GLOO_SOCKET_IFNAME": "eth7"}
    through = four_and_four(interface="ib0").superpod_run(encrypted=False)
    reach = job_from(parser().parse_args([*through, __file__])).reach
    assert (reach.encrypt, reach.interface, reach.exports) == (False, "=ib0", {"GLOO_SOCKET_IFNAME": "ib0"})


def test_open_mpi_goes_through_ssh_and_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERPOD_SSH", "ssh -F some")
    files: list[str] = []

    def file(text: str) -> str:
        files.append(text)
        return "/some/file"

    words = four_and_four(interface="ib0").open_mpi(file)
    text = " ".join(words)
    assert files == ["a slots=4\nb slots=4\n"]
    assert "--hostfile /some/file" in text
    assert words[words.index("plm_ssh_agent") + 1] == "ssh -F some"
    for option in ("--mca btl tcp,self,sm", "--mca pml ob1", "--mca btl_tcp_if_include ib0", "-x SUPERPOD_BENCH"):
        assert option in text
    assert f"--mca mpi_yield_when_idle {int(len(os.sched_getaffinity(0)) < 4)}" in text
    assert "btl_tcp_if_include" not in four_and_four().open_mpi(file)


def names(field: Field, *algorithms: str) -> list[str]:
    return [entrant.name for entrant in field.entrants(algorithms)]


def test_series_of_superpod_stand_beside_the_peers() -> None:
    field = Field(("gloo", "openmpi"), hosts=four_and_four("on,off"))
    assert names(field, "auto", "ring") == [
        *("superpod", "superpod:ring", "superpod-torch"),
        *("superpod clear", "superpod:ring clear", "superpod-torch clear"),
        *("gloo", "openmpi"),
    ]
    assert names(Field(("openmpi",), hosts=four_and_four("off")), "ring", "tree") == [
        *("superpod:ring", "superpod:tree", "openmpi"),
    ]
    assert names(Field(("gloo",)), AUTO) == ["superpod", "superpod-torch", "gloo"]


class Started:
    """A stage that notes what is started."""

    world_size, address = 8, "tcp://10.0.0.1:77"

    def __init__(self) -> None:
        self.jobs: list[tuple[str, list[str], str]] = []

    def start(self, name: str, command: list[str], variables: dict[str, str], mark: str = "") -> float:
        self.jobs.append((name, command, mark))
        return 0.0

    def file(self, text: str) -> str:
        return "/some/file"


def test_a_job_for_each_way_and_gloo_once(tmp_path: Path) -> None:
    stage: Any = Started()
    Field(("gloo", "openmpi"), tmp_path, hosts=four_and_four("on,off")).start(stage, ("auto", "ring"))
    assert [(name, mark) for name, _, mark in stage.jobs] == [
        *(("superpod", ""), ("superpod-torch", "")),
        *(("superpod clear", " clear"), ("superpod-torch clear", " clear")),
        *(("gloo", ""), ("openmpi", "")),
    ]
    told = [command for _, command, _ in stage.jobs]
    assert ["--no-encryption" in command for command in told] == [False, False, True, True, False, False]
    assert ["--bind-to=none" in command for command in told] == [False] * 4 + [True, False]
    assert [command[-2:] for command in told[:5]] == [
        *([stage.address, "auto,ring"], [stage.address, "superpod"]) * 2,
        [stage.address, "gloo"],
    ]
    assert told[5][0] == str(tmp_path / "openmpi/bin/mpirun")
    assert told[5][-2:] == [stage.address, "openmpi"]
    alone: Any = Started()
    Field(("gloo",), hosts=four_and_four("off")).start(alone)
    assert [(name, command[-1], mark) for name, command, mark in alone.jobs] == [
        ("superpod", "auto", ""),
        ("superpod-torch", "superpod", ""),
        ("gloo", "gloo", ""),
    ]
    assert all(sys.executable in command[0] for _, command, _ in alone.jobs)


def made_rows() -> list[dict[str, Any]]:
    todo = Plan(plan.series(("all_reduce",), algorithm="auto,ring", dtype="float32", op="sum"), (4000,))
    field = Field(("gloo", "openmpi"), hosts=four_and_four("on,off"))
    ((series, algorithms),) = turns.contests(todo).items()
    entrants = field.entrants(algorithms)
    times = dict(zip((one.name for one in entrants), (100, 300, 200, 80, 250, 100, 1000, 90), strict=True))
    found = {name: turns.summary([us * 1e-6], 9, 0) for name, us in times.items()}
    return turns_table.make_rows(todo, series, 1000, 8, found, entrants, field, 32e6)


def test_the_price_of_encryption_is_in_the_rows() -> None:
    rows = {row["player"]: row for row in made_rows()}
    assert {name: row["encryption_ratio"] for name, row in rows.items() if "encryption_ratio" in row} == {
        "superpod": 1.25,
        "superpod:ring": 1.2,
        "superpod-torch": 2.0,
    }
    assert {name: row["ratio"] for name, row in rows.items()} == {
        "superpod": 1.0,
        "superpod:ring": 3.0,
        "superpod clear": 0.8,
        "superpod:ring clear": 2.5,
        "openmpi": 0.9,
        "superpod-torch": 1.0,
        "superpod-torch clear": 0.5,
        "gloo": 5.0,
    }
    assert (rows["superpod"]["best_peer_ratio"], rows["superpod clear"]["best_peer_ratio"]) == (0.9, 1.125)
    assert [rows[name].get("encryption") for name in ("superpod", "superpod:ring clear", "gloo")] == [True, False, None]
    assert [rows[name]["algorithm"] for name in ("superpod", "superpod:ring clear", "gloo")] == ["auto", "ring", "gloo"]
    assert {row["hosts"] for row in rows.values()} == {"4+4"}


def test_the_table_on_the_terminal_keeps_its_columns() -> None:
    field = Field(("gloo", "openmpi"), hosts=four_and_four("on,off"))
    columns = turns_table.titles(field.entrants(("auto", "ring")))
    head, line = turns_table.header(columns), turns_table.line(columns, made_rows())
    assert columns[-5:] == ["gloo/ours", "openmpi/ours", "encrypted/clear", "memory", "#wrong"]
    assert line.split()[-5:-2] == ["5.00", "0.90", "1.25"]
    assert len(head) == len(line)
    at = head.index("superpod:ring clear") + len("superpod:ring clear")
    assert line[:at].endswith("250.0 ±0%")


def test_algorithms_of_one_collective_share_a_table() -> None:
    series = plan.series(("all_reduce", "barrier"), algorithm="auto", dtype="float32,int32", op="sum")
    assert list(turns.contests(Plan(series, (8,))).values()) == [("auto",), ("auto",), ("auto",)]
    series = plan.series(("all_reduce",), algorithm="tree,ring", dtype="float32,int32", op="sum")
    found = turns.contests(Plan(series, (8,)))
    assert [(one.dtype, algorithms) for one, algorithms in found.items()] == [
        ("float32", ("tree", "ring")),
        ("int32", ("tree", "ring")),
    ]


def test_the_table_for_a_page() -> None:
    head, rule, line = page.table(made_rows()).splitlines()
    assert head.startswith("| cards | size | superpod | superpod:ring | superpod-torch | superpod clear |")
    assert head.endswith("| gloo | openmpi | gloo / ours | openmpi / ours | encrypted / clear |")
    assert rule.count("---") == head.count("|") - 1 == line.count("|") - 1
    assert line.startswith("| 4+4 | 3.9 KiB | 100 µs | 300 µs | 200 µs | 80.0 µs |")
    assert line.endswith("| 1,000 µs | 90.0 µs | 5.00 | 0.90 | 1.25 |")
    both = page.table([*made_rows(), *({**row, "collective": "reduce"} for row in made_rows())]).splitlines()
    assert [line.split(" | ")[0] for line in both[2:]] == ["| all_reduce", "| reduce"]
    with pytest.raises(InvalidValue, match="the table is of runs with several programs"):
        page.table([{"collective": "all_reduce", "world_size": 2, "nbytes": 8, "median_us": 1.0}])


def test_memory_is_that_of_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 cards of 4 GiB do not fit into 50 GiB, 2 do, and there are four hosts of 2."""
    monkeypatch.setattr(turns.results, "memory", lambda field: 50 << 30)
    todo = Plan(plan.series(("all_reduce",), algorithm="auto", dtype="float32", op="sum"), (4 << 30,))
    hosts = hosts_from("a:2,b:2,c:2,d:2", "", "", ())
    turns.check(todo, (8,), Field((), hosts=hosts), 1)
    with pytest.raises(InvalidValue, match="4 GiB on 8 cards need about 96 GiB"):
        turns.check(todo, (8,), Field(()), 1)


def test_peers_by_name() -> None:
    assert peers.peer_names("gloo,openmpi,gloo") == ("gloo", "openmpi")
    assert peers.peer_names("") == ()
