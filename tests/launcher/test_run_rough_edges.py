"""What a job does in corners: cards that never join, odd texts, odd environments, odd places to start from."""

from __future__ import annotations

import json
import os
import sys

import pytest
from launched_jobs import COMMAND

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("link", ["zmq", "shm"])
def test_a_card_that_ends_well_before_it_joins_is_told_to_those_who_wait_for_it(launch, link):
    script = launch.script(
        "main.py",
        """
        import os, sys
        import numpy as np
        import superpod

        if os.environ["RANK"] == sys.argv[1]:
            sys.exit(0)
        superpod.init().all_reduce(np.ones(10))
        """,
    )
    for early in (0, 1):  # on a board rank 0 brings the board
        job = launch("-n", 3, script, early, env={"SUPERPOD_LINK": link, "SUPERPOD_TIMEOUT": "30"})
        assert f"raised PeerLost: rank {early} exited with code 0" in job.err
        assert (job.code, job.seconds < 15) == (1, True)


def test_so_it_is_in_torch_groups(launch):
    script = launch.script(
        "main.py",
        """
        import os, sys
        import torch
        import torch.distributed as dist

        if os.environ["RANK"] == "1":
            sys.exit(0)
        dist.init_process_group("superpod")
        dist.all_reduce(torch.ones(10))
        """,
    )
    job = launch("-n", 3, script, env={"SUPERPOD_TIMEOUT": "30"})
    assert "rank 1 exited with code 0 before it joined" in job.err
    assert (job.code, job.seconds < 20) == (1, True)


def test_the_summary_adds_up_what_the_communicators_of_a_process_did(launch):
    script = launch.script(
        "main.py",
        """
        import numpy as np
        import superpod

        for _ in range(3):
            with superpod.init() as comm:
                for _ in range(10):
                    comm.all_reduce(np.ones(10))
        """,
    )
    job = launch("-n", 2, "--summary-json", "s.json", script)
    (row,) = json.loads((launch.folder / "s.json").read_text())["operations"]
    assert (job.code, row["calls"], row["bytes"]) == (0, 30, 2400)


def test_an_error_whose_text_is_no_text_is_reported(launch):
    script = launch.script("main.py", r"raise ValueError('no file a\udcff')")
    job = launch("-n", 2, script)
    assert job.code == 1
    assert r"raised ValueError: no file a\udcff" in job.err
    assert "  | ValueError: no file" in job.err  # the traceback in the report


def test_a_child_forked_in_the_middle_of_a_collective_is_refused_at_once(launch):
    script = launch.script(
        "main.py",
        """
        import os, threading
        import numpy as np
        import superpod
        from superpod.interconnect.errors import LinkClosed

        comm = superpod.init()
        begun = threading.Event()

        def late():
            begun.set()
            comm.all_reduce(np.ones(1000))

        if comm.rank == 0:
            thread = threading.Thread(target=late)
            thread.start()
            begun.wait()
            while comm._engine.agreement.under_way is None:
                pass
            if (pid := os.fork()) == 0:
                try:
                    comm.all_reduce(np.ones(1000))
                except LinkClosed:
                    os._exit(7)
                os._exit(1)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            comm.send(np.ones(1), 1)
            thread.join()
        else:
            comm.recv(np.ones(1), 0)  # the child has ended
            comm.all_reduce(np.ones(1000))
        """,
    )
    job = launch("-n", 2, script)
    assert (job.code, job.lines) == (0, ["[0] 7"])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "SUPERPOD_ALL_REDUCE",
            "ring:9-1",
            "SUPERPOD_ALL_REDUCE='ring:9-1': 'ring:9-1': low=9 must not be above high=1",
        ),
        ("SUPERPOD_LINK", "zzz", "SUPERPOD_LINK='zzz': must be one of auto, zmq, shm"),
        ("SUPERPOD_TOPOLOGY", "mi400", "topology 'mi400' is neither a file nor one of atlas-950"),
        ("SUPERPOD_BARRIER", "none", "SUPERPOD_BARRIER='none': "),
        ("SUPERPOD_TIMEOUT", "0", "SUPERPOD_TIMEOUT='0' must be at least 0.1 s"),
        ("SUPERPOD_WATCHDOG", "99999999999999999999h", "SUPERPOD_WATCHDOG='99999999999999999999h': duration '9"),
        ("SUPERPOD_HBM", "99999999999G", "SUPERPOD_HBM='99999999999G': size '99999999999G' must be at most 1048576T"),
        ("PET_NPROC_PER_NODE", "x", "PET_NPROC_PER_NODE='x': must be a whole number"),
    ],
)
def test_a_wrong_variable_is_refused_in_one_line(launch, name, value, says):
    script = launch.script("main.py", "print('started')")
    ways = [launch(script, env={name: value})]
    ways += [launch("-x", f"{name}={value}", script)] if name.startswith("SUPERPOD_") else []
    for job in ways:
        assert (job.code, job.out, job.err.count("\n")) == (2, "", 1)
        assert job.err.startswith(f"superpod-run: {says}")


def test_a_variable_that_does_not_exist_is_told_and_changes_nothing(launch):
    job = launch(launch.script("main.py", "print('started')"), env={"SUPERPOD_ALLREDUCE": "ring", "SUPERPOD_HUE": "1"})
    assert (job.code, job.lines) == (0, ["[0] started"])
    first, second = job.err.splitlines()
    assert first.endswith(
        "SUPERPOD_ALLREDUCE is no variable of superpod's and changes nothing; did you mean SUPERPOD_ALL_REDUCE?"
    )
    assert "SUPERPOD_HUE is no variable" in second


def test_the_help_names_the_variables_that_help_most(launch):
    said = launch("--help").out
    for name in ("SUPERPOD_LINK", "SUPERPOD_TIMEOUT", "SUPERPOD_WATCHDOG", "SUPERPOD_DEBUG", "interconnect/env.py"):
        assert name in said


def test_a_long_text_does_not_hide_where_the_error_came_from(launch):
    script = launch.script(
        "main.py",
        """
        def deep():
            raise ValueError("é" * 1_000_000 + "\\nthe end")

        deep()
        """,
    )
    job = launch("-n", 2, "--local-ranks-filter", 1, "-r", "3", "--log-dir", "logs", script)
    assert job.code == 1
    assert 'main.py", line 3, in deep' in job.err  # in the report, for the cards' own output goes to files
    assert "  | the end" in job.err
    assert len(job.err) < 10_000
    assert max(map(len, job.err.splitlines())) <= 1010
    assert len(next(line for line in job.err.splitlines() if "the first failure" in line)) < 500


def test_a_ctrl_c_while_the_launcher_loads_ends_it_without_a_word(launch):
    code = """
import sys

class Interrupt:
    def find_spec(self, name, *_):
        if name == "superpod.launcher.agent":
            raise KeyboardInterrupt

from superpod.launcher.cli import main
sys.meta_path.insert(0, Interrupt())
sys.exit(main())
"""
    job = launch(launch.script("main.py", "pass"), command=(sys.executable, "-c", code))
    assert (job.code, job.out, job.err) == (130, "", "")


def test_a_job_may_start_in_a_folder_that_is_gone(launch):
    script = launch.script("main.py", "print(__file__)")
    gone = launch.folder / "gone"
    start = f'mkdir {gone} && cd {gone} && rmdir {gone} && exec "$@"'

    def from_there(*args):
        return launch(*args, command=("sh", "-c", start, "sh", COMMAND))

    for method in ("fork", "exec"):
        job = from_there("-n", 2, "--start-method", method, script)
        assert (job.code, job.lines) == (0, [f"[0] {script}", f"[1] {script}"])
    assert "does not exist; looked for it in a folder that has been deleted" in from_there("main.py").err
    assert "module 'main' must be started in a folder that exists" in from_there("-m", "main").err


def test_a_record_whose_name_is_no_text_is_named_in_the_report(launch):
    script = launch.script("main.py", "import superpod\nsuperpod.init().barrier()\nraise ValueError")
    job = launch("-n", 1, "--record", os.fsdecode(b"r\xff.json"), script)
    assert (job.code, r"is in r\udcff.json" in job.err) == (1, True)


@pytest.mark.parametrize("method", ["fork", "exec"])
def test_cards_are_run_with_the_options_of_python_that_the_launcher_is_run_with(launch, method):
    script = launch.script(
        "main.py",
        """
        import sys
        assert False
        print(sys.flags.optimize, sys._xoptions, "error" in sys.warnoptions, sys.flags.no_user_site)
        """,
    )
    options = ("-s", "-O", "-X", "utf8", "-W", "error")  # the first is about where to find modules
    job = launch("-n", 1, "--start-method", method, script, command=(sys.executable, *options, COMMAND))
    assert (job.code, job.lines) == (0, ["[0] 1 {'utf8': True} True 0"])
