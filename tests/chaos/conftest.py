"""The process that forks the ranks of random programs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos_pool import Pool


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    with Pool() as made:
        yield made
