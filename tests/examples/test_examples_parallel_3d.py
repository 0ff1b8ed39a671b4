"""examples/parallel_3d.py learns the same however its cards share out data, tensors and layers."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "parallel_3d.py"
RUN = [str(Path(sys.executable).with_name("superpod-run")), "-n"]


def _train(*options, n=None, timeout=110):
    start = [sys.executable] if n is None else [*RUN, str(n)]
    return subprocess.run([*start, SCRIPT, *options], capture_output=True, text=True, timeout=timeout)


def _checked(done, sides):
    """The losses at first and in the end; they are those of one process within the bound that the example states."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    number = r"([0-9.e+-]+)"
    first, last = re.search(rf"{sides} cards: loss {number} at first, {number} in the end", done.stdout).groups()
    gap, bound = re.search(rf"losses {number} from those of one process, bound {number}", done.stdout).groups()
    assert float(gap) <= float(bound) < 1e-3
    return float(first), float(last)


def test_eight_cards_in_three_dimensions():
    first, last = _checked(_train("--check", "--steps", "5", n=8), "2 x 2 x 2")
    assert last < first - 0.3


@pytest.mark.slow
def test_three_cards_share_data_only():
    _checked(_train("--check", "--steps", "2", n=3), "3 x 1 x 1")


@pytest.mark.slow
@pytest.mark.timeout(260)
def test_sixty_four_cards():
    first, last = _checked(_train("--check", n=64, timeout=240), "4 x 4 x 4")
    assert last < 3.6 < 4.4 < first


@pytest.mark.slow
def test_one_card_without_a_launcher():
    _checked(_train("--check", "--steps", "2"), "1 x 1 x 1")


@pytest.mark.slow
def test_losses_that_differ_by_more_are_a_failure(tmp_path):
    """A fault in the distributed half: all see the text of the first."""
    source = SCRIPT.read_text()
    faulty = source.replace("batch.chunk(data.size())[data.get_local_rank()]", "batch.chunk(data.size())[0]")
    assert faulty != source
    faulty = faulty.replace("Path(__file__).resolve().parent.parent", f"Path({str(SCRIPT.parents[1])!r})")
    script = tmp_path / "faulty.py"
    script.write_text(faulty)
    done = subprocess.run([*RUN, "2", script, "--check", "--steps", "2"], capture_output=True, text=True, timeout=110)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "losses 0" not in done.stdout


def test_a_number_of_cards_that_does_not_fit():
    done = _train("--steps", "1", n=5)
    assert done.returncode == 1
    assert "5 cards do not share 24 windows, 4 heads and 4 layers: try -n 8 or 64" in done.stderr


def test_it_can_be_read_at_a_sitting():
    assert len(SCRIPT.read_text().splitlines()) <= 150
