"""examples/train_digits.py learns, and learns the same however many cards there are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_digits.py"
LAUNCHERS = {
    "python": [sys.executable],
    "superpod-run": [str(Path(sys.executable).with_name("superpod-run")), "-n"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"],
}


def _train(path, *options, launcher="superpod-run", n=1):
    """(finished process, what it wrote as JSON)."""
    start = LAUNCHERS[launcher] + ([] if launcher == "python" else [str(n)])
    done = subprocess.run([*start, SCRIPT, "--json", path, *options], capture_output=True, text=True, timeout=110)
    return done, json.loads(path.read_text()) if path.exists() else None


def _distance(curve, other):
    assert len(curve) == len(other)
    return max(abs(a - b) for a, b in zip(curve, other, strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The whole training in one process."""
    done, result = _train(tmp_path_factory.mktemp("alone") / "r.json", launcher="python")
    assert done.returncode == 0, done.stderr
    return result


@pytest.mark.slow
def test_one_card_without_a_launcher(alone):
    assert alone["world_size"] == 1
    assert alone["accuracy"] >= 0.95
    assert alone["losses"][-1] < 0.1 < 2 < alone["losses"][0]
    assert len(alone["losses"]) == 90


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 64])
def test_many_cards_learn_exactly_the_same(alone, n, tmp_path):
    done, result = _train(tmp_path / "r.json", n=n)
    assert done.returncode == 0, done.stderr
    assert result["world_size"] == n
    assert result["accuracy"] >= 0.95
    assert _distance(result["losses"], alone["losses"]) < 1e-4
    assert f"{n} cards:" in done.stdout


@pytest.mark.slow
def test_under_torchrun(alone, tmp_path):
    done, result = _train(tmp_path / "r.json", "--require", "0", "--epochs", "3", launcher="torchrun", n=2)
    assert done.returncode == 0, done.stderr
    assert _distance(result["losses"], alone["losses"][:9]) < 1e-4


@pytest.mark.slow
def test_shares_of_different_size_and_empty_ones_count_as_they_should(tmp_path):
    options = ("--epochs", "1", "--batch", "10", "--require", "0")
    alone = _train(tmp_path / "one.json", *options, launcher="python")[1]
    for n in (7, 12):  # shares of two images and of one; of one image and of none
        many = _train(tmp_path / f"{n}.json", *options, n=n)[1]
        # later on, steps as rough as these (10 images at a rate made for 512) magnify the last bit beyond any bound
        assert _distance(many["losses"][:30], alone["losses"][:30]) < 1e-4


def test_too_low_an_accuracy_is_a_failure(tmp_path):
    done, result = _train(tmp_path / "r.json", "--epochs", "1", launcher="python")
    assert done.returncode == 1
    assert "is below --require 0.95: train longer with --epochs" in done.stderr
    assert result["accuracy"] < 0.95


def test_it_is_short_enough_to_be_read_first():
    assert len(SCRIPT.read_text().splitlines()) <= 120
