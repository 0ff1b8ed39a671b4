"""Fixtures for the client tests."""

from __future__ import annotations

import os

import pytest
from client_jobs import Jobs


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return Jobs((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "client_jobs")
