"""What holds for every test: who may run which, and how hypothesis behaves."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# A shared machine stalls now and then; pytest-timeout ends what hangs.  A performance figure is no test.
settings.register_profile("weft", deadline=None, print_blob=True)
settings.register_profile("long", settings.get_profile("weft"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "weft"))

needs_root = pytest.mark.skip(reason="needs root: sudo make test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs root for everybody else; `-rs` prints how many and why."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(needs_root)
