"""The poller: real pipes under a loop and a clock that a test turns by hand."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from tunnel.poller import SCORE_HIT, SCORE_MAX, SPIN_SECONDS, TURN_SECONDS, Poller

SOON = SPIN_SECONDS / 8  # a turn spent spinning comes on top
LATE = SPIN_SECONDS * 2
LOOK = TURN_SECONDS / 100  # what the clock goes on by, each time it is asked


class Loop:
    """One reader and the callbacks that wait; the clock goes on by LOOK whenever it is read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.readers: dict[int, Callable[[], object]] = {}
        self.waiting: list[Callable[..., object]] = []

    def clock(self) -> float:
        self.now += LOOK
        return self.now

    def call_soon(self, callback: Callable[..., object], /, *_: object) -> Any:
        self.waiting.append(callback)

    def add_reader(self, fd: int, callback: Callable[[], object], /) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int, /) -> bool:
        return self.readers.pop(fd, None) is not None

    def turn(self) -> None:
        """One turn of the loop: what waits, then whoever is readable."""
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()
        for fd in select.select(list(self.readers), [], [], 0)[0]:
            self.readers[fd]()


class Pipe:
    """A descriptor that says something when a test does."""

    def __init__(self) -> None:
        self.reading, self._writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.heard: list[bytes] = []

    def say(self, octets: bytes = b"x") -> None:
        os.write(self._writing, octets)

    def hear(self) -> int:
        """Reads one octet if there is one; how many were heard so far."""
        with suppress(BlockingIOError):
            self.heard.append(os.read(self.reading, 1))
        return len(self.heard)

    def close(self) -> None:
        for fd in (self.reading, self._writing):
            with suppress(OSError):
                os.close(fd)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def poller(loop: Loop) -> Poller:
    return Poller(loop, loop.clock)  # type: ignore[arg-type]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def work(loop: Loop, pipe: Pipe, *, after: float) -> None:
    loop.now += after
    pipe.say()
    loop.turn()


# ── A reactor ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reader_is_called_with_its_arguments_when_there_is_something(
    loop: Loop, poller: Poller, pipe: Pipe
) -> None:
    seen: list[tuple[int, ...]] = []

    def hear(*args: int) -> None:
        pipe.hear()
        seen.append(args)

    poller.add_reader(pipe.reading, hear, 1, 2)
    loop.turn()
    assert not seen
    pipe.say()
    loop.turn()
    assert seen == [(1, 2)]


def test_the_loop_is_told_of_one_descriptor_and_gets_it_back_with_the_last_reader(
    loop: Loop, poller: Poller, pipe: Pipe, other: Pipe
) -> None:
    for each in (pipe, other):
        poller.add_reader(each.reading, each.hear)
        assert len(loop.readers) == 1
    assert poller.remove_reader(pipe.reading)
    assert len(loop.readers) == 1
    assert poller.remove_reader(other.reading)
    assert not loop.readers
    poller.add_reader(pipe.reading, pipe.hear)
    work(loop, pipe, after=LATE)
    assert pipe.heard == [b"x"]


def test_a_second_reader_of_a_descriptor_replaces_the_first(loop: Loop, poller: Poller, pipe: Pipe) -> None:
    poller.add_reader(pipe.reading, pytest.fail)
    poller.add_reader(pipe.reading, pipe.hear)
    work(loop, pipe, after=LATE)
    assert pipe.heard == [b"x"]


def test_a_reader_removed_is_not_called_and_may_be_removed_again(
    loop: Loop, poller: Poller, pipe: Pipe, other: Pipe
) -> None:
    poller.add_reader(pipe.reading, pytest.fail)
    poller.add_reader(other.reading, other.hear)
    assert poller.remove_reader(pipe.reading)
    assert not poller.remove_reader(pipe.reading)
    pipe.say()
    work(loop, other, after=LATE)
    assert other.heard == [b"x"]


def test_a_reader_that_another_removes_in_the_same_turn_is_not_called(
    loop: Loop, poller: Poller, pipe: Pipe, other: Pipe
) -> None:
    poller.add_reader(pipe.reading, lambda: (pipe.hear(), poller.remove_reader(other.reading)))
    poller.add_reader(other.reading, lambda: (other.hear(), poller.remove_reader(pipe.reading)))
    pipe.say()
    work(loop, other, after=LATE)
    assert len(pipe.heard) + len(other.heard) == 1


def test_a_descriptor_closed_before_it_is_removed_does_no_harm(
    loop: Loop, poller: Poller, pipe: Pipe, other: Pipe
) -> None:
    poller.add_reader(pipe.reading, pipe.hear)
    poller.add_reader(other.reading, other.hear)
    pipe.close()
    assert poller.remove_reader(pipe.reading)
    work(loop, other, after=LATE)
    assert other.heard == [b"x"]


def test_a_number_used_again_after_an_unseen_close_is_watched_anew(
    loop: Loop, poller: Poller, pipe: Pipe, other: Pipe
) -> None:
    poller.add_reader(pipe.reading, pytest.fail)
    os.dup2(other.reading, pipe.reading)  # closes what had the number
    poller.add_reader(pipe.reading, other.hear)
    work(loop, other, after=LATE)
    assert other.heard == [b"x"]


def test_what_cannot_be_watched_is_not_kept(loop: Loop, poller: Poller) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        poller.add_reader(987654, pytest.fail)
    assert not poller.remove_reader(987654)
    assert not loop.readers


def test_a_pipe_whose_writer_is_gone_is_readable(loop: Loop, poller: Poller, pipe: Pipe) -> None:
    poller.add_reader(pipe.reading, lambda: (pipe.hear(), poller.remove_reader(pipe.reading)))
    os.close(pipe._writing)
    loop.turn()
    assert pipe.heard == [b""]


# ── Turns ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_that_is_there_is_served_in_one_turn(loop: Loop, poller: Poller, pipe: Pipe, other: Pipe) -> None:
    for each in (pipe, other):
        poller.add_reader(each.reading, each.hear)
        each.say(b"123")
    loop.turn()
    assert pipe.heard == other.heard == [b"1", b"2", b"3"]


def test_a_turn_ends_when_its_time_is_over_and_another_follows(
    loop: Loop, poller: Poller, pipe: Pipe
) -> None:
    poller.add_reader(pipe.reading, pipe.hear)
    pipe.say(b"." * 1000)
    loop.turn()
    assert 0 < len(pipe.heard) < 200
    turns = 1
    while len(pipe.heard) < 1000:
        assert len(loop.waiting) == 1, "no next turn was asked for, or two"
        loop.turn()
        turns += 1
    assert turns > 5


def test_two_busy_descriptors_have_turns_alike_however_long_one_takes(
    loop: Loop, poller: Poller, pipe: Pipe, other: Pipe
) -> None:
    def slow() -> None:
        pipe.hear()
        loop.now += 2 * TURN_SECONDS

    poller.add_reader(pipe.reading, slow)
    poller.add_reader(other.reading, other.hear)
    for each in (pipe, other):
        each.say(b"." * 100)
    for _ in range(40):
        loop.turn()
    assert abs(len(pipe.heard) - len(other.heard)) <= 2
    assert len(pipe.heard) > 20


# ── Spinning ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def yields(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One for each time the core was given away."""
    given: list[None] = []
    monkeypatch.setattr("tunnel.poller.os.sched_yield", lambda: given.append(None))
    return given


def test_rare_work_is_never_waited_for(loop: Loop, poller: Poller, pipe: Pipe, yields: list[None]) -> None:
    poller.add_reader(pipe.reading, pipe.hear)
    for _ in range(100):
        work(loop, pipe, after=LATE)
    assert not yields
    assert not loop.waiting


def test_after_a_soon_answer_it_looks_again_until_the_time_is_over(
    loop: Loop, poller: Poller, pipe: Pipe, yields: list[None]
) -> None:
    poller.add_reader(pipe.reading, pipe.hear)
    work(loop, pipe, after=LATE)
    work(loop, pipe, after=SOON)
    began = loop.now
    while loop.waiting:
        loop.turn()
    assert yields
    assert SPIN_SECONDS / 2 < loop.now - began + TURN_SECONDS < SPIN_SECONDS + 2 * TURN_SECONDS


def test_an_answer_is_found_without_the_loop_while_it_spins(
    loop: Loop, poller: Poller, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    poller.add_reader(pipe.reading, pipe.hear)
    work(loop, pipe, after=LATE)
    monkeypatch.setattr("tunnel.poller.os.sched_yield", lambda: pipe.say() if len(pipe.heard) == 2 else None)
    work(loop, pipe, after=SOON)
    assert len(pipe.heard) == 3


def test_request_and_response_keep_it_looking(
    loop: Loop, poller: Poller, pipe: Pipe, yields: list[None]
) -> None:
    poller.add_reader(pipe.reading, pipe.hear)
    work(loop, pipe, after=LATE)
    work(loop, pipe, after=SOON)
    for _ in range(50):
        for after in (LATE, SOON):
            seen = len(yields)
            work(loop, pipe, after=after)
            assert len(yields) > seen


def test_where_work_fills_half_of_the_time_nothing_spins_and_later_it_does_again(
    loop: Loop, poller: Poller, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def toil() -> None:
        pipe.hear()
        loop.now += SOON if is_busy else 0.0

    def give_away() -> None:
        yields.append(None)
        if is_busy:
            pipe.say()

    yields: list[None] = []
    is_busy = True
    monkeypatch.setattr("tunnel.poller.os.sched_yield", give_away)
    poller.add_reader(pipe.reading, toil)
    for _ in range(400):
        work(loop, pipe, after=LOOK)
    yields.clear()
    work(loop, pipe, after=LOOK)
    assert not yields
    is_busy = False
    for _ in range(400):
        work(loop, pipe, after=SOON)
    assert yields


def test_where_answers_stop_coming_it_gives_up(
    loop: Loop, poller: Poller, pipe: Pipe, yields: list[None]
) -> None:
    poller.add_reader(pipe.reading, pipe.hear)
    for _ in range(SCORE_MAX):
        work(loop, pipe, after=SOON)
    work(loop, pipe, after=LATE)
    work(loop, pipe, after=SOON)
    for _ in range(SCORE_MAX):
        work(loop, pipe, after=LATE)
    loop.now += LATE
    loop.turn()
    yields.clear()
    work(loop, pipe, after=LATE)
    assert not yields
    assert not loop.waiting
    assert SCORE_HIT > 1, "one late answer would undo one soon answer"


def test_it_serves_a_real_loop(pipe: Pipe) -> None:
    async def serve() -> list[bytes]:
        loop = asyncio.get_running_loop()
        poller = Poller(loop, loop.time)
        done = loop.create_future()
        poller.add_reader(pipe.reading, lambda: pipe.hear() == 3 and loop.call_soon(done.set_result, None))
        for at in (0, 0, 0.01):
            poller.call_later(at, pipe.say)
        assert abs(poller.time() - loop.time()) < 1
        await asyncio.wait_for(done, 10)
        assert poller.remove_reader(pipe.reading)
        return pipe.heard

    assert asyncio.run(serve()) == [b"x"] * 3
