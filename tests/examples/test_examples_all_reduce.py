"""examples/all_reduce.py prints the sum on every card."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "all_reduce.py"
RUN = [str(Path(sys.executable).with_name("superpod-run"))]


def _sums(output, n):
    """What each card has in the end, as text, by rank."""
    lines = [line[line.index("card ") :] for line in output.splitlines() if " has " in line]
    return {int(line.split()[1]): line.split("[")[1] for line in lines if f"of {n} has" in line}


def test_alone():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert _sums(done.stdout, 1) == {0: "0 1 2 3]"}


@pytest.mark.parametrize("n", [2, 8])
def test_every_card_has_the_sum(n):
    done = subprocess.run([*RUN, "-n", str(n), SCRIPT], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    first = 10 * n * (n - 1) // 2
    assert {" ".join(text.rstrip("]").split()) for text in _sums(done.stdout, n).values()} == {
        " ".join(str(first + n * i) for i in range(4))
    }
    assert sorted(_sums(done.stdout, n)) == list(range(n))


def test_a_newcomer_reads_it_in_a_minute():
    source = SCRIPT.read_text()
    assert len([line for line in source.splitlines() if line and not line.startswith('"""')]) <= 10
    assert "torch" not in source
