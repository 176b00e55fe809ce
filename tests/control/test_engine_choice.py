"""Which engine the daemon takes, and what it refuses because the engine or the host has it not."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from control import daemon
from control.operator.config import load
from control.operator.schema import Config
from overlay.errors import ConfigError

OBSTACLE = "it was not built"
NO_CORE = 1023  # the last there may be


def config(*, workers: int = 1, cores: Sequence[int] = ()) -> Config:
    """One network, and that many workers."""
    flags = {"name": "n1", "underlay": "192.0.2.1", "vni": 42, "peer": ("192.0.2.2",), "workers": workers}
    return load(None, flags, {"WEFT_NODE_CORES": ",".join(map(str, cores))} if cores else {})


def obstructed(monkeypatch: pytest.MonkeyPatch, obstacle: str | None) -> None:
    """Whether this host has the native engine."""
    monkeypatch.setattr(daemon, "native_obstacle", lambda: obstacle)


def problems(refused: pytest.ExceptionInfo[ConfigError]) -> dict[str, str]:
    """What is wrong, by key."""
    return {problem.path: problem.why for problem in refused.value.problems}


def test_the_native_engine_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    core = min(os.sched_getaffinity(0))
    obstructed(monkeypatch, None)
    pinned, several = daemon.choose_engine(config(cores=(core,))), daemon.choose_engine(config(workers=2))
    assert (pinned.kind, pinned.workers, pinned.cores) == ("native", 1, (core,))
    assert pinned.reason.endswith(f"; pinned to {core}")
    assert (several.kind, several.workers, several.cores) == ("native", 2, ())
    assert several.reason.endswith("; 2 workers")


def test_pythons_has_one_thread_and_no_cores_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    obstructed(monkeypatch, OBSTACLE)
    assert daemon.choose_engine(config()).kind == "python"
    with pytest.raises(ConfigError) as refused:
        daemon.choose_engine(config(workers=2, cores=(0, 1)))
    assert problems(refused).keys() == {"node.workers", "node.cores"}
    assert all(OBSTACLE in message for message in problems(refused).values())


def test_a_core_that_is_not_ours_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    obstructed(monkeypatch, None)
    usable = sorted(os.sched_getaffinity(0))
    with pytest.raises(ConfigError) as refused:
        daemon.choose_engine(config(workers=2, cores=(usable[0], NO_CORE)))
    [message] = problems(refused).values()
    assert f"({', '.join(map(str, usable))}), found {NO_CORE}" in message
