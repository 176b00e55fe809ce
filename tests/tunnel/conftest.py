"""Engines between doubles, for the tests of what carries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.doubles import MakeEngine, balanced_engines
from support.pace import pace

__all__ = ["make_engine", "pace"]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """Makes engines, each of which must have accounted for every frame when the test ends."""
    with balanced_engines() as make:
        yield make
