"""The choice between the engines is explicit, has a reason, and refuses rather than falls back unasked."""

from __future__ import annotations

import pytest

from overlay.errors import DatapathUnavailableError
from tunnel.datapath import AUTO, NATIVE, PYTHON, Choice, choose


def test_python_is_python_whatever_is_built() -> None:
    for obstacle in (None, "it was not built"):
        assert choose(PYTHON, obstacle=obstacle) == Choice(PYTHON, "the configuration asks for it")


@pytest.mark.parametrize("wanted", [AUTO, NATIVE])
def test_the_native_engine_carries_where_nothing_is_in_the_way(wanted: str) -> None:
    assert choose(wanted, obstacle=None).kind == NATIVE


def test_auto_takes_python_with_the_reason() -> None:
    chosen = choose(AUTO, obstacle="it does not load: no such file")
    assert chosen == Choice(PYTHON, "no native engine: it does not load: no such file")


def test_native_that_cannot_be_had_is_refused_with_the_reason() -> None:
    with pytest.raises(DatapathUnavailableError, match="native engine: it was not built"):
        choose(NATIVE, obstacle="it was not built")
