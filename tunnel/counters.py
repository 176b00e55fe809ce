"""What a datapath counts: the ledger, and every drop by its name.

    received + generated = sent + delivered + dropped + held          at any quiet moment

`Counters` is one engine's book.  A frame enters it once and leaves it once; `drop` is the only way to
leave it for nothing, and it wants a reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from overlay.addr import NetworkId
from overlay.verdict import DropReason
from tunnel.interfaces import FlowStatistics, Ledger

DropCounts = defaultdict[DropReason, int]


def drop_counts() -> DropCounts:
    """Zero for every reason."""
    return defaultdict(int)


class Counters:
    """The book of one engine.  The hot path adds to `received`, `sent` and `delivered` by the burst."""

    __slots__ = ("delivered", "dropped", "drops", "generated", "received", "sent", "upcalls")

    def __init__(self) -> None:
        self.received = 0
        self.generated = 0
        self.sent = 0
        self.delivered = 0
        self.dropped = 0
        self.upcalls = 0
        self.drops: defaultdict[NetworkId | None, DropCounts] = defaultdict(drop_counts)

    def drop(
        self,
        reason: DropReason,
        network: NetworkId | None,
        of_vtep: DropCounts | None = None,
        *,
        frames: int = 1,
    ) -> None:
        """Frames end here, for this reason.  `of_vtep`: the counts of the VTEP they came from or were for."""
        self.dropped += frames
        self.drops[network][reason] += frames
        if of_vtep is not None:
            of_vtep[reason] += frames

    def lost_before_us(self, reason: DropReason, network: NetworkId | None, *, frames: int) -> None:
        """The kernel dropped these before we could read them: received on our behalf, and lost."""
        self.received += frames
        self.drop(reason, network, frames=frames)

    def lost_after_us(
        self,
        reason: DropReason,
        network: NetworkId | None,
        of_vtep: DropCounts | None,
        *,
        frames: int = 1,
    ) -> None:
        """Frames counted as sent were reported undeliverable: they were not sent after all."""
        if frames:
            self.sent -= frames
            self.drop(reason, network, of_vtep, frames=frames)

    def ledger(self, *, held: int) -> Ledger:
        """A snapshot."""
        return Ledger(self.received, self.generated, self.sent, self.delivered, self.dropped, held)


def joined(flows: Iterable[FlowStatistics]) -> Iterable[FlowStatistics]:
    """One row of what several workers remember of the same two ends."""
    found: dict[tuple[object, ...], FlowStatistics] = {}
    for flow in flows:
        place = (flow.network, flow.direction, flow.vtep, flow.key)
        known = found.setdefault(place, flow)
        if known is not flow:
            found[place] = replace(
                flow,
                frames=flow.frames + known.frames,
                octets=flow.octets + known.octets,
                used_at=max(flow.used_at, known.used_at),
            )
    return found.values()
