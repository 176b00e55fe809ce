"""Lifeguard's suspicion: the more members accuse, the less time there is to refute.

One accuser may itself be the one that is ill, so its word alone waits for the maximum.  Each further distinct
accuser shortens the wait logarithmically, until `confirmations_wanted` of them bring it to the minimum.

A suspicion that ripens without them is put to the suspect once more before it is acted upon (ours: a node
just reconnected would otherwise bury, one after the other, whom it has not got round to probing again).
"""

from __future__ import annotations

from control.membership.config import suspicion_timeout


class Suspicion:
    """One suspected member's clock.

    Args:
        accuser: Who said it first; hearing it again from the same member confirms nothing.
        started_at: When we first heard it.
        wanted: How many further accusers bring the deadline to its minimum.
        minimum: Seconds, with that many.
        maximum: Seconds, with none.
    """

    __slots__ = ("_accusers", "_maximum", "_minimum", "_wanted", "is_warned", "started_at")

    def __init__(
        self, accuser: str, *, started_at: float, wanted: int, minimum: float, maximum: float
    ) -> None:
        self._accusers = {accuser}
        self.started_at = started_at
        self._wanted = wanted
        self._minimum = minimum
        self._maximum = maximum
        self.is_warned = False

    @property
    def deadline(self) -> float:
        """When the suspect is given up."""
        return self.started_at + suspicion_timeout(
            len(self._accusers) - 1, self._wanted, self._minimum, self._maximum
        )

    @property
    def is_doubtful(self) -> bool:
        """Whether fewer members than wanted have confirmed it: perhaps it is we who are cut off."""
        return len(self._accusers) <= self._wanted

    def confirm(self, accuser: str) -> bool:
        """Whether this accusation is new and still wanted: then it counts, and is worth passing on."""
        if accuser in self._accusers or len(self._accusers) > self._wanted:
            return False
        self._accusers.add(accuser)
        return True
