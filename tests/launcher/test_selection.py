"""The selection of a job: one table, read by superpod-run, for all its cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from superpod.collectives import tuning
from superpod.collectives.selection import Selection
from superpod.interconnect.errors import InvalidValue
from superpod.launcher import selection
from superpod.launcher.selection import selection_for
from tuned_tables import everywhere, write

CHOSEN = """
import numpy as np
import superpod

comm = superpod.init()
comm.all_reduce(np.ones(10))
print(comm.last.algorithm)
comm.close()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this machine's table would be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SUPERPOD_TUNING", raising=False)
    path = tuning.cached()
    assert path is not None
    return path


class TestTable:
    def test_it_comes_from_the_cache(self, cache: Path) -> None:
        assert selection_for([2], (), {}).tuning is None
        everywhere(cache, "ring")
        assert selection_for([2], (), {}).tuning == tuning.read(cache).tuning
        assert selection_for([2], (), {"SUPERPOD_TUNING": "off"}).tuning is None

    def test_or_from_where_the_user_says(self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        everywhere(cache, "ring")
        other = everywhere(tmp_path / "other.json", "tree")
        assert selection_for([2], (), {"SUPERPOD_TUNING": str(other)}).tuning == tuning.read(other).tuning
        monkeypatch.setenv("SUPERPOD_TUNING", str(other))
        assert selection_for([2], (), {}).tuning == tuning.read(other).tuning

    def test_one_that_does_not_count_here(
        self, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(cache, {"algorithm": "ring"}, superpod="0.0.1")
        assert selection_for([2], (), {}).tuning is None
        said = capsys.readouterr().err
        assert said.startswith(f"superpod-run: the tuned table {cache} is not used: it was made by superpod 0.0.1, ")
        assert said.count("\n") == 1
        with pytest.raises(InvalidValue, match=f"SUPERPOD_TUNING={cache}: it was made by superpod 0.0.1, and this is"):
            selection_for([2], (), {"SUPERPOD_TUNING": str(cache)})

    def test_one_that_is_broken(self, cache: Path) -> None:
        cache.parent.mkdir(parents=True)
        cache.write_text("{")
        with pytest.raises(InvalidValue, match=rf"^{cache} is no tuned table .* or set SUPERPOD_TUNING=off"):
            selection_for([2], (), {})

    def test_hosts_that_are_not_alike(self, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
        here = tuning.machine_text(tuning.machine())
        everywhere(cache, "ring")
        assert selection_for([2, 2], {here}, {}).tuning is not None
        assert selection_for([2, 2], {here, "9 cores of X (y)"}, {}).tuning is None
        assert "and there is a host with 9 cores of X (y)" in capsys.readouterr().err
        with pytest.raises(InvalidValue, match=r"there is a host with 9 cores of X .*; unset it, or run on hosts"):
            selection_for([2, 2], {"9 cores of X (y)"}, {"SUPERPOD_TUNING": str(cache)})


@pytest.mark.usefixtures("cache")
def test_cards_have_cores_of_their_own_if_all_hosts_have_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "cores", lambda: 8)
    here = tuning.machine_text(tuning.machine())
    assert selection_for([8], (), {}) == Selection(own_cores=True)
    assert selection_for([9], (), {}) == Selection()
    assert selection_for([4, 8], {here}, {}).own_cores
    assert not selection_for([4, 9], {here}, {}).own_cores
    assert not selection_for([4, 4], {"9 cores of X (y)"}, {}).own_cores


def run(launch, cache: Path, **env: str):
    script = launch.script("chosen.py", CHOSEN)
    return launch("-n", 3, script, env={"XDG_CACHE_HOME": str(cache.parents[1]), "SUPERPOD_TUNING": "", **env})


def test_processes_choose_by_the_table(launch, cache: Path, tmp_path: Path) -> None:
    everywhere(cache, "nhr")
    other = everywhere(tmp_path / "other.json", "circulant")
    for env, algorithm in (
        ({}, "nhr"),
        ({"SUPERPOD_LINK": "zmq"}, "nhr"),
        ({"SUPERPOD_ALL_REDUCE": "ring"}, "ring"),
        ({"SUPERPOD_TUNING": "off"}, "one_shot"),
        ({"SUPERPOD_TUNING": str(other)}, "circulant"),
    ):
        ended = run(launch, cache, **env)
        assert (ended.code, ended.lines) == (0, [f"[{rank}] {algorithm}" for rank in range(3)]), (env, ended.err)


def test_a_broken_table_stops_the_job_before_it_starts(launch, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("{")
    ended = run(launch, cache)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"superpod-run: {cache} is no tuned table (")
