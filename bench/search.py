"""The highest rate a forwarder carries with almost no loss, found in a bounded number of tries.

Bisection on a logarithmic scale: each rate halves the ratio between what was carried and what was not.  A
flood measures the scheduler as much as the forwarder; this rate is the figure to steer by.

One moment in which the receiver has no core costs it a whole buffer, more than a short try may lose.  A rate
that loses little is tried again, and all its tries are counted together: as if it had been tried for longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Ours
SPAN_BELOW = 8.0  # the search begins between a flood's delivered rate divided by this …
SPAN_ABOVE = (
    4.0  # … and multiplied by that: a flooding sender takes the forwarder's core, a paced one does not
)
STEPS = 7  # 32 ** (1 / 2 ** 7) = 1.027: the span above, known to 2.7 %
MAX_LOSS = 0.001
CLEAR_LOSS = 0.02  # less may be one moment in which somebody else had the core: that rate is tried again
TRIES = 4  # of one rate, taken together


class RateSearch:
    """Proposes rates and is told how each went; at most TRIES times STEPS of them.

    Args:
        delivered: What a flood delivered per second: the search goes around it.

    Attributes:
        best: The highest rate that was carried, in datagrams received a second.
        loss: What share of them was lost at that rate, 0 … 1.
    """

    def __init__(self, delivered: float) -> None:
        self.best: float | None = None
        self.loss = 0.0
        self._low = delivered / SPAN_BELOW
        self._high = delivered * SPAN_ABOVE
        self._steps_left = STEPS
        self._tries = _Tries()

    def next_rate(self) -> float | None:
        """The rate to try; None: enough is known."""
        return self._middle if self._steps_left else None

    def record(self, *, sent: float, received: float, seconds: float) -> bool:
        """Whether the rate proposed last was carried with a result better than any before.

        A sender that was kept from its pace has tried a lower rate than was proposed: what was delivered
        counts, and no more than that.
        """
        tries = self._tries
        tries.add(sent, received, seconds)
        is_carried = tries.loss <= MAX_LOSS
        if not is_carried and tries.loss < CLEAR_LOSS and tries.count < TRIES:
            return False
        self._tries = _Tries()
        self._steps_left -= 1
        if not is_carried:
            self._high = self._middle
            return False
        self._low = self._middle
        delivered = tries.received / tries.seconds
        if self.best is not None and delivered <= self.best:
            return False
        self.best, self.loss = delivered, tries.loss
        return True

    @property
    def _middle(self) -> float:
        return math.sqrt(self._low * self._high)


@dataclass(slots=True)
class _Tries:
    """All tries of one rate."""

    count: int = 0
    sent: float = 0.0
    received: float = 0.0
    seconds: float = 0.0

    def add(self, sent: float, received: float, seconds: float) -> None:
        self.count += 1
        self.sent += sent
        self.received += received
        self.seconds += seconds

    @property
    def loss(self) -> float:
        return (self.sent - self.received) / self.sent if self.sent else 1.0
