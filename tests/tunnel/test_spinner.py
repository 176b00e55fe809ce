"""The spinner: it turns the loop where answers come soon, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tunnel.spinner import SCORE_HIT, SCORE_MAX, SPIN_SECONDS, Spinner

SOON = SPIN_SECONDS / 2
LATE = SPIN_SECONDS * 2


class Loop:
    """Callbacks that wait, a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waiting: list[Callable[..., object]] = []

    def clock(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], /, *_: object) -> Any:
        self.waiting.append(callback)

    def turn(self) -> None:
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def spinner(loop: Loop) -> Spinner:
    return Spinner(loop, loop.clock)  # type: ignore[arg-type]


def work(loop: Loop, spinner: Spinner, *, after: float) -> None:
    loop.now += after
    spinner.worked(started_at=loop.now, ended_at=loop.now)


def test_rare_work_never_turns_the_loop(loop: Loop, spinner: Spinner) -> None:
    for _ in range(100):
        work(loop, spinner, after=LATE)
    assert not loop.waiting


def test_a_soon_answer_turns_the_loop_until_the_time_is_over(loop: Loop, spinner: Spinner) -> None:
    work(loop, spinner, after=LATE)
    work(loop, spinner, after=SOON)
    for _ in range(10):
        assert len(loop.waiting) == 1
        loop.turn()
    loop.now += LATE
    loop.turn()
    assert not loop.waiting


def test_work_while_it_turns_prolongs_it_and_starts_no_second(loop: Loop, spinner: Spinner) -> None:
    work(loop, spinner, after=LATE)
    for _ in range(5):
        work(loop, spinner, after=SOON)
        loop.turn()
        assert len(loop.waiting) == 1


def test_request_and_response_keep_it_turning(loop: Loop, spinner: Spinner) -> None:
    work(loop, spinner, after=LATE)
    work(loop, spinner, after=SOON)
    for _ in range(50):
        for after in (LATE, SOON):
            loop.turn()
            work(loop, spinner, after=after)
            assert loop.waiting


def test_where_answers_stop_coming_it_gives_up(loop: Loop, spinner: Spinner) -> None:
    for _ in range(SCORE_MAX):
        work(loop, spinner, after=SOON)
    for _ in range(SCORE_MAX):
        work(loop, spinner, after=LATE)
        loop.turn()
    loop.now += LATE
    loop.turn()
    work(loop, spinner, after=LATE)
    assert not loop.waiting
    assert SCORE_HIT > 1, "one late answer would undo one soon answer"
