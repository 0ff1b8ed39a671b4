"""Flight records as files, and what --explain makes of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from launched_jobs import COMMAND

from superpod.collectives.places import Frame
from superpod.collectives.recorder import Record
from superpod.collectives.standing import Standing
from superpod.interconnect.errors import InvalidValue
from superpod.launcher.cli import main
from superpod.launcher.explain import explain
from superpod.launcher.flight import flight_record, read_flight_record, write_record
from superpod.launcher.outcome import Outcome

REDUCE, CAST = "all_reduce(12 × float64, sum) by ring", "broadcast(4 × float64, root 0) by direct"


def call(number, text=REDUCE, line=9, state="done"):
    return Record("world", "collective", number, text, 96, 1.0, 2.0, state, f"train() at train.py:{line}")


def job(cards, *, killed=None):
    """A record as the launcher makes it: `cards` are the calls of each rank, `killed` is the rank that failed."""
    outcome = Outcome(len(cards))
    for card in outcome.cards:
        outcome.hear({"event": "up", "rank": card.rank})
        outcome.started(card.rank, 100 + card.rank)
        card.code, card.ended = (-9, 5.0) if card.rank == killed else (0, 6.0)
    world = {"world": list(range(len(cards)))}
    standings = {r: Standing(r, tuple(calls), world, silent="has ended normally") for r, calls in enumerate(cards)}
    return flight_record(outcome, standings, "b", "the job failed")


def told(tmp_path, record):
    path = write_record(tmp_path / "flight.json", record)
    return explain(path).splitlines()


def test_what_is_written_is_read(tmp_path):
    standing = Standing(
        0,
        (call(0), call(1, state="failed")),
        {"world": [0]},
        {"world": [3]},
        (Frame("train.py", 88, "compute", True),),
    )
    outcome = Outcome(1)
    outcome.started(0, 7)
    record = read_flight_record(
        write_record(tmp_path / "a.json", flight_record(outcome, {0: standing}, "b", "asked for"))
    )
    assert record.cards == {0: standing}
    assert (record.host, record.world_size, record.reason, record.failure) == ("b", 1, "asked for", None)


def test_it_is_json_that_says_what_its_columns_are(tmp_path):
    data = json.loads(write_record(tmp_path / "a.json", job([[call(0)], [call(0)]], killed=1)).read_text())
    assert data["format"] == "superpod flight record 1"
    assert data["failure"] == {"rank": 1, "pid": 101, "cause": "was killed by SIGKILL"}
    rows = [dict(zip(data["columns"], row, strict=True)) for row in data["cards"][0]["calls"]]
    assert rows == [
        {
            "group": "world",
            "kind": "collective",
            "number": 0,
            "call": REDUCE,
            "nbytes": 96,
            "started": 1.0,
            "ended": 2.0,
            "state": "done",
            "place": "train() at train.py:9",
        }
    ]


def test_without_a_name_it_goes_where_only_its_owner_can_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = write_record(None, job([[]]))
    assert path.parent == tmp_path
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_first_difference_between_ranks(tmp_path):
    same = [call(6), call(7, state="failed")]
    lines = told(tmp_path, job([same, [call(6), call(7, CAST, 7, "failed")], same], killed=1))
    assert lines[1:6] == [
        "the first failure: rank 1 was killed by SIGKILL",
        "  ranks 0, 2: had ended normally",
        "the first difference in group world: collective #7",
        f"  ranks 0, 2 called {REDUCE} in train() at train.py:9",
        f"  rank 1 called {CAST} in train() at train.py:7",
    ]


def test_who_has_left_the_order(tmp_path):
    lines = told(tmp_path, job([[call(0), call(1, state="failed")], [call(0)]], killed=0))
    assert lines[3:6] == [
        "the first difference in group world: rank 1 did not call collective #1",
        f"  rank 0 called {REDUCE} in train() at train.py:9",
        f"  rank 1: did last {REDUCE} (#0), called in train() at train.py:9",
    ]
    assert lines[6:] == [
        "where the cards were:",
        f"  rank 0 was in {REDUCE} (#1) of group world, called in train() at train.py:9, which failed",
        f"  rank 1 has ended normally; it did last {REDUCE} (#0), called in train() at train.py:9",
    ]


def test_what_a_ring_has_forgotten_is_no_difference(tmp_path):
    """Rank 0 has made calls since, in another group, and remembers less."""
    lines = told(tmp_path, job([[call(5)], [call(4), call(5)]], killed=0))
    assert "the ranks of every group have called the same, and equally often" in lines


def test_a_record_without_calls(tmp_path):
    assert told(tmp_path, job([[], []]))[1:] == [
        "no card has failed",
        "no card has recorded a call: superpod was not used, or SUPERPOD_RECORD=0",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON .*; was it written in full?"),
        ("[]", "must have the format 'superpod flight record 1', not None"),
        ('{"format": "x"}', "not 'x'"),
        ('{"format": "superpod flight record 1"}', "is damaged: KeyError"),
        (None, "must be a file that can be read: No such file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, words, capsys):
    path: Path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidValue, match=words):
        explain(path)
    assert main(["--explain", str(path)]) == 2
    assert f"superpod-run: flight record {path} " in capsys.readouterr().err


def places(value, *way):
    """Every place in a JSON value: the keys and indices that lead there."""
    yield way
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, *way, key)


RECORD = job([[call(0), call(1, state="failed")], [call(0)]], killed=1)


@pytest.mark.parametrize("way", list(places(RECORD))[1:], ids=repr)
def test_a_damaged_record_is_explained_or_refused(tmp_path, way):
    for other in (None, 5, "x", [], {}, [5], {"a": 1}, 1e300):
        damaged = json.loads(json.dumps(RECORD))
        inner = damaged
        for key in way[:-1]:
            inner = inner[key]
        inner[way[-1]] = other
        with contextlib.suppress(InvalidValue):
            assert told(tmp_path, damaged)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record.update(failure=5), "is damaged: TypeError"),
        (lambda record: record.update(failure={"a": 1}), "is damaged: KeyError 'rank'"),
        (lambda record: record["cards"][0].update(rank=None), "is damaged: ValueError rank=None must be a number"),
        (lambda record: record["cards"][0].update(rank="x"), "is damaged: ValueError rank='x' must be a number"),
    ],
)
def test_damage_is_named(tmp_path, change, words):
    damaged = json.loads(json.dumps(RECORD))
    change(damaged)
    with pytest.raises(InvalidValue, match=words):
        told(tmp_path, damaged)


def test_the_command_needs_no_script(tmp_path, capsys):
    path = write_record(tmp_path / "a.json", job([[call(0)]]))
    with pytest.raises(SystemExit) as end:
        main(["--explain", str(path)])
    assert end.value.code == 0
    assert capsys.readouterr().out == explain(path)


@pytest.mark.parametrize(
    ("stdout", "ended"),
    [("/dev/full", (1, "superpod-run: cannot write to stdout: No space left on device\n")), (None, (141, ""))],
)
def test_a_story_that_cannot_be_written(tmp_path, stdout, ended):
    path = write_record(tmp_path / "a.json", job([[call(0)]]))
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer if stdout is None else stdout, "w") as stream:
        command = [COMMAND, "--explain", str(path)]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == ended
