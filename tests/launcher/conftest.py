"""Real jobs: `launch` runs superpod-run, and afterwards nothing of it may be left."""

from __future__ import annotations

import pytest
from launched_jobs import Launcher


@pytest.fixture
def launch(tmp_path):
    launcher = Launcher(tmp_path)
    yield launcher
    assert launcher.close() == []
