"""The command as a user types it: real cards, the table, the JSON, and what happens when something is wrong."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from superpod.benchmarks import cli

COMMAND = [sys.executable, "-m", "superpod.benchmarks.cli"]


def bench(*arguments, **kwargs):
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=100, **kwargs)


@pytest.fixture(scope="module")
def all_on_two(tmp_path_factory):
    """One run of everything on 2 cards: (finished process, rows, header)."""
    path = tmp_path_factory.mktemp("bench") / "results.json"
    done = bench("all", "-n", "2", "-b", "16", "-e", "64K", "-f", "64", "--iters", "4", "-J", str(path))
    assert done.returncode == 0, done.stderr
    content = json.loads(path.read_text())
    return done, content["rows"], content["header"]


def test_every_collective_is_measured_and_right(all_on_two):
    _, rows, _ = all_on_two
    assert len({row["collective"] for row in rows}) == 10
    for row in rows:
        assert row["wrong"] == 0
        assert row["world_size"] == 2
        assert row["link"] in ("shm", "zmq")
        assert row["time_us"] > 0
        assert row["min_us"] <= row["median_us"] <= row["max_us"]
        assert row["algorithm"]
        if row["collective"] != "barrier":
            assert row["nbytes"] in (16, 1024, 65536)
            assert row["busbw_gbps"] <= 2 * row["algbw_gbps"]


def test_rows_say_which_place_they_are_from(all_on_two):
    _, rows, _ = all_on_two
    places = {row["collective"]: (row["out_of_place"] is not None, row["in_place"] is not None) for row in rows}
    assert places["all_reduce"] == (True, True)
    assert places["broadcast"] == (False, True)
    assert places["all_to_all"] == (True, False)
    for row in rows:
        assert row[row["place"]]["time_us"] == row["time_us"]


def test_the_header_has_the_command_and_the_machine(all_on_two):
    _, _, header = all_on_two
    assert header["command"].startswith("superpod-bench all -n 2")
    assert header["machine"]["cores"] >= 1


def test_the_table_shows_the_rows(all_on_two):
    done, rows, _ = all_on_two
    shown = [line.split() for line in done.stdout.splitlines() if line and not line.startswith("#")]
    assert [int(fields[0]) for fields in shown] == [row["nbytes"] for row in rows]
    assert done.stdout.count("# Avg bus bandwidth") == 10
    assert done.stdout.count("# Out of bounds values : 0 OK") == 10


def test_several_worlds_algorithms_dtypes_and_operations(tmp_path):
    path = tmp_path / "r.json"
    options = ("-n", "1,3", "-b", "64", "-e", "64", "--algorithm", "ring,auto", "-d", "half,int32", "-o", "max,sum")
    done = bench("all_reduce", *options, "--iters", "2", "-J", str(path))
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 2 * 2 * 2 * 2
    assert {row["wrong"] for row in rows} == {0}
    assert {row["dtype"] for row in rows} == {"float16", "int32"}
    assert {row["algorithm"] for row in rows if row["requested_algorithm"] == "ring"} == {"ring"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["allreduce"], "collective 'allreduce' is unknown; choose from all_reduce, broadcast"),
        (["all_reduce", "-b", "64", "-e", "8"], "-e 8 B must not be below -b 64 B"),
        (["all_reduce", "-f", "1"], "-f 1 must be at least 2"),
        (["all_reduce", "-b", "lots"], "size 'lots' must be a number with K, M, G or T behind it"),
        (["all_reduce", "-d", "float8"], "-d 'float8' is unknown; choose from int8"),
        (["all_reduce", "-o", "band"], "op='band' makes no sense for floating point float32"),
        (["broadcast", "-n", "2", "-r", "2"], "-r 2 must be a rank: 0 to 1 with -n 2"),
        (["all_reduce", "-n", "0"], "-n 0 must be at least 1 card"),
        (["all_reduce", "--algorithm", "comet"], "--algorithm for all_reduce: 'comet' is unknown; choose from auto"),
        (["all_reduce", "--iters", "0"], "--iters 0 must be at least 1"),
        (["all_reduce", "-w", "-1"], "-w -1 must be at least 0"),
        (["all_reduce", "--link", "pigeon"], "invalid choice: 'pigeon'"),
        (["all_reduce", "-J", "/nowhere/r.json"], "-J /nowhere/r.json cannot be written"),
        (["all_reduce", "--peers", "nccl"], "--peers 'nccl' is unknown; choose from gloo, openmpi, mpich, or all"),
        (
            ["all_reduce", "--peers", "gloo", "-a", "0"],
            "-a 0 is for superpod by itself: beside others the slowest rank",
        ),
        (["all_reduce", "--peers", "gloo", "--csv", "/nowhere/r.csv"], "--csv /nowhere/r.csv cannot be written"),
        (["all_reduce", "-n", "2", "--csv", "/nowhere/r.csv"], "--csv /nowhere/r.csv cannot be written"),
        (["all_reduce", "--sizes", "8,64K", "-f", "4"], "--sizes 8,64K must not go with -b, -e, -f or -i"),
        (["all_reduce", "--hosts", "a:4,b:4", "-n", "8"], "-n 8 must not go with --hosts a:4,b:4, which says it, too"),
        (["all_reduce", "--encryption", "off"], "--encryption off is for cards on several hosts; name them"),
        (["namespaces", "0", "--", "true"], "namespaces 0 must be a number of hosts from 1 to 26, a to z"),
        (["table", "/nowhere.json"], "/nowhere.json is no result file"),
        (["latency", "-n", "1"], "latency needs at least 2 cards: -n 1 leaves nobody to send to"),
        (["launch", "--turns", "0"], "--turns 0 must be at least 1"),
        (["ddp", "--turns", "0"], "--turns 0 must be at least 1"),
        (["ddp", "--models", "large"], "--models 'large' is unknown; choose from small, tiny_gpt, tiny_gpt_fsdp2"),
        (["all_reduce", "--peers", "gloo", "--turns", "0"], "--turns 0 must be at least 1"),
        (["all_reduce", "-n", ""], "--cards '' must not be empty; give it a value, or leave it out"),
        (["all_reduce", "--hosts", ""], "--hosts '' must not be empty"),
        (["all_reduce", "--peers", ""], "--peers '' must not be empty"),
        (["all_reduce", "--interface", ""], "--interface '' must not be empty"),
        (["all_reduce", "--hosts", "a:4,b:4", "--encryption", ""], "--encryption '' must not be empty"),
        (
            ["all_reduce", "--turns", "3"],
            "--turns 3 is for several programs; name others with --peers, or leave it out",
        ),
        (["all_reduce", "--peers-from", "nope"], "--peers-from nope is for --peers; name them, or leave it out"),
        (["latency", "--peers-from", "nope"], "--peers-from nope is for --peers"),
        (["all_reduce", "--explain", "-J", "x"], "-J x must not go with --explain, which measures nothing"),
        (["all_reduce", "--explain", "--csv", "x"], "--csv x must not go with --explain, which measures nothing"),
        (["all_reduce,barrier", "-r", "0"], "-r 0 means nothing for all_reduce,barrier, which has no root"),
        (["all", "-n", "2", "-r", "2"], "-r 2 must be a rank: 0 to 1 with -n 2"),
        (["all_reduce", "--sizes", ""], "size '' must be a number with K, M, G or T behind it"),
    ],
)
def test_arguments_that_break_a_rule(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own handlers
    try:
        code = cli.main(arguments)
    except SystemExit as leave:  # argparse's way
        code = leave.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert message in shown.err
    assert "superpod-bench" in shown.err.splitlines()[-1]


@pytest.mark.parametrize(("command", "turns"), [("launch", 3), ("all_reduce", 5)])
def test_help_states_how_many_turns_there_are(command, turns, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert f"each program gets at each size (default {turns})" in " ".join(capsys.readouterr().out.split())


def test_a_wrong_argument_costs_one_line_and_no_import_of_torch():
    code = (
        "import sys; from superpod.benchmarks.cli import main\n"
        "assert main(['nonsense']) == 2; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1


def _children(pid):
    """All processes below `pid`."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_children(int(child))]
    return found


@pytest.fixture
def running(tmp_path):
    """A benchmark that has shown its first row and has much left to do: (process, those below it, its result file).

    Its temporary files lie beside that, in "tmp".
    """
    path, temporary = tmp_path / "r.json", tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [*COMMAND, "barrier,all_reduce", "-n", "2", "--iters", "2000", "--budget", "60s", "-J", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary), "XDG_RUNTIME_DIR": str(temporary)},
    )
    while not process.stdout.readline().startswith("# barrier:"):  # comes with the first row
        assert process.poll() is None
    below = _children(process.pid)
    yield process, below, path
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=30)
    for pid in below:
        _wait_for_end(pid)


def _wait_for_end(pid, seconds=20):
    """Until `pid` has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ready, _, _ = select.select([handle], [], [], seconds)
    os.close(handle)
    assert ready, f"process {pid} is still there"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_neither_cards_nor_files_outlive_the_command(running, number):
    process, below, path = running
    assert len(below) >= 3  # superpod-run and two cards at least
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    for pid in below:
        _wait_for_end(pid)
    assert list((path.parent / "tmp").iterdir()) == []


def test_a_card_that_dies_ends_the_command_and_what_was_measured_is_kept(running):
    process, below, path = running
    os.kill(below[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "SIGKILL" in errors
    assert "superpod-run ended with exit code" in errors
    assert json.loads(path.read_text())["rows"][0]["collective"] == "barrier"


def test_a_reader_that_has_seen_enough():
    line = f"{sys.executable} -m superpod.benchmarks.cli all_reduce -n 2 -e 1K --iters 2 | head -1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("# superpod-bench: nranks 2 on ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("all_reduce", "-n", "2"), ("ddp", "-n", "2"), ("latency",)])
def test_a_wrong_variable_is_refused_in_one_line(command):
    done = bench(*command, env={**os.environ, "SUPERPOD_ALL_REDUCE": "ring:9-1"})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("superpod-bench: error: SUPERPOD_ALL_REDUCE='ring:9-1': 'ring:9-1': low=9 must not")


LOST = "; what was measured until then may be lost"


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (("all_reduce", "-n", "2", "-e", "8", "--iters", "1"), LOST),
        (("table", "r.json"), ""),
        (("compare", "r.json", "r.json"), ""),
    ],
)
def test_a_table_that_cannot_be_written_is_told_in_one_line(arguments, more, tmp_path):
    row = {"collective": "all_reduce", "backend": "superpod", "world_size": 2, "nbytes": 8, "median_us": 1.0}
    (tmp_path / "r.json").write_text(json.dumps({"rows": [row]}))
    with open("/dev/full", "w") as full:
        command = [*COMMAND, *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"superpod-bench: [Errno 28] No space left on device{more}\n"
