"""How many decisions a source may ask for: separate limits for three kinds, fair by source.

A decision is Python, some twenty microseconds of it, on the loop that also answers gossip.  A flood of
new flows must not starve neighbor discovery, nor a flood of ARP the new flows; and one VTEP's flood must
not take the share of another.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum

from overlay.bucket import FairBuckets

# Ours.  Rates and bursts are for all sources together; SHARE is the most that one of them gets.
SHARE = 0.5
COPIES_PER_SECOND = 100_000.0  # of replicated frames, per network
COPIES_BURST = 20_000.0


class UpcallKind(Enum):
    """What is asked, with the (rate per second, burst) all sources share."""

    NEW_FLOW = (20_000.0, 40_000.0)
    NEIGHBOR_DISCOVERY = (4_000.0, 4_000.0)
    ICMP_ERROR = (200.0, 100.0)


class Meter:
    """One fair set of buckets for each kind of upcall."""

    def __init__(self, *, now: float) -> None:
        self._buckets = {
            kind: FairBuckets(rate=kind.value[0], burst=kind.value[1], share=SHARE, now=now)
            for kind in UpcallKind
        }

    def admits(self, kind: UpcallKind, source: Hashable, *, now: float) -> bool:
        """Whether this source may ask once more."""
        return self._buckets[kind].take(source, now=now)
