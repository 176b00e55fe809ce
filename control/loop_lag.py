"""How late the loop is: what everything in it waits for, from gossip's answers to the frames themselves.

A short sleep is taken again and again; what it lasts beyond its end is the time the loop was busy with
somebody.  A callback that holds the loop shows here, whoever it belongs to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

# Ours
LOOK_SECONDS = 0.25  # each one wakes an idle daemon
LOOKS_KEPT = 240  # a minute


@dataclass(frozen=True, slots=True)
class LoopLag:
    """How late the loop was lately, in seconds: at the median, at the 99th percentile, at worst."""

    p50: float = 0.0
    p99: float = 0.0
    worst: float = 0.0


class LagWatch:
    """Watches the loop it runs in."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=LOOKS_KEPT)

    async def run(self) -> None:
        """Looks until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            self._late.append(max(0.0, loop.time() - due))

    def lag(self) -> LoopLag:
        """What was seen in the last minute; nothing yet: no lag."""
        if not self._late:
            return LoopLag()
        late = sorted(self._late)
        return LoopLag(late[len(late) // 2], late[len(late) * 99 // 100], late[-1])
