"""Seconds that pass when a test says so, and at no other time."""

from __future__ import annotations


class Clock:
    """Monotonic seconds, called like `time.monotonic`.

    Args:
        now: Where it starts; not zero, so that nobody takes zero for "never".
        tick: What each look at it costs: a machine on which work takes time.
    """

    def __init__(self, now: float = 1000.0, *, tick: float = 0.0) -> None:
        self.now = now
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds
