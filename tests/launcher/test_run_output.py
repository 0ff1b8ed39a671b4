"""What the cards print: prefix, whole lines, files, filters, and consoles that are slow, full or gone."""

from __future__ import annotations

import json
import os
import pty
import signal
import time

import pytest
from launched_jobs import COMMAND, DEADLINE, wait_for_line

BOTH = """
    import os, sys
    print("out of", os.environ["RANK"])
    print("err of", os.environ["RANK"], file=sys.stderr)
"""


ALL_FILES = {"rank0.stdout", "rank0.stderr", "rank1.stdout", "rank1.stderr"}


def files_in(folder):
    """The files that are not empty."""
    return {path.name: path.read_text() for path in folder.iterdir() if path.stat().st_size}


def test_streams_stay_apart_and_lines_have_their_rank(launch):
    launch.script("both.py", BOTH)
    ended = launch("-n", "3", "both.py")
    assert ended.lines == [f"[{rank}] out of {rank}" for rank in range(3)]
    assert sorted(ended.err.splitlines()) == [f"[{rank}] err of {rank}" for rank in range(3)]


def test_lines_are_whole(launch):
    launch.script(
        "mixes.py",
        """
        import os, sys
        for i in range(200):
            for part in ("a" * 500, "b" * 500, "\\n"):
                os.write(1, part.encode())
        os.write(1, b"\\xff\\x00junk\\r\\n")
        os.write(1, b" 10%\\r 50%\\r100%\\n")
        os.write(1, b"no end")
        """,
    )
    job = launch.start("-n", "8", "mixes.py", text=False)
    out = job.communicate(timeout=DEADLINE)[0]
    lines = out.split(b"\n")
    for rank in range(8):
        head = b"[%d] " % rank
        mine = [line.removeprefix(head) for line in lines if line.startswith(head)]
        assert mine == [b"a" * 500 + b"b" * 500] * 200 + [b"\xff\x00junk", b"100%", b"no end"]
    assert len(lines) == 8 * 203 + 1
    assert job.returncode == 0


def test_a_very_long_line_comes_in_pieces(launch):
    launch.script("long.py", "print('x' * (5 << 19))\n")
    assert [len(line) for line in launch("long.py").out.splitlines()] == [4 + (1 << 20), 4 + (1 << 20), 4 + (1 << 19)]


def test_a_line_is_seen_when_it_is_printed(launch):
    launch.script("waits.py", "import time\nprint('now')\ntime.sleep(1000)\n")
    job = launch.start("waits.py")
    wait_for_line(job.stdout, "now")
    job.terminate()
    assert launch.finish(job).code == 143


def test_no_python_prints_at_once_too(launch):
    launch.script("waits.py", "import time\nprint('now')\ntime.sleep(1000)\n")
    job = launch.start("--no-python", "python3", "waits.py")
    wait_for_line(job.stdout, "now")
    job.terminate()
    assert launch.finish(job).code == 143


def test_filter(launch):
    launch.script("both.py", BOTH)
    ended = launch("-n", "4", "--local-ranks-filter", "0,3", "both.py")
    assert ended.lines == ["[0] out of 0", "[3] out of 3"]
    assert sorted(ended.err.splitlines()) == ["[0] err of 0", "[3] err of 3"]


@pytest.mark.parametrize(
    ("options", "in_files", "on_console"),
    [
        ((), ALL_FILES, {"out 0", "out 1", "err 0", "err 1"}),
        (("--tee", "1"), {"rank0.stdout", "rank1.stdout"}, {"out 0", "out 1", "err 0", "err 1"}),
        (("-r", "2"), {"rank0.stderr", "rank1.stderr"}, {"out 0", "out 1"}),
        (("-r", "0:3"), {"rank0.stdout", "rank0.stderr"}, {"out 1", "err 1"}),
        (("-r", "3", "-t", "1:2"), ALL_FILES, {"err 1"}),
        (("--local-ranks-filter", "1"), ALL_FILES, {"out 1", "err 1"}),
    ],
)
def test_log_dir_tee_and_redirects(launch, options, in_files, on_console):
    launch.script("both.py", BOTH)
    ended = launch("-n", "2", "--log-dir", "logs/deep", *options, "both.py")
    assert files_in(launch.folder / "logs/deep") == {name: f"{name[-3:]} of {name[4]}\n" for name in in_files}
    assert {f"{words[1]} {words[3]}" for words in map(str.split, (ended.out + ended.err).splitlines())} == on_console


def test_a_full_disk_costs_the_files_and_not_the_job(launch):
    launch.script("both.py", BOTH)
    (launch.folder / "logs").mkdir()
    (launch.folder / "logs/rank1.stdout").symlink_to("/dev/full")
    ended = launch("-n", "3", "--log-dir", "logs", "both.py")
    assert ended.code == 0
    assert ended.lines == [f"[{rank}] out of {rank}" for rank in range(3)]
    assert ended.err.count("cannot write log files in logs: No space left on device; the job goes on without them") == 1


def test_a_full_stdout_costs_the_output_and_the_exit_code(launch):
    launch.script("both.py", BOTH)
    with open("/dev/full", "w") as full:
        ended = launch("-n", "3", "both.py", stdout=full)
    assert ended.code == 1
    assert ended.err.count("cannot write to stdout: No space left on device; the job goes on") == 1
    assert ended.err.count("err of") == 3


@pytest.mark.parametrize("method", ["fork", "exec"])
def test_closed_stdout(launch, method):
    launch.script("prints.py", "import itertools\nfor i in itertools.count():\n    print(i)\n")
    job = launch.start("-n", "4", "--start-method", method, "prints.py")
    wait_for_line(job.stdout, "] 0")
    job.stdout.close()
    job.stdout = None
    ended = launch.finish(job)
    assert ended.code == 128 + signal.SIGPIPE
    assert ended.err == ""


def test_streams_that_are_closed_from_the_start(launch):
    launch.script("both.py", BOTH)
    ended = launch("-c", f"{COMMAND} -n 2 both.py >&- 2>&- <&-", command=("sh",))
    assert ended.code == 0


def test_a_slow_console_holds_the_cards_and_loses_nothing(launch):
    launch.script(
        "prints.py",
        """
        import os
        for i in range(20000):
            print(i, "x" * 100)
        open(f"done{os.environ['RANK']}", "w").close()
        """,
    )
    job = launch.start("-n", "3", "prints.py")
    wait_for_line(job.stdout, "] 0 ")
    while not all(launch.pids(f"superpod-{rank}") for rank in range(3)):
        time.sleep(0.01)
    assert not list(launch.folder.glob("done*"))  # 6 MB do not fit into pipes and queues: they wait for us
    rest_of_it = job.stdout.read()
    assert launch.finish(job).code == 0
    numbers = {rank: [] for rank in range(3)}
    for line in rest_of_it.splitlines():
        head, number, rest = line.split()
        assert rest == "x" * 100
        numbers[int(head[1])].append(int(number))
    first = {rank: 20000 - len(seen) for rank, seen in numbers.items()}  # what was read before
    assert all(seen == list(range(first[rank], 20000)) for rank, seen in numbers.items())
    assert 1 <= sum(first.values()) < 1000


def test_a_failure_is_noticed_behind_a_stuck_console(launch):
    launch.script(
        "prints.py",
        """
        import os, time
        with open(f"pid{os.environ['RANK']}", "w") as file:
            print(os.getpid(), file=file)
        while os.environ["RANK"] == "0":
            print("x" * 1000)
        time.sleep(1000)
        """,
    )
    job = launch.start("-n", "2", "prints.py")
    wait_for_line(job.stdout, "] x")  # and from now on nobody reads
    while not launch.pids("superpod-1") or not (launch.folder / "pid1").exists():
        time.sleep(0.01)
    os.kill(launch.pids("superpod-1")[0], signal.SIGKILL)
    while launch.pids("superpod-0"):
        time.sleep(0.01)
    assert launch.finish(job).code == 137


def on_a_terminal(launch, *args, no_color=""):
    """What a terminal that is both stdout and stderr gets to see."""
    ours, theirs = pty.openpty()
    job = launch.start(*args, stdout=theirs, stderr=theirs, env={"NO_COLOR": no_color})
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 1 << 16):
            seen += data
    except OSError:  # EIO: the other side has gone
        pass
    os.close(ours)
    return job.wait(DEADLINE), seen.decode()


def test_a_terminal_sees_colours_and_progress(launch):
    launch.script("fails.py", "import os\nprint('out')\nif os.environ['RANK'] == '1':\n    raise ValueError\n")
    code, seen = on_a_terminal(launch, "-n", "2", "fails.py")
    assert code == 1
    assert "\r\x1b[K0/2 cards up" in seen
    assert "\x1b[36m[0]\x1b[0m out\r\n" in seen
    assert "\x1b[33m[1]\x1b[0m out\r\n" in seen
    assert "\x1b[1;31msuperpod-run: the first failure: rank 1" in seen
    assert "cards up" not in seen.rpartition("\x1b[K")[2]


def test_a_terminal_without_colours(launch):
    launch.script("prints.py", "print('out')\n")
    code, seen = on_a_terminal(launch, "prints.py", no_color="1")
    assert code == 0
    assert "[0] out\r\n" in seen
    assert "\x1b[36m" not in seen


def test_no_colours_and_no_progress_elsewhere(launch):
    launch.script("fails.py", "raise ValueError\n")
    ended = launch("-n", "2", "fails.py")
    assert "\x1b" not in ended.out + ended.err
    assert "cards up" not in ended.err


def test_what_a_module_prints_while_it_loads_is_shown_once(launch):
    launch.script("site-packages/loud.py", "import sys\nprint('hello', flush=True)\nprint('bad', file=sys.stderr)\n")
    launch.script("imports.py", "import loud\n")
    ended = launch("-n", "3", "imports.py", env={"PYTHONPATH": str(launch.folder / "site-packages")})
    assert sorted(ended.err.splitlines()) == ["[zygote] bad", "[zygote] hello"]
    assert ended.out == ""


def test_summary(launch):
    launch.script(
        "adds.py",
        """
        import numpy, superpod
        comm = superpod.init()
        for _ in range(3):
            comm.all_reduce(numpy.ones(1000))
        comm.broadcast(numpy.ones(10))
        comm.close()
        """,
    )
    ended = launch("-n", "4", "--summary", "--summary-json", "summary.json", "adds.py")
    assert ended.code == 0, ended.err
    numbers = json.loads((launch.folder / "summary.json").read_text())
    assert (numbers["world_size"], numbers["exit_code"], numbers["first_failure"]) == (4, 0, None)
    assert 0 < numbers["seconds_to_first_collective"] < numbers["seconds"]
    rows = {row["operation"]: row for row in numbers["operations"]}
    assert (rows["all_reduce"]["calls"], rows["all_reduce"]["bytes"]) == (3, 24000)
    assert (rows["broadcast"]["calls"], rows["broadcast"]["bytes"]) == (1, 80)
    assert all(row["seconds"] > 0 and row["algorithm"] for row in rows.values())
    assert ended.err.startswith("superpod-run: 4 cards, first collective after ")
    assert "  operation   algorithm  " in ended.err
    assert len(ended.err.splitlines()) == 4


def test_summary_of_a_failure_and_without_collectives(launch):
    launch.script("fails.py", "import os\nif os.environ['RANK'] == '1':\n    raise ValueError('no')\n")
    ended = launch("-n", "2", "--summary", "--summary-json", "summary.json", "fails.py")
    numbers = json.loads((launch.folder / "summary.json").read_text())
    assert (numbers["exit_code"], numbers["seconds_to_first_collective"], numbers["operations"]) == (1, None, [])
    assert numbers["first_failure"]["rank"] == 1
    assert numbers["first_failure"]["cause"] == "raised ValueError: no"
    assert "superpod-run: 2 cards, no collective, " in ended.err


def test_a_summary_that_cannot_be_written(launch):
    launch.script("nothing.py", "")
    ended = launch("--summary-json", "/dev/full", "nothing.py")
    assert ended.code == 1
    assert "cannot write the summary to /dev/full: No space left on device" in ended.err


def test_exec_and_no_python(launch):
    assert launch("-n", "2", "--no-python", "sh", "-c", 'echo "$RANK of $WORLD_SIZE"').lines == [
        "[0] 0 of 2",
        "[1] 1 of 2",
    ]
    ended = launch("--no-python", "sh", "-c", "echo oh >&2; exit 5")
    assert ended.code == 5
    assert "exited with code 5\n" in ended.err
    assert "  | oh\n" in ended.err
    launch.script("no_format", "no program\n").chmod(0o755)
    ended = launch("--no-python", "./no_format")
    assert ended.code == 126
    assert "[0] ./no_format cannot be executed: Exec format error\n" in ended.err


def test_the_environment_is_torchruns(launch):
    launch.script("prints.py", "import json, os\nprint(json.dumps(dict(os.environ)))\n")
    for method in ("fork", "exec"):
        ended = launch("-n", "2", "--start-method", method, "prints.py", env={"RANK": "7", "OMP_NUM_THREADS": "3"})
        env = json.loads(ended.lines[1].removeprefix("[1] "))
        for name in ("RANK", "LOCAL_RANK", "ROLE_RANK", "GROUP_WORLD_SIZE"):
            assert env[name] == "1"
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"):
            assert env[name] == "2"
        assert (env["GROUP_RANK"], env["ROLE_NAME"], env["MASTER_ADDR"]) == ("0", "default", "127.0.0.1")
        assert 0 < int(env["MASTER_PORT"]) < 65536
        assert env["TORCHELASTIC_USE_AGENT_STORE"] == "True"
        assert (env["TORCHELASTIC_RESTART_COUNT"], env["TORCHELASTIC_MAX_RESTARTS"]) == ("0", "0")
        assert env["SUPERPOD_STORE"] == f"ipc://{env['SUPERPOD_DIR']}/store"
        assert env["TORCHELASTIC_RUN_ID"] == env["SUPERPOD_DIR"].rpartition("/")[2]
        assert env["OMP_NUM_THREADS"] == "3"
    default = json.loads(launch("prints.py").out.removeprefix("[0] "))
    assert default["OMP_NUM_THREADS"] == "1"


def test_nobody_else_may_enter_the_jobs_directory(launch):
    launch.script("looks.py", "import os\nprint(oct(os.stat(os.environ['SUPERPOD_DIR']).st_mode & 0o777))\n")
    assert launch("looks.py").out == "[0] 0o700\n"


def test_subprocess_pipes_of_a_card_work(launch):
    launch.script("runs.py", "import subprocess\nprint(subprocess.run(['echo', 'hi'], capture_output=True).stdout)\n")
    assert launch("runs.py").out == "[0] b'hi\\n'\n"
