"""The house keeps its shape: every rule of house_rules.py holds in the repository, and is shown able to fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import house_rules
import superpod

ENV_OF_ONE = {house_rules.ENV: '"""SUPERPOD_LINK  which link."""\nCOLLECTIVES = ("barrier",)\nx = "SUPERPOD_LINK"'}

OFFENDERS = [
    ("imports_point_down", {"interconnect/mesh.py": "import superpod.launcher.job"}, "mesh.py:1 imports superpod.laun"),
    (
        "imports_point_down",
        {"interconnect/mesh.py": "from superpod import launcher"},
        "mesh.py:1 imports superpod.laun",
    ),
    ("imports_point_down", {"launcher/job.py": "import superpod"}, "job.py:1 imports superpod:"),
    (
        "imports_point_down",
        {"launcher/job.py": "def f():\n    from superpod import init"},
        "job.py:2 imports superpod.in",
    ),
    ("imports_point_down", {"launcher/job.py": "from .hosts import x"}, "full name"),
    ("imports_point_down", {"launcher/job.py": "import interconnect"}, "full name"),
    (
        "imports_make_no_cycle",
        {
            "interconnect/a.py": "from superpod.interconnect import b",
            "interconnect/b.py": "import superpod.interconnect.c",
            "interconnect/c.py": "from superpod.interconnect.a import x",
        },
        "interconnect/a.py is in or above a cycle with interconnect/b.py",
    ),
    (
        "strangers_stay_strangers",
        {"collectives/verify.py": "from superpod.collectives.execute import run", "collectives/execute.py": ""},
        "verify.py:1 imports collectives/execute.py, which it must not know",
    ),
    (
        "strangers_stay_strangers",
        {"interconnect/errors.py": "import superpod.interconnect.units", "interconnect/units.py": ""},
        "errors.py:1 imports interconnect/units.py",
    ),
    ("modules_stay_at_home", {"interconnect/mesh.py": "import zmq.error"}, "mesh.py:1 imports zmq: allowed in inter"),
    ("modules_stay_at_home", {"collectives/spec.py": "from torch import nn"}, "spec.py:1 imports torch: allowed in"),
    ("modules_stay_at_home", {"launcher/job.py": "def f():\n    import pickle"}, "job.py:2 imports pickle: allowed in"),
    ("modules_stay_at_home", {"launcher/job.py": "import shelve"}, "imports shelve: allowed in no file"),
    ("algorithms_are_pure", {"collectives/algorithms/x.py": "import time"}, "x.py:1 imports time: no business"),
    (
        "algorithms_are_pure",
        {"collectives/algorithms/x.py": "from superpod.interconnect import mesh"},
        "x.py:1 imports superpod.interconnect.mesh: no business",
    ),
    ("sizes_fit", {"launcher/job.py": "x = 1\n" * 401}, "launcher/job.py has 401 lines, more than 400"),
    ("sizes_fit", {"collectives/algorithms/x.py": "x = 1\n" * 121}, "x.py has 121 lines, more than 120"),
    ("sizes_fit", {"launcher/job.py": "def f():\n" + "    x = 1\n" * 50}, "job.py:1 f has 51 lines, more than 50"),
    ("docstrings_exist", {"launcher/job.py": "x = 1"}, "launcher/job.py has no docstring"),
    ("docstrings_exist", {"interconnect/x.py": '"""X."""\nclass Y:\n    z = 1'}, "x.py:2 Y has no docstring"),
    ("environment_is_documented", ENV_OF_ONE | {"launcher/job.py": "'SUPERPOD_X'"}, "job.py names SUPERPOD_X, which"),
    (
        "environment_is_documented",
        {house_rules.ENV: '"""SUPERPOD_LINK  which link."""'},
        "documents SUPERPOD_LINK and does not use it",
    ),
    (
        "environment_is_read_in_one_place",
        {"collectives/x.py": "os.environ['A'] = 'b'"},
        "x.py:1 touches the environment",
    ),
    ("environment_is_read_in_one_place", {"launcher/x.py": "a = os.environ['A']"}, "x.py:1 touches the environment"),
    ("environment_is_read_in_one_place", {"launcher/x.py": "a = os.getenv('A')"}, "x.py:1 touches the environment"),
    ("environment_is_read_in_one_place", {"launcher/x.py": "from os import environ"}, "x.py:1 touches the environment"),
]

HARMLESS = {
    house_rules.ENV: '"""SUPERPOD_LINK  which link."""\nCOLLECTIVES = ("barrier",)\nx = "SUPERPOD_LINK"\nimport os',
    "interconnect/zmq_link.py": '"""A link."""\nimport zmq\nfrom superpod.interconnect.env import x',
    "collectives/algorithms/ring.py": '"""gather  1 step"""\nfrom fractions import Fraction\ndef gather(n): ...',
    "collectives/algorithms/__init__.py": '"""The registry."""\nfrom superpod.collectives.spec import ROOTED',
    "collectives/torch_backend_entry.py": '"""For SUPERPOD_BARRIER."""\nimport torch.distributed\nimport superpodium',
    "launcher/zygote.py": '"""Z."""\nos.environ["A"] = "b"\ndel os.environ["A"]\nos.environ.update(x)\n',
    "launcher/cli.py": '"""C."""\nfrom superpod import __version__\nfrom superpod.collectives.algorithms import ring',
}


@pytest.mark.parametrize("rule", house_rules.RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule):
    sources = house_rules.product_sources()
    assert len(sources) > 5
    assert rule(sources) == []


@pytest.mark.parametrize("rule", house_rules.RULES, ids=lambda rule: rule.__name__)
def test_harmless_sources_pass(rule):
    assert rule(HARMLESS) == []


@pytest.mark.parametrize(("rule", "sources", "complaint"), OFFENDERS)
def test_an_offender_is_found(rule, sources, complaint):
    found = getattr(house_rules, rule)(sources)
    assert any(complaint in line for line in found), found


def test_every_rule_has_an_offender():
    assert {rule.__name__ for rule in house_rules.RULES} == {rule for rule, _, _ in OFFENDERS}


def test_links_lead_home(tmp_path):
    assert house_rules.links_lead_home(house_rules.ROOT / "src/superpod") == []
    (tmp_path / "interconnect").mkdir()
    (tmp_path / "collectives").symlink_to("../../launcher")
    (tmp_path / "launcher").symlink_to("../../launcher")
    (tmp_path / "benchmarks").symlink_to("../../benchmarks")
    (tmp_path / "simulator").symlink_to("../../simulator")
    folder, astray = house_rules.links_lead_home(tmp_path)
    assert "interconnect is no symbolic link; restore it: ln -s" in folder
    assert "collectives leads to ../../launcher, not to ../../collectives" in astray


def test_the_readme_tree_is_true():
    readme = (house_rules.ROOT / "README.md").read_text()
    assert house_rules.tree_is_true(readme, house_rules.house()) == []


def test_a_false_readme_tree_is_found():
    readme = "```text\nfloor/  the ground\n  a.py  first\n  in/  deeper\n    b.py\ngone.md  not there\n```"
    assert house_rules.tree_in(readme)["floor/in/b.py"] == ""
    found = house_rules.tree_is_true(
        readme, {"floor/": "", "floor/a.py": "", "floor/in/": "", "new.py": "What new does."}
    )
    assert "README.md: the tree lists gone.md, which does not exist" in found
    assert "README.md: the tree lacks new.py  (What new does.)" in found
    assert "README.md: the tree says nothing about floor/in/b.py" in found


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has imported after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(run.stdout.split())


def test_import_superpod_is_cheap():
    assert {"torch", "numpy", "zmq"} & modules_after("import superpod") == set()


def test_the_communicator_needs_no_torch():
    modules = modules_after("import superpod.collectives.communicator")
    assert "numpy" in modules
    assert "torch" not in modules


def test_modules_after_sees_an_import():
    assert "torch" in modules_after("import sys; sys.modules['torch'] = sys")


@pytest.mark.parametrize("name", superpod.__all__)
def test_public_name_exists(name):
    assert getattr(superpod, name).__name__ == name
    assert name in dir(superpod)


def test_unknown_public_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'PeerGone'; it has BadFrame, .*, verify"):
        _ = superpod.PeerGone


def test_py_typed_is_there():
    assert (Path(superpod.__file__).parent / "py.typed").exists()
