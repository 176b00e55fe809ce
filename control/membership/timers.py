"""What a core has to do later: a heap of instants, and a rule for time we did not live through.

A node that stood still (SIGSTOP, a suspended machine, a clock stepped forwards) wakes with every deadline
passed at once: probes unanswered, suspicions ripe.  None of that is news about the others.  So when the first
deadline is overdue by more than `PAUSE`, all of them move by as much: time in which we did not run did not
pass.  A clock that steps backwards stands still until it has caught up.
"""

from __future__ import annotations

import heapq
from enum import Enum, auto
from typing import NamedTuple

from control.membership.config import PAUSE


class Alarm(Enum):
    """What is due."""

    PROBE = auto()
    PROBE_INDIRECTLY = auto()
    NACK = auto()
    GOSSIP = auto()
    PUSH_PULL = auto()
    REJOIN = auto()
    SUSPICION = auto()
    STREAM = auto()
    REAP = auto()
    MOVE = auto()
    QUERY = auto()
    LEAVE = auto()


class Timer(NamedTuple):
    """One thing due; `key` says for whom.  `order` keeps equal instants in the order they were set."""

    at: float
    order: int
    alarm: Alarm
    key: str | int


class Timers:
    """Timers are set and never cancelled: what comes due checks whether it is still wanted."""

    def __init__(self, now: float) -> None:
        self._heap: list[Timer] = []
        self._order = 0
        self.now = now
        self.paused = 0.0  # seconds we stood still, in all

    def set(self, at: float, alarm: Alarm, key: str | int = 0) -> None:
        """Have `alarm` come due at the instant `at`."""
        self._order += 1
        heapq.heappush(self._heap, Timer(at, self._order, alarm, key))

    @property
    def next_at(self) -> float | None:
        """When the first timer is due."""
        return self._heap[0].at if self._heap else None

    def advance(self, now: float) -> float:
        """Take note of the time.  Returns the seconds we stood still since the last call, 0.0 if none."""
        if now <= self.now:
            return 0.0
        self.now = now
        if not self._heap or (late := now - self._heap[0].at) <= PAUSE:
            return 0.0
        self._heap = [timer._replace(at=timer.at + late) for timer in self._heap]
        self.paused += late
        return late

    def take_due(self) -> Timer | None:
        """The first timer whose instant has come, removed."""
        if self._heap and self._heap[0].at <= self.now:
            return heapq.heappop(self._heap)
        return None
