"""A fake daemon behind a real API, and the command line in front of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.introspection import FakeDaemon, FakePool, served

from control.operator.cli.main import weft

Run = Callable[..., Result]


@pytest.fixture
def daemon() -> FakeDaemon:
    return FakeDaemon()


@pytest.fixture
def pool(daemon: FakeDaemon) -> FakePool:
    """The pool of the daemon, whose gossip is off in a test that does not ask for this."""
    daemon.pool = FakePool()
    return daemon.pool


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "weft.sock"


@pytest.fixture
def api(daemon: FakeDaemon, socket_path: Path) -> Iterator[Path]:
    with served(daemon, socket_path):
        yield socket_path


@pytest.fixture
def run(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`weft` with these arguments, in an environment of nothing but the fake daemon's socket."""
    for name in [name for name in os.environ if name.startswith("WEFT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WEFT_SOCKET", str(socket_path))

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(weft, list(arguments), catch_exceptions=False)

    return invoke
