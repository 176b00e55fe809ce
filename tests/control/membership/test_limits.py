"""A limit holds per key, turns with time, and is not outgrown by invented keys."""

from __future__ import annotations

from control.membership.limits import KEYS_MAX, RateLimit


def test_each_key_has_its_own_count_until_the_window_turns() -> None:
    limit = RateLimit(2, 1.0)
    assert [limit.permits("a", now=0.0) for _ in range(3)] == [True, True, False]
    assert limit.permits("b", now=0.5)
    assert limit.permits("a", now=1.0)


def test_invented_keys_fill_one_table_and_no_more() -> None:
    limit = RateLimit(1, 1.0)
    assert sum(limit.permits(key, now=0.0) for key in range(2 * KEYS_MAX)) == KEYS_MAX
