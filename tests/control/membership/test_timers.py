"""Timers fire in order, and time we did not live through did not pass."""

from __future__ import annotations

from control.membership.config import PAUSE
from control.membership.timers import Alarm, Timers


def test_what_is_due_comes_in_order_and_what_is_not_waits() -> None:
    timers = Timers(0.0)
    for at, key in ((3.0, "c"), (1.0, "a"), (1.0, "b")):
        timers.set(at, Alarm.PROBE, key)
    timers.advance(1.5)
    assert [timer.key for timer in iter(timers.take_due, None)] == ["a", "b"]
    assert timers.next_at == 3.0


def test_a_little_late_is_late() -> None:
    timers = Timers(0.0)
    timers.set(1.0, Alarm.PROBE)
    assert timers.advance(1.0 + PAUSE) == 0.0
    assert timers.take_due()


def test_after_standing_still_deadlines_have_moved() -> None:
    timers = Timers(0.0)
    timers.set(1.0, Alarm.PROBE, "first")
    timers.set(4.0, Alarm.PROBE, "later")
    assert timers.advance(11.0) == 10.0
    due = timers.take_due()
    assert due is not None
    assert due.key == "first"
    assert timers.take_due() is None
    assert timers.next_at == 14.0
    assert timers.paused == 10.0


def test_a_clock_set_back_stands_still() -> None:
    timers = Timers(100.0)
    timers.set(101.0, Alarm.PROBE)
    assert timers.advance(5.0) == 0.0
    assert timers.now == 100.0
    assert timers.take_due() is None
