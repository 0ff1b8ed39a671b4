"""The stage: jobs that come, answer, stay away, die; and that none is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from superpod.benchmarks import stage
from superpod.benchmarks.job import JobFailed
from superpod.benchmarks.stage import Stage

RANK = """
import json, os, sys, time
from superpod.benchmarks.player import play
class Turns:
    def turn(self, order):
        if order.get("die") == rank: os._exit(3)
        while order.get("sleep") == rank: time.sleep(0.05)
        return 0.5 * rank + order["calls"], rank
for rank in range(int(sys.argv[2]) - 1):
    if os.fork() == 0: break
else:
    rank = int(sys.argv[2]) - 1
play(sys.argv[1], rank, {"it": Turns()})
"""


def command(of: Stage, n: int | None = None, program: str = RANK) -> list[str]:
    """A job whose last rank is the process that was started."""
    return [sys.executable, "-c", program, of.address, str(of.world_size if n is None else n)]


@pytest.mark.parametrize("address", ["", "127.0.0.1", "::1"])
def test_the_slowest_rank_counts_and_what_is_wrong_adds_up(address: str) -> None:
    with Stage(3, address) as three:
        assert 0 < three.start("job", command(three), {}) < 60
        assert three.turn("it", {"calls": 4}) == (5.0, 3)
        assert three.turn("it", {"calls": 1}) == (2.0, 3)
        process = three._jobs[0].process
        assert process.poll() is None
    assert process.returncode == 0


def test_a_file_for_other_programs_is_there_until_the_stage_ends() -> None:
    with Stage(1) as one:
        paths = [one.file(text) for text in ("a slots=4\n", "b")]
        read = [subprocess.run(["cat", path], capture_output=True, text=True).stdout for path in paths]
        assert read == ["a slots=4\n", "b"]
    assert not any(map(os.path.exists, paths))


def test_two_jobs_may_have_a_player_of_the_same_name() -> None:
    with Stage(1) as one:
        one.start("job", command(one), {})
        one.start("another", command(one), {}, mark=" again")
        assert one.turn("it", {"calls": 4}) == one.turn("it again", {"calls": 4}) == (4.0, 0)
        assert [len(job.lines) for job in one._jobs] == [1, 1]


def test_who_is_no_rank_of_the_job_takes_nobodys_place() -> None:
    """A stranger has another token, and would come first."""
    stranger = "import os; os.environ['SUPERPOD_BENCH'] = 'guessed'\n" + RANK
    with Stage(1, "127.0.0.1") as one:
        with pytest.raises(JobFailed, match="job: 0 of 1 ranks came"):
            one.start("job", command(one, program=stranger), {})
        assert one.start("job", command(one), {}) > 0


def test_a_rank_that_dies_ends_the_turn() -> None:
    with Stage(2) as two:
        two.start("job", command(two), {})
        with pytest.raises(JobFailed, match="job: a rank has ended in the middle of a turn"):
            two.turn("it", {"calls": 1, "die": 1})


def test_a_rank_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_TURN", 0.2)
    with Stage(2) as two:
        two.start("job", command(two), {})
        with pytest.raises(JobFailed, match="job: 1 of 2 ranks have not answered within 0 s"):
            two.turn("it", {"calls": 1, "sleep": 1})
        two._jobs[0].process.terminate()


def test_a_job_that_ends_before_it_begins() -> None:
    with Stage(2) as two, pytest.raises(JobFailed, match=r"job: 0 of 2 ranks came within .*it ended with exit code 7"):
        two.start("job", command(two, program="import sys; sys.exit(7)"), {})


def test_a_job_with_too_few_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_READY", 0.5)
    with Stage(3) as three, pytest.raises(JobFailed, match=r"job: [012] of 3 ranks came"):
        three.start("job", command(three, 2), {})


def test_a_program_that_is_not_there() -> None:
    with (
        Stage(1) as one,
        pytest.raises(JobFailed, match=r"job: /nowhere/mpirun cannot be started .*; make bench-peers"),
    ):
        one.start("job", ["/nowhere/mpirun"], {})


def test_ranks_end_when_superpod_bench_is_no_more() -> None:
    with Stage(1) as one:
        one.start("job", command(one), {})
        process = one._jobs[0].process
        for line in one._jobs[0].lines.values():
            line.close()
        begun = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - begun < 20
