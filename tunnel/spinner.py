"""Spinning: where an answer usually comes soon, the loop asks again for a moment before it sleeps.

Waking a process on another core costs a few microseconds on one machine and sixty on the next, and what
wakes runs on cold caches.  So after a drain the loop is kept turning for SPIN_SECONDS, giving the core away
each time round (`sched_yield`: whoever is to answer may need it), but only while the recent past says that
it pays: a drain that came within the time a spin covers speaks for it, one that came later against.  Where
cores are full the loop never sleeps anyway and nothing here runs.

The price is the core: while requests come some 800 a second or faster, a waiting daemon turns instead of
sleeping, and shows as busy though it yields to whoever wants the core.

Measured with `weft bench --scenario rr` (UDP request and response at 1000/s over veth, both ends this engine,
4 rounds of 2 s, 2 cores, a wake-up 43 to 69 us): p50 added to the bare underlay 194 us before, 99.6 with this
and single reads after a quiet time (`tunnel.carriage.QUIET_SECONDS`).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from tunnel.interfaces import Reactor

# Ours
SPIN_SECONDS = 0.0012  # covers request and response at 1000 a second
SCORE_MAX = 16
SCORE_HIT = 4  # a soon answer speaks louder than a late one: request and response alternate the two


class Spinner:
    """Keeps one loop turning after work, as long as that pays."""

    def __init__(self, reactor: Reactor, clock: Callable[[], float]) -> None:
        self._reactor = reactor
        self._clock = clock
        self._score = 0
        self._worked_at = 0.0
        self._is_spinning = False

    def worked(self, *, started_at: float, ended_at: float) -> None:
        """A drain that did something ran from then to then."""
        if started_at - self._worked_at <= SPIN_SECONDS:
            self._score = min(SCORE_MAX, self._score + SCORE_HIT)
        elif self._score:
            self._score -= 1
        self._worked_at = ended_at
        if self._score and not self._is_spinning:
            self._is_spinning = True
            self._reactor.call_soon(self._spin)

    def _spin(self) -> None:
        self._is_spinning = self._clock() - self._worked_at < SPIN_SECONDS
        if self._is_spinning:
            os.sched_yield()
            self._reactor.call_soon(self._spin)
