"""A Lamport clock never runs behind, is not driven to its end, and remembers what was heard."""

from __future__ import annotations

from control.membership.lamport import JUMP_MAX, REMEMBERED, Heard, LamportClock


def test_a_time_given_out_is_later_than_all_witnessed() -> None:
    clock = LamportClock()
    assert clock.witness(41)
    assert clock.increment() > 41
    assert clock.witness(3)
    assert clock.increment() > 41


def test_a_leap_to_the_end_is_refused() -> None:
    clock = LamportClock()
    assert not clock.witness((1 << 64) - 1)
    assert not clock.witness(JUMP_MAX + 1)
    assert clock.time == 0


def test_a_message_is_news_once() -> None:
    clock = LamportClock()
    heard = Heard(clock)
    assert [heard.is_news(1, "a"), heard.is_news(1, "a"), heard.is_news(1, "b")] == [True, False, True]


def test_what_is_too_old_to_be_remembered_is_no_news() -> None:
    clock = LamportClock(REMEMBERED + 10)
    assert not Heard(clock).is_news(9, "a")
    assert Heard(clock).is_news(10, "a")
