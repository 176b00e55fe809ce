"""What this build says of its native engine is what importing it shows."""

from __future__ import annotations

import importlib.util

import pytest

from control.operator import build
from control.operator.build import NATIVE_MODULE, native_obstacle


def test_nothing_is_in_the_way_where_it_was_built() -> None:
    is_built = importlib.util.find_spec(NATIVE_MODULE) is not None
    assert (native_obstacle() is None) is is_built


@pytest.mark.parametrize(("cargo", "told"), [(None, "there is no cargo here"), ("/bin/cargo", "says why")])
def test_what_was_left_out_is_told_with_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, cargo: str | None, told: str
) -> None:
    monkeypatch.setattr(build, "NATIVE_MODULE", "tunnel.not_there")
    monkeypatch.setattr("shutil.which", lambda _: cargo)
    assert told in (native_obstacle() or "")


def test_one_that_does_not_load_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"{name}: wrong ELF class")

    monkeypatch.setattr(build, "NATIVE_MODULE", "tunnel.tap")  # something that is there
    monkeypatch.setattr("importlib.import_module", refuse)
    assert native_obstacle() == "it does not load: tunnel.tap: wrong ELF class"
