"""Which engine a test's daemons carry with: its file's tests run once with each.

Use as a fixture (`from support.engines import engine`, in a conftest) beside `pytestmark = ON_BOTH`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from control.operator.build import native_obstacle

ON_BOTH = pytest.mark.usefixtures("engine")

_chosen: list[str] = []


def chosen() -> str | None:
    """The engine that daemons of the running test are told to use; None: they choose."""
    return _chosen[-1] if _chosen else None


@pytest.fixture(scope="module", params=["python", "native"])
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each engine in turn; skips with its reason the one that is not there."""
    if request.param == "native" and (obstacle := native_obstacle()) is not None:
        pytest.skip(f"no native engine: {obstacle}")
    _chosen.append(request.param)
    yield request.param
    _chosen.pop()
