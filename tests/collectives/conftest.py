"""Fixtures for the torch backend's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch_cards import TorchCards


@pytest.fixture(scope="session")
def torch_cards() -> Iterator[TorchCards]:
    cards = TorchCards()
    yield cards
    cards.close()
