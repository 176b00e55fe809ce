"""How slow a core is, is told against its own best, and looking leaves the process where it was."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from bench import pace as pace_module
from bench.pace import PIECES, Pace, time_piece_of_work


class Cores:
    """Two cores, each taking as long for a piece as the test says; the kernel's view of one process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **times: float) -> None:
        self.allowed = {0, 1}
        self.times = times
        self.slept = 0.0
        self.worked = 0.0
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(self.allowed))
        monkeypatch.setattr(os, "sched_setaffinity", self._move)

    def _move(self, _pid: int, cores: set[int]) -> None:
        self.allowed = set(cores)

    def time_piece(self) -> float:
        (core,) = self.allowed
        self.worked += self.times[f"core{core}"]
        return self.times[f"core{core}"]

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def clock(self) -> float:
        return self.slept + self.worked

    def pace(self) -> Pace:
        return Pace(self.time_piece, self.sleep, self.clock)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cores]:
    cores = Cores(monkeypatch, core0=0.001, core1=0.002)
    yield cores
    assert cores.allowed == {0, 1}


def test_each_core_has_a_best_of_its_own(cores: Cores) -> None:
    pace = cores.pace()
    assert pace.slowed() == 0
    cores.times = {"core0": 0.0015, "core1": 0.002}
    assert pace.slowed() == pytest.approx(0.5)
    cores.times = {"core0": 0.0009, "core1": 0.005}
    assert pace.slowed() == pytest.approx(1.5)
    cores.times = {"core0": 0.0018, "core1": 0.002}
    assert pace.slowed() == pytest.approx(1.0)


def test_one_piece_that_was_interrupted_does_not_count(cores: Cores) -> None:
    times = iter([0.001, 0.009, *[0.001] * (2 * PIECES)])
    assert Pace(lambda: next(times), cores.sleep).slowed() == 0


def test_interrupted_it_leaves_the_process_where_it_was(cores: Cores) -> None:
    def fails() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pace(fails, cores.sleep).slowed()
    assert cores.allowed == {0, 1}


def test_it_waits_for_a_quiet_moment(cores: Cores) -> None:
    def calm(seconds: float) -> None:
        cores.sleep(seconds)
        if cores.slept > 0.45:
            cores.times = {"core0": 0.0011, "core1": 0.002}

    pace = Pace(cores.time_piece, calm, cores.clock)
    pace.slowed()
    cores.times = {"core0": 0.002, "core1": 0.002}
    assert pace.wait(0.3, within_s=60) == pytest.approx(0.1)
    assert cores.slept == pytest.approx(0.5)


def test_and_for_no_longer_than_it_was_told_however_long_a_look_takes(cores: Cores) -> None:
    pace = cores.pace()
    pace.slowed()
    cores.times = {"core0": 0.02, "core1": 0.02}
    began = cores.clock()
    assert pace.wait(0.3, within_s=2) == pytest.approx(19)
    assert 2 <= cores.clock() - began < 2.5


def test_before_the_first_run_the_best_is_known(cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "LEARN_S", 1.0)
    pace = cores.pace()
    pace.learn()
    assert 1.0 <= cores.clock() < 1.15
    cores.times = {"core0": 0.002, "core1": 0.002}
    assert pace.slowed() == pytest.approx(1.0)


@pytest.mark.parametrize(("count", "looked_at"), [(1, 1), (8, 8), (9, 5), (64, 8), (65, 8)])
def test_of_many_cores_some_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, count: int, looked_at: int
) -> None:
    cores = Cores(monkeypatch, **{f"core{number}": 0.001 for number in range(count)})
    cores.allowed = set(range(count))
    cores.pace().slowed()
    assert cores.worked == pytest.approx(0.001 * PIECES * looked_at)


def test_the_piece_takes_this_threads_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.5])
    monkeypatch.setattr(time, "thread_time", lambda: next(times))
    assert time_piece_of_work() == 0.5
