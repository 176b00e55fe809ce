"""How often something may happen for one key: the same rule for requesters, reminders and alarms."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

KEYS_MAX = 1024


class RateLimit:
    """At most `count` times in `seconds`, for each of at most `KEYS_MAX` keys; more keys wait.

    Fixed windows, all keys turning together: who invents keys fills one table, and only until it turns.
    """

    def __init__(self, count: int, seconds: float) -> None:
        self._count = count
        self._seconds = seconds
        self._turns_at = 0.0
        self._used: dict[Hashable, int] = {}

    def permits(self, key: Hashable, *, now: float) -> bool:
        """Whether it may happen now; if so it is counted."""
        if now >= self._turns_at:
            self._used.clear()
            self._turns_at = now + self._seconds
        used = self._used.get(key, 0)
        if used >= self._count or (used == 0 and len(self._used) >= KEYS_MAX):
            return False
        self._used[key] = used + 1
        return True
