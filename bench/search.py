"""The highest rate a forwarder carries with almost no loss, found in a bounded number of tries.

Bisection on a logarithmic scale: each rate halves the ratio between what was carried and what was not.  A
flood measures the scheduler as much as the forwarder; this rate is the figure to steer by.

One moment without a core (a hypervisor may let one sleep for 2 ms) brings the receiver more than its buffer
holds, which is more than a short try may lose, and comes every other second on some machines.  So a rate that
loses little is tried again, and carried if one of its tries was.

Heads up: bisection takes loss to grow with the rate.  What loses half a per cent at any rate passes or fails
the first ones by luck, and its results fall into two groups (kernel VXLAN in the record: 165 and 305): the
median says which was met more often.
"""

from __future__ import annotations

import math

# Ours
SPAN_BELOW = 8.0  # the search begins between a flood's delivered rate divided by this …
SPAN_ABOVE = (
    4.0  # … and multiplied by that: a flooding sender takes the forwarder's core, a paced one does not
)
STEPS = 7  # 32 ** (1 / 2 ** 7) = 1.027: the span above, known to 2.7 %
MAX_LOSS = 0.001
CLEAR_LOSS = 0.02  # less may be one moment in which somebody else had the core: that rate is tried again
TRIES = 4  # of one rate


class RateSearch:
    """Proposes rates and is told how each went; at most TRIES times STEPS of them.

    Args:
        delivered: What a flood delivered per second: the search goes around it.
    """

    def __init__(self, delivered: float) -> None:
        self.best: float | None = None
        self._low = delivered / SPAN_BELOW
        self._high = delivered * SPAN_ABOVE
        self._steps_left = STEPS
        self._tries = 0  # of the rate proposed last

    def next_rate(self) -> float | None:
        """The rate to try; None: enough is known."""
        return self._middle if self._steps_left else None

    def record(self, *, sent: float, received: float, seconds: float) -> bool:
        """Whether the rate proposed last was carried with a result better than any before.

        A sender that was kept from its pace has tried a lower rate than was proposed: what was delivered
        counts, and no more than that.
        """
        lost = sent - received
        is_carried = sent > 0 and lost <= MAX_LOSS * sent
        self._tries += 1
        if not is_carried and lost < CLEAR_LOSS * sent and self._tries < TRIES:
            return False
        self._tries = 0
        self._steps_left -= 1
        if not is_carried:
            self._high = self._middle
            return False
        self._low = self._middle
        delivered = received / seconds
        if self.best is not None and delivered <= self.best:
            return False
        self.best = delivered
        return True

    @property
    def _middle(self) -> float:
        return math.sqrt(self._low * self._high)
