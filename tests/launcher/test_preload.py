"""What the zygote imports before it forks: found by reading, checked while loading."""

from __future__ import annotations

import subprocess
import sys

import pytest

from superpod.launcher import preload


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    write({"site-packages/thing/__init__.py": "1 / 0", "site-packages/thing/sub.py": "1 / 0"})
    return write


def plan(source_files, home, target="main.py", **options):
    home(source_files)
    return preload.plan(target, module=False, **options)


def test_installed_modules_are_found_wherever_they_are_imported(home):
    source = """
import json, os.path
from thing import sub, not_a_module
try:
    import thing.gone
except ImportError:
    from xml import *
def main():
    import csv
if TYPE_CHECKING:
    import decimal
else:
    import fractions
"""
    assert set(plan({"main.py": source}, home)) == {"json", "os", "thing", "thing.sub", "csv", "xml", "fractions"}


def test_the_users_own_files_are_followed_and_not_listed(home):
    files = {
        "main.py": "import own, pack.inner\nfrom pack import deep\n",
        "own.py": "import json\nimport main\n",  # in a circle
        "pack/__init__.py": "from . import side\n",
        "pack/inner.py": "from .side import x\nfrom ..beyond import y\nimport csv\n",
        "pack/side.py": "import thing\n",
        "pack/deep.py": "import wave\n",
        "unused.py": "import bz2\n",
    }
    assert set(plan(files, home)) == {"json", "csv", "thing", "wave"}


def test_an_own_module_hides_an_installed_one(home):
    assert plan({"main.py": "import thing\n", "thing.py": ""}, home) == []


def test_modules_and_packages_as_targets(home):
    home({"pack/__init__.py": "import json\n", "pack/__main__.py": "import csv\n", "pack/mod.py": "import wave\n"})
    assert set(preload.plan("pack", module=True)) == {"json", "csv"}
    assert set(preload.plan("pack.mod", module=True)) == {"json", "wave"}
    assert preload.plan("gone", module=True) == []


@pytest.mark.parametrize("source", ["import (", "x = '\\0'\0", "(" * 5000, ""])
def test_source_that_does_not_compile_imports_nothing(home, source):
    assert plan({"main.py": source}, home) == []


@pytest.mark.parametrize(
    ("source", "loaded"),
    [
        ("import numpy", set()),
        ("import superpod", {"superpod.collectives.communicator"}),
        ("import torch", {"torch", "superpod.collectives.communicator", "superpod.collectives.torch_backend"}),
        ("importlib.import_module('torch.nn')", {"torch", "superpod.collectives.torch_backend"}),
        ("from torch.optim import SGD", {"torch._dynamo", "torch.optim"}),
        ("import torch\nddp = DistributedDataParallel(m)", {"torch._dynamo"}),
        ("import torch\noptimum = 3", set()),
        ("# on torch and its optim", set()),
    ],
)
def test_torch_and_superpod_bring_what_their_users_need(home, source, loaded):
    found = set(plan({"main.py": source}, home))
    assert loaded <= found
    assert ("torch._dynamo" in found) == ("torch._dynamo" in loaded)
    assert ("superpod.collectives.torch_backend" in found) == ("torch" in source and not source.startswith("#"))


def test_files_of_superpod_are_not_followed(home):
    assert "torch" not in plan({"main.py": "import superpod.launcher.zygote\n"}, home)


def load(files, names, folder):
    """What `load` refuses, in a process of its own."""
    for name, text in files.items():
        (folder / name).write_text(text)
    code = f"import sys\nsys.path.insert(0, {str(folder)!r})\nfrom superpod.launcher.preload import load\n"
    code += f"print(load({names!r}).refused, [name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_thread_is_refused(tmp_path):
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    refused = load({"threads.py": thread, "good.py": ""}, ["good", "threads"], tmp_path)
    assert refused == "{'threads': 'it starts a thread, which a fork would lose'} ['good', 'threads']"


def test_a_thread_that_no_child_misses_is_not_refused(tmp_path):
    """jemalloc's, which pyarrow starts, and with it pandas and scikit-learn where pyarrow is installed."""
    thread = "import threading, time\nt = threading.Thread(target=time.sleep, args=(1000,), daemon=True)\nt.start()\n"
    name = "open(f'/proc/self/task/{t.native_id}/comm', 'w').write('jemalloc_bg_thd')\n"
    assert load({"arrow.py": thread + name}, ["arrow"], tmp_path) == "{} ['arrow']"


def test_cards_share_pyarrow(launch):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed; it comes with the extra ray")
    launch.script(
        "main.py",
        "import sys\nloaded = 'pyarrow' in sys.modules\nimport pyarrow\nimport pyarrow.compute as compute\n"
        "buffers = [len(pyarrow.allocate_buffer(30_000_000)) for _ in range(20)]\n"
        "print(loaded, len(buffers), compute.sum(pyarrow.array(range(100_000))).as_py())\n",
    )
    ended = launch("-n", "2", "main.py")
    assert ended.lines == [f"[{rank}] True 20 4999950000" for rank in range(2)], ended.err


def test_a_look_at_the_rank_is_refused(tmp_path):
    files = {
        "asks.py": "import os\nRANK = int(os.environ.get('RANK', 0))\nLOCAL = 'LOCAL_RANK' in os.environ\n",
        "quiet.py": "import os\nos.environ.get('HOME'), dict(os.environ)\n",
    }
    refused = load(files, ["asks", "quiet"], tmp_path)
    assert refused == "{'asks': 'it asks for LOCAL_RANK, RANK while it is imported'} ['asks', 'quiet']"


def test_what_fails_to_load_is_left_to_the_cards(tmp_path):
    files = {"fails.py": "1 / 0\n", "leaves.py": "raise SystemExit(3)\n", "good.py": ""}
    assert load(files, ["fails", "leaves", "gone", "good"], tmp_path) == "{} ['good']"


def test_numpys_threads_stop_for_a_fork(tmp_path):
    """OpenBLAS starts threads and ends them before a fork, so numpy may be loaded however many it has."""
    assert load({}, ["numpy"], tmp_path) == "{} ['numpy']"


def job_with(launch, name, text, *options):
    """A job whose script imports the installed module `name`, and prints its attribute x."""
    launch.script(f"site-packages/{name}.py", text)
    launch.script("main.py", f"import sys\nloaded = {name!r} in sys.modules\nimport {name}\nprint(loaded, {name}.x)\n")
    return launch("-n", "2", *options, "main.py", env={"PYTHONPATH": str(launch.folder / "site-packages")})


def test_each_card_imports_what_must_not_be_shared(launch):
    ended = job_with(launch, "ranked", "import os\nx = os.environ.get('RANK')\n")
    assert ended.lines == ["[0] False 0", "[1] False 1"]
    assert ended.err == (
        "superpod-run: each card imports ranked by itself, for it asks for RANK while it is imported\n"
    )


def test_each_card_imports_what_starts_threads(launch):
    text = "import threading, time\nt = threading.Thread(target=time.sleep, args=(1000,), daemon=True)\nt.start()\n"
    ended = job_with(launch, "threaded", text + "x = threading.active_count()\n", "--preload", "threaded")
    assert ended.lines == ["[0] False 2", "[1] False 2"]
    assert "each card imports threaded by itself, for it starts a thread, which a fork would lose" in ended.err


def test_shared_modules_are_loaded_once(launch):
    ended = job_with(launch, "shared", "print('loading', flush=True)\nx = 1\n")
    assert ended.lines == ["[0] True 1", "[1] True 1"]
    assert ended.err == "[zygote] loading\n"


def test_preload_that_fails_and_preload_of_ones_own(launch):
    launch.script("own.py", "print('own is loaded', flush=True)\n")
    launch.script("main.py", "import own\n")
    ended = launch("-n", "2", "--preload", "own", "--preload", "gone", "main.py")
    assert ended.code == 0
    assert ended.err.count("[zygote] own is loaded\n") == 1
    assert (
        "superpod-run: --preload gone is left to each card: ModuleNotFoundError: No module named 'gone'\n" in ended.err
    )


def test_no_preload(launch):
    ended = job_with(launch, "shared", "print('loading')\nx = 1\n", "--no-preload")
    assert ended.lines == ["[0] False 1", "[0] loading", "[1] False 1", "[1] loading"]


def test_preload_adds(launch):
    launch.script("main.py", "import sys\nprint('wave' in sys.modules, 'superpod.launcher.agent' in sys.modules)\n")
    assert launch("--preload", "wave", "main.py").out == "[0] True False\n"
    assert launch("main.py").out == "[0] False False\n"
