"""Each way in which a job fails: what the report says, the exit code, and (by the fixture) that nothing is left."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from launched_jobs import wait_for_line

SLEEP = "import os, time\nrank = int(os.environ['RANK'])\n"


def report(ended):
    """What stands from the report's headline on."""
    assert "superpod-run: the first failure: " in ended.err, ended.err
    return ended.err.partition("superpod-run: the first failure: ")[2]


def test_a_rank_that_raises(launch):
    launch.script("raises.py", SLEEP + "if rank == 2:\n    raise ValueError('bad batch')\ntime.sleep(1000)\n")
    ended = launch("-n", "4", "raises.py")
    assert ended.code == 1
    text = report(ended)
    assert re.match(r"rank 2 \(host \S+, pid \d+\) raised ValueError: bad batch\n", text)
    assert '  |   File "' in text
    assert "  | ValueError: bad batch\n" in text
    assert "  ranks 0-1, 3: still running, ended by SIGTERM\n" in text
    assert "launcher/" not in ended.err


def test_kill_9_of_a_rank(launch):
    launch.script("sleeps.py", SLEEP + "print('pid', os.getpid(), flush=True)\ntime.sleep(1000)\n")
    job = launch.start("-n", "8", "sleeps.py")
    while not (line := wait_for_line(job.stdout, "pid")).startswith("[5]"):
        pass
    os.kill(int(line.split()[2]), signal.SIGKILL)
    ended = launch.finish(job)
    assert ended.seconds < 3
    assert ended.code == 137
    assert f"pid {line.split()[2]}) was killed by SIGKILL\n" in report(ended)


@pytest.mark.slow
def test_kill_9_of_one_of_64_in_an_all_reduce(launch):
    launch.script(
        "reduces.py",
        """
        import os
        import numpy as np
        import superpod

        comm = superpod.init()
        for step in range(10**9):
            comm.all_reduce(np.ones(1000))
            if step == 0 and comm.rank == 17:
                print("pid", os.getpid(), flush=True)
        """,
    )
    job = launch.start("-n", "64", "reduces.py")
    pid = int(wait_for_line(job.stdout, "pid").split()[2])
    os.kill(pid, signal.SIGKILL)
    ended = launch.finish(job)
    assert ended.seconds < 6  # 3 on a quiet machine
    assert ended.code == 137
    text = report(ended)
    assert f"rank 17 (host {os.uname().nodename}, pid {pid}) was killed by SIGKILL\n" in text
    assert "PeerLost: rank 17 " in text


@pytest.mark.parametrize(
    ("last", "code", "cause"),
    [
        ("sys.exit(3)", 3, "exited with code 3"),
        ("sys.exit('no data')", 1, "exited with code 1"),
        ("os._exit(200)", 200, "exited with code 200"),
        ("os.abort()", 134, "was killed by SIGABRT"),
        ("signal.raise_signal(signal.SIGTERM)", 143, "was killed by SIGTERM"),
        ("signal.raise_signal(signal.SIGINT)", 130, "raised KeyboardInterrupt"),
        ("raise KeyboardInterrupt", 130, "raised KeyboardInterrupt"),
        ("signal.raise_signal(40)", 168, "was killed by signal 40"),
    ],
)
def test_exit_codes_and_signals(launch, last, code, cause):
    launch.script(
        "ends.py", f"import os, signal, sys, time\nif os.environ['RANK'] == '1':\n    {last}\ntime.sleep(99)\n"
    )
    ended = launch("-n", "2", "ends.py")
    assert ended.code == code
    assert re.match(rf"rank 1 \(host \S+, pid \d+\) {cause}\n", report(ended))


def test_last_words_of_a_rank_that_does_not_raise(launch):
    launch.script("ends.py", "import sys\nprint('line one', file=sys.stderr)\nsys.exit('no data in /data')\n")
    text = report(launch("ends.py"))
    assert "  its last lines on stderr:\n  | line one\n  | no data in /data\n" in text


def test_a_rank_that_ends_early_and_well_is_no_failure(launch):
    launch.script("ends.py", SLEEP + "if rank:\n    time.sleep(0.3)\nprint('done')\n")
    ended = launch("-n", "3", "ends.py")
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines == ["[0] done", "[1] done", "[2] done"]


def test_the_first_by_time_is_reported_and_consequences_are_not(launch):
    launch.script(
        "late.py",
        """
        import os, time
        from superpod.interconnect.errors import PeerLost
        rank = int(os.environ["RANK"])
        if rank == 0:
            raise PeerLost("rank 2 left")            # heard of it before the launcher did
        if rank == 1:
            try:
                raise PeerLost("rank 2 left")
            except PeerLost as error:
                raise RuntimeError("cannot go on")   # wrapped, and still a consequence
        time.sleep(0.1)
        if rank == 2:
            raise ValueError("the cause")
        time.sleep(1000)
        """,
    )
    ended = launch("-n", "4", "late.py")
    text = report(ended)
    assert "raised ValueError: the cause" in text.splitlines()[0]
    assert "  rank 0: PeerLost: rank 2 left\n" in text
    assert "  rank 1: RuntimeError: cannot go on\n" in text
    assert "[0] superpod.interconnect.errors.PeerLost: rank 2 left\n" in ended.err
    assert "[0] Traceback" not in ended.err
    assert "[0] Traceback" in launch("-n", "4", "late.py", env={"SUPERPOD_DEBUG": "info"}).err


def test_a_consequence_without_a_cause_is_reported(launch):
    launch.script(
        "alone.py",
        """
        import os, time
        from superpod.interconnect.errors import PeerLost
        if os.environ["RANK"] == "1":
            raise PeerLost("rank 0 left the job")
        time.sleep(1000)
        """,
    )
    assert "raised PeerLost: rank 0 left the job" in report(launch("-n", "2", "alone.py"))


def test_ranks_that_resist_sigterm_are_killed_after_the_grace_time(launch):
    launch.script(
        "resists.py",
        """
        import os, signal, time
        signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM came", flush=True))
        if os.environ["RANK"] == "1":
            open("resists", "w").close()
        while not os.path.exists("resists"):
            time.sleep(0.01)
        if os.environ["RANK"] == "0":
            raise ValueError
        while True:
            time.sleep(1000)
        """,
    )
    ended = launch("-n", "2", "--grace", "0.2", "resists.py")
    assert "[1] SIGTERM came" in ended.out
    assert "rank 1: still running, ended by SIGTERM" not in ended.err
    assert "rank 1: still running, ended by SIGKILL" in ended.err
    assert ended.code == 1


def test_children_of_cards_do_not_survive(launch):
    launch.script(
        "breeds.py",
        """
        import os, subprocess, sys, time
        subprocess.Popen(["sleep", "1000"])
        subprocess.Popen(["setsid", "-f", "sleep", "1000"])   # a daemon: other session, other parent
        if os.environ["RANK"] == "0":
            raise ValueError
        """,
    )
    assert launch("-n", "3", "breeds.py").code == 1


def test_children_of_cards_do_not_survive_a_good_end_either(launch):
    launch.script("breeds.py", "import os\nos.system('setsid -f sleep 1000; sleep 1000 &')\n")
    assert launch("-n", "2", "breeds.py").code == 0


def test_a_failed_fork_of_a_card_is_the_cards_own_affair(launch):
    launch.script(
        "forks.py",
        """
        import os
        pid = os.fork()
        if pid == 0:
            raise ValueError("in the child")
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
    )
    ended = launch("forks.py")
    assert (ended.code, ended.out) == (0, "[0] 1\n")
    assert "ValueError: in the child" in ended.err
    assert "superpod-run" not in ended.err


def test_a_card_that_cannot_be_started(launch):
    """A module that is loaded before the fork takes the part of a system without room for more processes."""
    launch.script(
        "full.py",
        """
        import os, time
        fork, calls = os.fork, []
        def refuse():
            calls.append(1)
            if len(calls) > 2:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()
        os.fork = refuse
        """,
    )
    launch.script("sleeps.py", "import time\ntime.sleep(1000)\n")
    ended = launch("-n", "4", "--preload", "full", "sleeps.py")
    assert ended.code == 1
    text = "superpod-run: the job failed: process superpod-2 cannot be started: Resource temporarily unavailable\n"
    assert text in ended.err
    assert "  ranks 0-1: still running, ended by SIGTERM\n  ranks 2-3: not started\n" in ended.err


def test_kill_9_of_the_launcher_in_an_all_reduce(launch):
    """The cards end by themselves, too, while the zygote ends them: nobody listens to what it has to tell."""
    launch.script(
        "reduces.py",
        """
        import numpy, superpod
        comm = superpod.init()
        while True:
            comm.all_reduce(numpy.ones(1))
            print("up", flush=True)
        """,
    )
    job = launch.start("-n", "4", "reduces.py")
    wait_for_line(job.stdout, "up")
    job.kill()
    assert launch.wait_until_nothing_is_left(3) == []


def test_kill_9_of_the_zygote(launch):
    launch.script("breeds.py", "import subprocess\nprint('up', flush=True)\nsubprocess.run(['sleep', '1000'])\n")
    job = launch.start("-n", "2", "breeds.py")
    for _ in range(2):
        wait_for_line(job.stdout, "up")
    (zygote,) = launch.pids("superpod-zygote")
    os.kill(zygote, signal.SIGKILL)
    ended = launch.finish(job)
    assert ended.code == 137
    assert f"superpod-run: the job failed: its zygote (pid {zygote}) was killed by SIGKILL\n" in ended.err
    lost = ended.err.count("lost with the launcher's zygote\n"), ended.err.count("  rank 1: not started\n")
    assert "  ranks 0-1: lost" in ended.err or lost == (1, 1), "the zygote may die before it has told of the last card"


def test_kill_9_of_the_launcher(launch):
    launch.script("breeds.py", "import subprocess\nprint('up', flush=True)\nsubprocess.run(['sleep', '1000'])\n")
    job = launch.start("-n", "3", "breeds.py")
    for _ in range(3):
        wait_for_line(job.stdout, "up")
    assert len(launch.left()) > 7
    job.kill()
    assert launch.wait_until_nothing_is_left(2) == []


def start_loading(launch):
    """A job whose zygote is in the middle of an import that takes long."""
    slow = "import time\nopen('loading', 'w').close()\nfor i in range(10**5):\n    time.sleep(0.01)\n"
    launch.script("site-packages/slow.py", slow)
    launch.script("imports.py", "import slow\n")
    job = launch.start("imports.py", env={"PYTHONPATH": str(launch.folder / "site-packages")})
    end = time.monotonic() + 20
    while not (launch.folder / "loading").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    return job


def test_kill_9_of_the_launcher_while_modules_load(launch):
    job = start_loading(launch)
    job.kill()
    assert launch.wait_until_nothing_is_left(2) == []


def test_ctrl_c_while_modules_load(launch):
    job = start_loading(launch)
    job.send_signal(signal.SIGINT)
    ended = launch.finish(job)
    assert ended.code == 130
    assert ended.seconds < 3


def test_a_failure_of_torchs_store_ends_the_job(launch):
    launch.script(
        "knocks.py",
        """
        import os, socket, time
        line = socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        print("knocked", flush=True)
        time.sleep(1000)
        """,
    )
    job = launch.start("knocks.py")
    wait_for_line(job.stdout, "knocked")
    while not (found := launch.pids("superpod-store")):
        time.sleep(0.01)
    os.kill(found[0], signal.SIGKILL)
    ended = launch.finish(job)
    assert ended.code == 1
    assert "the job failed: the process with torch's store was killed by SIGKILL" in ended.err


def test_two_jobs_at_once_do_not_disturb_each_other(launch):
    launch.script("adds.py", "import numpy, superpod\nprint(superpod.init().all_reduce(numpy.ones(1))[0])\n")
    jobs = [launch.start("-n", "8", "adds.py") for _ in range(2)]
    for job in jobs:
        ended = launch.finish(job)
        assert ended.code == 0, ended.err
        assert ended.lines == [f"[{rank}] 8.0" for rank in range(8)]
