"""What the suite makes of the cards' rows."""

import json

import pytest

from superpod.benchmarks import job, plan, suite
from superpod.benchmarks.plan import Plan
from superpod.benchmarks.results import Output
from superpod.interconnect.errors import InvalidValue

PLAN = Plan(plan.series(("all_reduce",), algorithm="auto", dtype="float32", op="sum"), (8, 16))
NOWHERE = Output(None, None, [])


def _row(nbytes, wrong, algorithm="auto"):
    place = {"time_us": 1.0, "algbw_gbps": 1.0, "busbw_gbps": 1.0, "wrong": wrong, "iters": 20}
    what = {"collective": "all_reduce", "nbytes": nbytes, "count": nbytes // 4, "dtype": "float32", "op": "sum"}
    how = {"root": -1, "link": "zmq", "algorithm": "ring", "requested_algorithm": algorithm}
    return what | how | place | {"in_place": place, "out_of_place": None}


@pytest.fixture
def cards(monkeypatch):
    """Cards that send given rows; what they were started with."""
    started = []

    def give(*rows, then=None):
        def run(world_size, module, text, *, preload, variables):
            started.append((world_size, Plan.from_json(text), variables))
            yield from rows
            if then is not None:
                raise then

        monkeypatch.setattr(job, "run", run)
        return started

    return give


def test_right_results_are_success_and_one_wrong_element_is_not(cards, capsys):
    cards(_row(8, 0), _row(16, 0))
    assert suite.run(PLAN, (2,), link="zmq", output=NOWHERE) == 0
    cards(_row(8, 0), _row(16, 1))
    assert suite.run(PLAN, (2,), link="zmq", output=NOWHERE) == 1
    assert "# Out of bounds values : 1 FAILED" in capsys.readouterr().out


def test_results_that_were_not_checked_are_no_failure(cards, capsys):
    cards(_row(8, None))
    assert suite.run(PLAN, (2,), link="zmq", output=NOWHERE) == 0
    assert "not checked" in capsys.readouterr().out


def test_one_job_a_world_and_one_table_an_algorithm(cards, capsys):
    started = cards(_row(8, 0, "ring"), _row(16, 0, "ring"), _row(8, 0, "tree"))
    suite.run(PLAN, (2, 3), link="zmq", output=NOWHERE)
    assert started == [(2, PLAN, {"SUPERPOD_LINK": "zmq"}), (3, PLAN, {"SUPERPOD_LINK": "zmq"})]
    shown = capsys.readouterr().out
    assert shown.count("# Avg bus bandwidth") == 4
    assert shown.count("# all_reduce: nranks 3 link zmq algorithm tree") == 1


def test_what_was_measured_before_a_card_failed_is_kept(cards, tmp_path):
    cards(_row(8, 0), then=job.JobFailed("2 cards: superpod-run ended with exit code 9"))
    path = tmp_path / "r.json"
    with pytest.raises(job.JobFailed, match="exit code 9"):
        suite.run(PLAN, (2,), link="zmq", output=Output(path, None, ["superpod-bench"]))
    content = json.loads(path.read_text())
    assert [row["nbytes"] for row in content["rows"]] == [8]
    assert content["header"]["command"] == "superpod-bench"


def test_every_world_is_checked_before_the_first_starts(cards):
    started = cards(_row(8, 0))
    with pytest.raises(InvalidValue, match="-n 0 must be at least 1 card"):
        suite.run(PLAN, (2, 0), link="zmq", output=NOWHERE)
    assert started == []
