"""Jobs on several hosts: `cluster` has four of them, and after each test nothing of a job may be left on any."""

from __future__ import annotations

import pytest
from host_jobs import HostLauncher
from namespaces import Cluster, why_not

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="session")
def hosts():
    if reason := why_not():
        pytest.skip(f"no hosts here: {reason}")
    cluster = Cluster(NAMES)
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(hosts, tmp_path):
    """Use: `cluster("--hosts", "a:2,b:2", script)` runs superpod-run on host a; see HostLauncher."""
    launcher = HostLauncher(hosts, tmp_path)
    yield launcher
    assert launcher.close() == {}
