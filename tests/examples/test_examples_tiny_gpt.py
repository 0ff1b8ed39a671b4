"""examples/tiny_gpt.py learns to write, on 8 cards as on one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "tiny_gpt.py"
RUN = [str(Path(sys.executable).with_name("superpod-run")), "-n"]


def _train(path, *options, n=None):
    start = [sys.executable] if n is None else [*RUN, str(n)]
    done = subprocess.run([*start, SCRIPT, "--json", path, *options], capture_output=True, text=True, timeout=115)
    return done, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.slow
def test_eight_cards_bring_the_loss_below_the_bound(tmp_path):
    done, result = _train(tmp_path / "r.json", n=8)
    assert done.returncode == 0, done.stderr
    assert result["world_size"] == 8
    assert result["loss"] < 2.4 < 4 < result["losses"][0]


@pytest.mark.slow
def test_three_cards_learn_the_same_as_one(tmp_path):
    options = ("--steps", "8", "--batch", "7", "--require", "9")
    alone = _train(tmp_path / "one.json", *options)[1]
    three = _train(tmp_path / "three.json", *options, n=3)[1]
    assert len(three["losses"]) == 8
    assert three["losses"] == pytest.approx(alone["losses"], abs=1e-4)


def test_a_loss_above_the_bound_is_a_failure(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    done, _ = _train(tmp_path / "r.json", "--steps", "2", "--text", text)
    assert done.returncode == 1
    assert "is not below --require 2.4: train longer with --steps" in done.stderr
