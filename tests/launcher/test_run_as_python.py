"""A card's program sees what `python script.py` or `python -m module` would show it, and ends as it would."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

SHOW = """
    import atexit, sys, threading

    main = sys.modules["__main__"]
    for name in sorted(vars(main)):
        if name.startswith("__"):
            print(name, type(vars(main)[name]) if name == "__loader__" else vars(main)[name])
    print(sys.argv, sys.path[0], sys.flags.safe_path, __name__)
    print(main.__dict__ is globals(), sys.stdin.read() == "")
"""


def python(launch, *args):
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=launch.folder,
        env=launch.environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def without_rank(text):
    assert all(line.startswith("[0] ") for line in text.splitlines())
    return "".join(line.removeprefix("[0] ") for line in text.splitlines(keepends=True))


def without_address(text):
    return re.sub("0x[0-9a-f]+", "0x", text)


def assert_same(launch, *args, options=()):
    ours, theirs = launch(*options, *args), python(launch, *args)
    assert without_address(without_rank(ours.out)) == without_address(theirs.stdout)
    assert ours.code == theirs.returncode % 256
    return ours, theirs


@pytest.mark.parametrize("method", ["fork", "exec"])
def test_names_argv_and_path_of_a_script(launch, method):
    launch.script("deep/show.py", SHOW)
    (launch.folder / "link.py").symlink_to("deep/show.py")
    assert_same(launch, "deep/show.py", "a", "--b", "--", "-n", options=("--start-method", method))
    assert_same(launch, "link.py", options=("--start-method", method))


@pytest.mark.parametrize("method", ["fork", "exec"])
def test_names_argv_and_path_of_a_module(launch, method):
    launch.script("pack/__init__.py", "")
    launch.script("pack/show.py", SHOW)
    launch.script("pack/__main__.py", SHOW)
    options = ("--start-method", method)
    assert_same(launch, "-m", "pack.show", "a", options=options)
    assert_same(launch, "-m", "pack", "--a", options=options)


@pytest.mark.parametrize("method", ["fork", "exec"])
@pytest.mark.parametrize(
    "text",
    [
        "def inner():\n    raise KeyError('no such key')\ninner()\n",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('two\\nlines') from e\n",
        "import sys\nsys.exit('bad configuration')\n",
        "import sys\nsys.exit(7)\n",
        "import sys\nsys.exit(None)\n",
        "import sys\nsys.exit(300)\n",
        "raise SystemExit(3)\n",
        "import os\nos._exit(9)\n",
        "import sys\nsys.excepthook = lambda *a: print('own hook', file=sys.stderr)\n1 / 0\n",
        "class Silent(Exception):\n    def __str__(self): raise OSError\nraise Silent\n",
    ],
    ids=["raise", "chain", "exit text", "exit 7", "exit None", "exit 300", "SystemExit", "_exit", "hook", "str"],
)
def test_ends_as_python_does(launch, text, method):
    launch.script("ends.py", text)
    ours, theirs = assert_same(launch, "ends.py", options=("--start-method", method))
    printed = "".join(line for line in ours.err.splitlines(keepends=True) if line.startswith("[0] "))
    assert without_rank(printed) == theirs.stderr
    assert ("superpod-run: the first failure" in ours.err) == (ours.code != 0)


@pytest.mark.parametrize("method", ["fork", "exec"])
def test_the_end_of_the_program_is_seen(launch, method):
    launch.script("own.py", "log = open('own.txt', 'w')\nprint('kept by a module', file=log)\n")
    launch.script(
        "ends.py",
        """
        import atexit, threading, time, own
        log = open("main.txt", "w")
        print("never closed", file=log)

        class Loud:
            def __del__(self, print=print):
                print("deleted")

        loud = Loud()
        started = threading.Event()

        def late():
            started.wait()
            print("thread done")

        threading.Thread(target=late).start()
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        atexit.register(print, "atexit")
        started.set()
        print("main done", end="")
        """,
    )
    ours, _ = assert_same(launch, "ends.py", options=("--start-method", method))
    assert "atexit" in ours.out
    assert (launch.folder / "main.txt").read_text() == "never closed\n"
    assert (launch.folder / "own.txt").read_text() == "kept by a module\n"


def test_classes_of_main_can_be_pickled_and_spawned(launch):
    launch.script(
        "spawns.py",
        """
        import multiprocessing, pickle

        class Point:
            def __init__(self, x):
                self.x = x

        def double(point):
            return Point(2 * point.x)

        if __name__ == "__main__":
            assert pickle.loads(pickle.dumps(Point(3))).x == 3
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(double, [Point(4)])[0].x)
        """,
    )
    assert_same(launch, "spawns.py")


@pytest.mark.parametrize("method", ["fork", "exec"])
def test_the_users_modules_are_the_users(launch, method):
    plain = ("launcher", "interconnect", "zygote", "worker", "calendar", "queue")  # the last two also the library's
    for name in plain:
        launch.script(f"{name}.py", f"whose = 'the user has {name}'\n")
    launch.script("collectives/__init__.py", "whose = 'the user has collectives'\n")
    launch.script("benchmarks/deep.py", "whose = 'the user has benchmarks.deep'\n")
    names = [*plain, "collectives", "benchmarks.deep"]
    launch.script("main.py", f"import {', '.join(names)}\nfor m in ({', '.join(names)}): print(m.whose)\n")
    loads_calendar_and_queue = ("--preload", "email.utils", "--preload", "asyncio") if method == "fork" else ()
    ended = launch("--start-method", method, *loads_calendar_and_queue, "main.py")
    assert ended.err == ""
    assert ended.lines == sorted(f"[0] the user has {name}" for name in names)


def test_modules_that_are_shared_are_not_the_users(launch):
    launch.script("own.py", "print('own runs in a card')\n")
    launch.script("loads.py", "import sys\nprint('json' in sys.modules, 'own' in sys.modules)\nimport json, own\n")
    assert launch("-n", "2", "loads.py").lines == [
        "[0] True False",
        "[0] own runs in a card",
        "[1] True False",
        "[1] own runs in a card",
    ]


def test_random_numbers_differ_as_in_fresh_interpreters(launch):
    launch.script(
        "draws.py",
        """
        import random, uuid, tempfile
        import numpy as np
        print("random", random.random())
        print("numpy", np.random.rand())
        print("generator", np.random.default_rng().random())
        print("uuid", uuid.uuid4())
        """,
    )
    drawn = launch("-n", "4", "draws.py").lines
    assert len({line.partition(" ")[2] for line in drawn}) == 16


def test_nothing_is_read_from_the_terminal(launch):
    launch.script("asks.py", "input()\n")
    assert "EOFError" in launch("-n", "2", "asks.py").err


def test_warnings_of_the_compiler_are_shown_once(launch):
    launch.script("warns.py", "x = 1\nprint(x is 1)\n")
    assert launch("-n", "4", "warns.py").err.count("SyntaxWarning") == 1


@pytest.mark.slow
def test_torch_has_a_store_and_random_numbers_that_differ(launch):
    launch.script(
        "seeds.py",
        """
        import torch, torch.distributed as dist
        print(torch.get_num_threads(), "random", torch.rand(1, dtype=torch.float64).item())
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        print("total", total.item())
        dist.destroy_process_group()
        """,
    )
    ended = launch("-n", "3", "seeds.py")
    assert ended.code == 0, ended.err
    assert [line for line in ended.lines if "total" in line] == [f"[{rank}] total 3.0" for rank in range(3)]
    drawn = [line.split() for line in ended.lines if "random" in line]
    assert [words[1] for words in drawn] == ["1", "1", "1"]
    assert len({words[3] for words in drawn}) == 3
