"""Lifeguard's local health: how much we should doubt ourselves before we doubt others.

The score rises when our probes fail in ways that point at us (nacks that did not come, suspicions of
ourselves we had to refute, time we slept through) and falls with every probe answered.  A node with a bad
score probes more slowly, which gives the others' answers more time.
"""

from __future__ import annotations

from control.membership.config import AWARENESS_MAX


class Awareness:
    """A score from 0, well, to 7."""

    __slots__ = ("score",)

    def __init__(self) -> None:
        self.score = 0

    def apply(self, delta: int) -> None:
        """Change the score, within its bounds."""
        self.score = min(AWARENESS_MAX - 1, max(0, self.score + delta))

    def stretch(self, interval: float) -> float:
        """The interval as our health demands: from itself to eight times itself."""
        return interval * (self.score + 1)
