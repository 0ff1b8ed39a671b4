"""superpod-run --topology, --what-if, --shape and --hbm with real cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from superpod.simulator.cli import main as superpod_sim

ROOT = Path(__file__).resolve().parent.parent.parent

WORK = """
    import numpy as np
    import superpod

    comm = superpod.init()
    for size in (250_000, 3, 250_000):
        comm.all_reduce(np.ones(size, np.float32), algorithm="ring")
        comm.all_gather(np.ones(5), algorithm="bruck")
        superpod.clock().step()
    comm.all_reduce(np.ones(1000), algorithm="per_dimension")
    comm.barrier(algorithm="dissemination")
    pair = comm.group([comm.rank // 2 * 2, comm.rank // 2 * 2 + 1]) if comm.rank < 2 else comm.group([0, 1])
    if comm.rank < 2:
        pair.broadcast(np.ones(9), algorithm="tree")
    comm.send(np.ones(7), 1) if comm.rank == 0 else comm.rank == 1 and comm.recv(np.ones(7), 0)
    clock = superpod.clock()
    assert clock.on and clock.topology == "ub-mesh-rack" and clock.card == comm.rank
    if comm.rank == 0:
        print(repr(clock.seconds))
"""


def table(launch, tmp_path, *options, script="work.py"):
    ended = launch(*options, "--summary-json", tmp_path / "summary.json", script)
    assert ended.code == 0, ended.err
    return ended, json.loads((tmp_path / "summary.json").read_text())["clock"]


def sims(capsys, collective, algorithm, n, nbytes):
    """The seconds that superpod-sim prints."""
    size = ("-b", str(nbytes), "-e", str(nbytes)) if nbytes else ()
    argv = (collective, "-t", "ub-mesh-rack", "-n", str(n), "--algorithm", algorithm, "--json", *size)
    assert superpod_sim(argv) == 0
    (row,) = json.loads(capsys.readouterr().out)
    return row["seconds"]


def test_modelled_times_are_superpod_sims(launch, tmp_path, capsys):
    launch.script("work.py", WORK)
    ended, clock = table(
        launch, tmp_path, "-n", "4", "--topology", "ub-mesh-rack", "--what-if", "cards=64,algorithm=best"
    )
    rows = {(row["operation"], row["algorithm"]): row for row in clock["operations"]}
    ring = rows["all_reduce", "ring"]
    assert (ring["calls"], ring["bytes"]) == (3, 2_000_012)
    big, small = sims(capsys, "all_reduce", "ring", 4, 1_000_000), sims(capsys, "all_reduce", "ring", 4, 12)
    assert ring["modelled"] == pytest.approx(2 * big + small, rel=1e-15)
    assert rows["all_gather", "bruck"]["modelled"] == pytest.approx(
        3 * sims(capsys, "all_gather", "bruck", 4, 160), rel=1e-15
    )
    assert rows["all_reduce", "per_dimension"]["modelled"] == sims(capsys, "all_reduce", "per_dimension", 4, 8000)
    assert rows["barrier", "dissemination"]["modelled"] == sims(capsys, "barrier", "dissemination", 4, 0)
    assert rows["broadcast", "tree"]["modelled"] == sims(capsys, "broadcast", "tree", 2, 72)
    assert rows["send", "direct"]["modelled"] == rows["recv", "direct"]["modelled"] > 0
    assert all(row["wall"] > 0 and row["bottleneck"] == "board" for row in rows.values())
    assert ended.out == f"[0] {clock['seconds']!r}\n"
    assert clock["step"]["steps"] == 3
    assert "groups of 2, such as ranks 0-1" in clock["what_if"][0]["refused"]
    assert "superpod-run: as if on ub-mesh-rack" in ended.err
    assert "a step" in ended.err


def test_two_runs_have_the_same_times_to_the_last_bit(launch, tmp_path):
    launch.script(
        "work.py",
        """
        import numpy as np
        import superpod

        comm = superpod.init()
        halves = [comm.group(range(0, 2)), comm.group(range(2, 4))]
        for size in range(1, 40):
            works = [comm.all_reduce(np.ones(size**2), async_op=True)]
            works += [half.all_reduce(np.ones(size), async_op=True) for half in halves if half is not None]
            [work.wait() for work in works]
            superpod.clock().step()
        """,
    )
    found = [
        table(launch, tmp_path, "-n", "4", "--topology", "atlas-950", "--placement", "spread")[1] for _ in range(2)
    ]
    for clock in found:
        for row in clock["operations"]:
            del row["wall"]
    assert found[0] == found[1]
    assert found[0]["seconds"] > 0


def test_shaped_links_take_their_time_and_say_how_well(launch, tmp_path):
    launch.script(
        "work.py",
        """
        import time
        import numpy as np
        import superpod

        comm = superpod.init()
        comm.barrier()
        start = time.monotonic()
        for _ in range(3):
            if comm.rank == 0:
                comm.send(np.ones(1 << 20, np.uint8), 1)
                comm.recv(np.ones(1, np.uint8), 1)
            else:
                comm.recv(np.ones(1 << 20, np.uint8), 0)
                comm.send(np.ones(1, np.uint8), 0)
        print(time.monotonic() - start)
        """,
    )
    asked = 3 * (2 * 2.1e-6 + (1 << 20) / 56e9)  # 2.1 µs and 56 GB/s from card to card
    for link in ("zmq", "shm"):
        options = ("-n", "2", "--topology", "ub-mesh-rack", "--shape", "--time-scale", "2000")
        ended = launch(*options, "--summary-json", tmp_path / "s.json", "work.py", env={"SUPERPOD_LINK": link})
        assert ended.code == 0, ended.err
        took = max(float(line.split()[1]) for line in ended.lines)
        assert 2000 * asked <= took
        shape = json.loads((tmp_path / "s.json").read_text())["clock"]["shape"]
        assert shape["frames"] >= 3
        assert shape["took"] >= shape["asked"] > 0
        assert "links shaped, 2000 times as long: of " in ended.err


MEMORY = """
    import sys
    import numpy as np
    import superpod

    comm = superpod.init()
    comm.all_reduce(np.ones(1 << 20, np.float32))
    kept = np.ones(40 << 20, np.uint8)
    if comm.rank == 1 and sys.argv[1] == "numpy":
        np.empty(200 << 20, np.uint8)
    if comm.rank == 1 and sys.argv[1] == "torch":
        import torch
        torch.empty(200 << 20, dtype=torch.uint8)
    if comm.rank == 1 and sys.argv[1] == "python":
        [bytearray(1 << 20) for _ in range(200)]
    if comm.rank == 1 and sys.argv[1] == "caught":
        try:
            np.empty(200 << 20, np.uint8)
        except MemoryError:
            print("caught")
    comm.barrier()
"""


@pytest.mark.parametrize("how", ["numpy", "python", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_card_that_wants_more_than_its_budget_is_named(launch, how):
    launch.script("memory.py", MEMORY)
    ended = launch("-n", "2", "--hbm", "150MiB", "--preload", "torch" if how == "torch" else "json", "memory.py", how)
    assert ended.code == 1
    line = next(line for line in ended.err.splitlines() if "the first failure" in line)
    assert "rank 1 (host " in line
    assert "raised OutOfMemory: rank 1: out of memory: of the card's budget, --hbm 150 MiB," in line
    assert "are in use, and more was asked for (" in line
    assert "allocate less, or give it more" in line
    assert "OutOfMemory: rank 0" not in ended.err


@pytest.mark.parametrize("link", ["zmq", "shm"])
def test_who_stays_in_its_budget_or_copes_feels_nothing(launch, link):
    launch.script("memory.py", MEMORY)
    ended = launch("-n", "2", "--hbm", "150MiB", "memory.py", "caught", env={"SUPERPOD_LINK": link})
    assert (ended.code, ended.out) == (0, "[1] caught\n"), ended.err


def test_a_wrong_machine_is_one_line(launch):
    launch.script("work.py", WORK)
    ended = launch("-n", "9", "--topology", "mi300x", "work.py")
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert ended.err.startswith("superpod-run: 9 cards are more than the 8 of mi300x; take fewer")


def test_without_a_topology_there_is_no_clock(launch):
    launch.script(
        "work.py",
        """
        import superpod

        clock = superpod.clock()
        clock.step()
        try:
            clock.seconds
        except superpod.InvalidValue as error:
            print(clock.on, error)
        """,
    )
    ended = launch("-n", "1", "work.py")
    assert ended.out.startswith(
        "[0] False there is no modelled clock without a machine: start with superpod-run --topol"
    )
    assert "as if on" not in ended.err


@pytest.mark.slow
@pytest.mark.parametrize("example", ["train_digits", "tiny_gpt"])
def test_64_cards_train_and_their_steps_have_a_price(launch, tmp_path, example):
    less = {"train_digits": ("--epochs", "2", "--require", "0"), "tiny_gpt": ("--steps", "3", "--require", "9")}[
        example
    ]
    steps = {"train_digits": 6, "tiny_gpt": 3}[example]
    options = ("-n", "64", "--topology", "atlas-950", "--what-if", "cards=1024,algorithm=best")
    ended = launch(*options, "--summary-json", tmp_path / "s.json", ROOT / "examples" / f"{example}.py", *less)
    assert ended.code == 0, ended.err
    clock = json.loads((tmp_path / "s.json").read_text())["clock"]
    assert (clock["cards_told"], clock["step"]["steps"]) == (64, steps)
    reduces = [row for row in clock["operations"] if row["operation"] == "all_reduce"]
    assert sum(row["calls"] for row in reduces) >= steps
    assert all(0 < row["modelled"] < row["wall"] for row in reduces)
    assert clock["what_if"][0]["cards"] == 1024
    assert clock["what_if"][0]["step"]["median"] > 0
