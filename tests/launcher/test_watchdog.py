"""Nobody hangs in silence: who is late is named, with the place in its code, whatever it is stuck in."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
from launched_jobs import wait_for_line

SCRIPT = """
import os
import signal
import sys
import time

import numpy as np

import superpod


def compute(how):
    if how == "loop":
        while True:
            pass
    elif how == "sleep":
        time.sleep(1000)
    elif how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "leave":
        comm.close()
        time.sleep(1000)
    elif how == "message":
        comm.recv(np.ones(3), 0, 4)


def step(how):
    comm.all_reduce(np.ones(10))
    if comm.rank == comm.world_size - 1:
        compute(how)
    comm.all_reduce(np.ones(10, "f4"), timeout=float(sys.argv[2]))


comm = superpod.init()
print("up", flush=True)
step(sys.argv[1])
"""
CALL = r"all_reduce\(10 × float32, sum\) by [\w ]+ \(#1\)"
LAST = r"did last all_reduce\(10 × float64, sum\) by [\w ]+ \(#0\), called in step\(\) at late\.py:\d+"


def line_of(text):
    return SCRIPT.splitlines().index(text) + 1


@pytest.fixture
def late(launch):
    launch.script("late.py", SCRIPT)
    return launch


def stuck_in(how):
    """What is said of rank 2 of 3, which is stuck in this way, as a regular expression."""
    loop = line_of("        while True:")
    return {
        "loop": rf"rank 2 is in compute\(\) at late\.py:({loop}|{loop + 1}); it {LAST}\n"
        r"[ |]+late\.py:\d+ compute\n[ |]+late\.py:\d+ step\n[ |]+late\.py:\d+ <module>\n",
        "sleep": rf"rank 2 is in compute\(\) at late\.py:{line_of('        time.sleep(1000)')}; it {LAST}\n",
        "stop": rf"rank 2 does not answer: it is stopped by a signal \(pid \d+\); it {LAST}\n",
        "message": r"rank 2 waits in send/recv\(3 × float64, tag 4\) from rank 0, called in compute\(\) at late\.py:"
        rf"{line_of('        comm.recv(np.ones(3), 0, 4)')}\n",
    }[how]


def waiting(ranks):
    line = line_of('    comm.all_reduce(np.ones(10, "f4"), timeout=float(sys.argv[2]))')
    return rf"ranks {ranks} wait in {CALL} of group world, called in step\(\) at late\.py:{line} for rank 2\n"


@pytest.mark.parametrize("how", ["loop", "sleep", "stop", "message"])
def test_an_expired_wait_says_where_the_late_rank_is(late, how):
    ended = late("-n", "3", "--grace", "0.5", "late.py", how, "0.5")
    assert ended.code == 1
    report = ended.err.partition("superpod-run: the first failure: ")[2]
    assert re.match(
        r"rank [01] .* raised DeadlineExceeded: rank [01]: Timed out after 0\.5 s waiting for rank ", report
    )
    assert re.search(r"waiting for rank \d in all_reduce\(10 × float32, sum\) by [\w ]+\n", report)
    alone = waiting("0-1").replace("ranks 0-1 wait ", "rank [01] waits ")  # the other one's time ran out a moment ago
    both = rf"ranks 0-1 were in {CALL} of group world, called in step\(\) at late\.py:\d+, which failed\n"
    assert re.search(f"{waiting('0-1')}|{alone}|{both}", report), report
    assert re.search(stuck_in(how), report), report
    assert ended.seconds < 12


def test_who_waits_for_a_message_in_vain_says_so(launch):
    launch.script(
        "vain.py",
        """
        import time
        import numpy as np
        import superpod
        comm = superpod.init(timeout=0.5)
        comm.barrier()
        if comm.rank == 0:
            comm.recv(np.ones(3), 1, async_op=True).wait()
        time.sleep(1000)
        """,
    )
    ended = launch("-n", "2", "--grace", "0.5", "vain.py")
    waits = r"rank 0 waits in send/recv\(3 × float64, tag 0\) from rank 1, called in the script at vain\.py:8\n"
    assert re.search(waits, ended.err), ended.err
    assert "rank 1 is in the script at vain.py:9" in ended.err


def test_a_rank_that_never_called_superpod_is_said_to_be_missing(launch):
    launch.script(
        "absent.py",
        """
        import os, time
        import numpy as np
        if os.environ["RANK"] == "1":
            time.sleep(1000)
        import superpod
        comm = superpod.init()
        comm.all_reduce(np.ones(3), timeout=1)
        """,
    )
    ended = launch("-n", "2", "--grace", "0.5", "absent.py")
    assert "Timed out after 1.0 s waiting for rank 1 in all_reduce(3 × float64, sum)" in ended.err
    where = (
        r"rank 1 has not called superpod yet: it waits in a system call \(pid \d+\), in the script at absent\.py:5; "
    )
    assert re.search(where + "it has left no record\n", ended.err), ended.err


def test_native_code_that_keeps_the_lock_hides_no_stack(launch):
    launch.script(
        "native.py",
        """
        import re
        import numpy as np
        import superpod

        def backtrack():
            re.match(r"(a+)+$", "a" * 60 + "b")

        comm = superpod.init()
        if comm.rank == 1:
            backtrack()
        comm.all_reduce(np.ones(3), timeout=1)
        """,
    )
    ended = launch("-n", "2", "--grace", "0.2", "native.py")
    assert re.search(
        r"rank 1 does not answer: it is computing in native code that keeps the interpreter's lock \(pid \d+\), "
        r"in backtrack\(\) at native\.py:7 \(inside re.*\); it has made no collective of group world yet\n"
        r"[ |]+native\.py:7 backtrack\n[ |]+native\.py:11 <module>\n",
        ended.err,
    ), ended.err


@pytest.mark.parametrize("how", ["loop", "stop"])
def test_the_watchdog_reports_and_the_job_goes_on(late, how):
    job = late.start("-n", "3", "late.py", how, "100", env={"SUPERPOD_WATCHDOG": "0.4"})
    heads = [wait_for_line(job.stderr, "has waited for") for _ in range(2)]
    assert re.match(rf"superpod-run: rank [01] has waited for \d s in {CALL}; what the cards are doing:\n", heads[0])
    text = "".join(job.stderr.readline() for _ in range(5 if how == "loop" else 2))
    assert re.search(waiting("0-1"), text)
    assert re.search(stuck_in(how), text)
    assert job.poll() is None
    job.terminate()
    ended = late.finish(job)
    assert ended.code == 143
    assert ended.err.count("has waited for") < 10


def reported(job, pattern):
    """Ask with SIGUSR1 until a line of a report matches. Each has two lines or more, so there is always one to read."""
    for _ in range(1000):
        job.send_signal(signal.SIGUSR1)
        line = job.stderr.readline()
        if re.search(pattern, line):
            return line
    raise AssertionError(f"no report says {pattern!r}; the last line is {line!r}")


def test_usr1_reports_at_once_and_the_job_goes_on(late):
    job = late.start("-n", "3", "late.py", "loop", "100")
    wait_for_line(job.stdout, "up")
    reported(job, r"^superpod-run: what the cards are doing \(SIGUSR1\):$")
    reported(job, waiting("0-1"))
    reported(job, stuck_in("loop").partition("\\n")[0])
    reported(job, r"^ +late\.py:\d+ compute$")
    assert job.poll() is None
    job.terminate()
    assert late.finish(job).code == 143


def test_usr1_before_superpod_is_used_and_after_a_card_has_ended(launch):
    launch.script(
        "idle.py",
        """
        import os, time
        if os.environ["RANK"] == "0":
            print("up")
            time.sleep(99)
        """,
    )
    job = launch.start("-n", "2", "idle.py")
    wait_for_line(job.stdout, "up")
    reported(
        job,
        r"rank 0 has not called superpod yet: it \w.* \(pid \d+\), in the script at idle\.py:5; it has left no record$",
    )
    reported(job, r"rank 1 has ended normally; it has left no record$")
    job.terminate()
    launch.finish(job)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["loop", "stop"])
def test_usr1_of_64_cards_fits_in_a_few_lines(late, how):
    job = late.start("-n", "64", "late.py", how, "100")
    wait_for_line(job.stdout, "up")
    reported(job, waiting("0-62").replace("rank 2", "rank 63"))
    reported(job, stuck_in(how).replace("rank 2", "rank 63").partition("\\n")[0])
    job.terminate()
    late.finish(job)


# The flight record


def explained(launch, path):
    return launch("--explain", path).out


def test_a_failed_job_leaves_a_record_that_explains_it(late):
    ended = late("-n", "3", "--grace", "0.5", "late.py", "stop", "0.5")
    path = re.search(r"what the cards did last is in (\S+); superpod-run --explain \1 puts it into words\n", ended.err)
    assert path is not None
    text = explained(late, path[1])
    assert re.search(
        r"the first difference in group world: rank 2 did not call collective #1\n"
        r"  ranks 0-1 called all_reduce\(10 × float32, sum\) by [\w ]+ in step\(\) at late\.py:\d+\n"
        rf"  rank 2: {LAST}\n",
        text,
    )
    assert re.search(stuck_in("stop"), text)


def test_a_card_that_was_killed_has_left_its_record(launch):
    launch.script(
        "dies.py",
        """
        import os
        import numpy as np
        import superpod
        comm = superpod.init()
        for step in range(10**9):
            if step == 100 and comm.rank == 1:
                os.kill(os.getpid(), 9)
            comm.all_reduce(np.ones(3))
        """,
    )
    ended = launch("-n", "3", "--log-dir", "logs", "dies.py", env={"SUPERPOD_RECORD": "7"})
    assert ended.code == 137
    record = json.loads((launch.folder / "logs" / "flight.json").read_text())
    assert record["failure"]["rank"] == 1
    assert record["failure"]["cause"] == "was killed by SIGKILL"
    numbers = [[row[record["columns"].index("number")] for row in card["calls"]] for card in record["cards"]]
    assert numbers[1] == list(range(93, 100))
    assert all(len(card) == 7 and card[-1] in (99, 100) for card in numbers)
    text = explained(launch, "logs/flight.json")
    assert "the first failure: rank 1 was killed by SIGKILL\n" in text
    assert "rank 1 did not call collective #100\n" in text
    assert re.search(
        r"rank 1 was killed by SIGKILL; it did last all_reduce\(.*\(#99\), called in the script at dies", text
    )


def test_a_record_that_was_asked_for_is_written_of_a_job_that_goes_well(launch):
    launch.script("sums.py", "import numpy as np, superpod\nsuperpod.init().all_reduce(np.ones(3))\n")
    ended = launch("-n", "2", "--record", "flight.json", "sums.py")
    assert (ended.code, ended.err) == (0, "")
    assert "2 cards on " + os.uname().nodename in (text := explained(launch, "flight.json"))
    assert "asked for with --record\nno card has failed\nthe ranks of every group have called the same" in text


@pytest.mark.parametrize("script", ["raise ValueError", "import superpod, sys\nsuperpod.init()\nsys.exit(3)"])
def test_no_calls_no_file(launch, script):
    launch.script("fails.py", script)
    ended = launch("fails.py", env={"SUPERPOD_RECORD": "0"})
    assert ended.code != 0
    assert "--explain" not in ended.err
    assert sorted(path.name for path in launch.folder.iterdir()) == ["fails.py"]


@pytest.mark.parametrize(("own", "code"), [(3, 3), (0, 1)])
def test_a_record_that_cannot_be_written_is_told(launch, own, code):
    launch.script(
        "sums.py", f"import numpy as np, superpod\nsuperpod.init().all_reduce(np.ones(3))\nraise SystemExit({own})"
    )
    ended = launch("-n", "2", "--record", "/dev/full", "sums.py")
    assert ended.code == code
    assert "superpod-run: cannot write the flight record to /dev/full: No space left on device\n" in ended.err


@pytest.mark.parametrize("path", ["nowhere/flight.json", "."])
def test_a_place_that_cannot_hold_a_record_is_refused_before_the_start(launch, path):
    launch.script("sums.py", "print('started')")
    ended = launch("--record", path, "sums.py")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"superpod-run: record file {path} must be a file in a folder that can be written\n"


# Mismatches


def test_a_mismatch_names_both_places_on_every_rank(launch):
    launch.script(
        "differs.py",
        """
        import numpy as np
        import superpod

        comm = superpod.init()

        def train():
            for step in range(5):
                if step == 3 and comm.rank == 1:
                    comm.broadcast(np.ones(4), 0)
                else:
                    comm.all_reduce(np.ones(12))

        train()
        """,
    )
    ended = launch("-n", "4", "differs.py", env={"SUPERPOD_DEBUG": "off"})
    pattern = (
        r"CollectiveMismatch: in group world: rank (\d) called (\w+).* \(#3\) in train\(\) at differs\.py:(\d+), "
        r"but rank (\d) called (\w+).* \(#3\) in train\(\) at differs\.py:(\d+)$"
    )
    found = {}
    for line in ended.err.splitlines():
        if line.startswith("[") and (match := re.search(pattern, line)):
            found[int(line[1])] = match.groups()
    assert sorted(found) == [0, 1, 2, 3], ended.err
    for a, call_a, line_a, b, call_b, line_b in found.values():
        calls = {a: (call_a, line_a), b: (call_b, line_b)}
        assert calls.pop("1") == ("broadcast", "10")
        assert list(calls.values()) == [("all_reduce", "12")]
