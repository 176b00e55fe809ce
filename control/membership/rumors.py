"""The rumor queue: what to tell next to whomever we are writing to anyway.

A rumor is sent a limited number of times and then believed to have reached everybody; anti-entropy finds
those it did not.  Sent least goes first, then the larger (small ones fill the gaps), then the newer.  A
rumor about a subject replaces the older one about it: what was believed of a member before is of no
interest.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from enum import Enum

Subject = tuple[str, ...]
"""What a rumor is about: its kind, then whatever tells it from others of that kind."""


class Audience(Enum):
    """Who may hear a rumor.  A stock agent logs a warning for each message it does not know."""

    EVERYONE = "everyone"
    PEERS = "peers"


@dataclass(slots=True, order=True)
class Rumor:
    """One message on its way round; ordered as the queue hands it out among those sent equally often."""

    rank: tuple[int, int]
    message: bytes = field(compare=False)
    subject: Subject = field(compare=False)
    audience: Audience = field(compare=False)
    is_stale: bool = field(default=False, compare=False)


class RumorQueue:
    """Rumors in tiers: tier n has been sent n times.

    Args:
        capacity: Rumors held at most; the most often sent is forgotten first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._tiers: list[list[Rumor]] = [[]]
        self._by_subject: dict[Subject, Rumor] = {}
        self._born = 0
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._by_subject)

    def __contains__(self, subject: Subject) -> bool:
        return subject in self._by_subject

    def add(self, subject: Subject, message: bytes, audience: Audience = Audience.EVERYONE) -> None:
        """Spread `message`, and nothing older about `subject`."""
        self.withdraw(subject)
        self._born += 1
        rumor = Rumor((-len(message), -self._born), message, subject, audience)
        self._by_subject[subject] = rumor
        insort(self._tiers[0], rumor)
        if len(self._by_subject) > self.capacity:
            self._forget_one()

    def withdraw(self, subject: Subject) -> None:
        """Spread nothing more about `subject`."""
        if old := self._by_subject.pop(subject, None):
            old.is_stale = True

    def take(self, budget: int, *, overhead: int, limit: int, count: int, is_peer: bool) -> list[bytes]:
        """The messages for one packet, each counted as sent once more.

        Args:
            budget: Octets there are.
            overhead: Octets each message costs beside its own.
            limit: How often a rumor is sent before it is dropped.
            count: Messages at most.
            is_peer: Whether the packet goes to one who may hear what is for peers.
        """
        if not self._by_subject or budget <= overhead:
            return []
        taken: list[Rumor] = []
        promoted: list[tuple[int, Rumor]] = []
        for sent, tier in enumerate(self._tiers):
            kept: list[Rumor] = []
            for index, rumor in enumerate(tier):
                if budget <= overhead or len(taken) >= count:
                    kept += tier[index:]
                    break
                if rumor.is_stale:
                    continue
                fits = len(rumor.message) + overhead <= budget
                if not fits or (rumor.audience is Audience.PEERS and not is_peer):
                    kept.append(rumor)
                    continue
                budget -= len(rumor.message) + overhead
                taken.append(rumor)
                promoted.append((sent + 1, rumor))
            self._tiers[sent] = kept
        for sent, rumor in promoted:
            self._promote(rumor, sent, limit)
        return [rumor.message for rumor in taken]

    def _promote(self, rumor: Rumor, sent: int, limit: int) -> None:
        if sent >= limit:
            del self._by_subject[rumor.subject]
            return
        while len(self._tiers) <= sent:
            self._tiers.append([])
        insort(self._tiers[sent], rumor)

    def _forget_one(self) -> None:
        for tier in reversed(self._tiers):
            while tier:
                rumor = tier.pop()
                if not rumor.is_stale:
                    del self._by_subject[rumor.subject]
                    rumor.is_stale = True
                    self.forgotten += 1
                    return
