"""Lamport's clock, and a memory of what was heard under it.

Serf orders intents, events and queries by such clocks.  A stranger may claim any time, and a clock driven
to its end could never tell again who left after joining; so times too far ahead are refused.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

# Ours
JUMP_MAX = 1 << 32
REMEMBERED = 512  # messages; Serf's event and query buffers are as large


class LamportClock:
    """A counter that never runs behind what it has witnessed."""

    __slots__ = ("time",)

    def __init__(self, time: int = 0) -> None:
        self.time = time

    def increment(self) -> int:
        """A time later than everything witnessed."""
        self.time += 1
        return self.time

    def witness(self, time: int) -> bool:
        """Take note of another's time; False if it is too far ahead to be believed."""
        if time > self.time + JUMP_MAX:
            return False
        self.time = max(self.time, time + 1)
        return True


class Heard:
    """Which messages of one kind were heard already, the latest `REMEMBERED` of them."""

    def __init__(self, clock: LamportClock) -> None:
        self._clock = clock
        self._keys: OrderedDict[Hashable, None] = OrderedDict()

    def is_news(self, time: int, key: Hashable) -> bool:
        """Whether this is heard for the first time, and not so old that we cannot tell."""
        if time + REMEMBERED < self._clock.time or key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > REMEMBERED:
            self._keys.popitem(last=False)
        return True
