"""The neighbor table of one network: which MAC has this IP, so that the question need not be flooded.

Neighbor suppression answers ARP requests and neighbor solicitations on behalf of endpoints behind the
tunnel.  A LEARNED answer is given only while its MAC is heard from behind a VTEP, for whoever asks by
broadcast may have asked the old MAC in vain; and never to a probe for a duplicate address (RFC 5227 section
2.1.1, RFC 4862 section 5.4.2): that question must reach the owner.  An entry from CONTROL is its owner's own
word and answers probes too (RFC 9161 section 3.2).

Heads up: read RFC 9161 before changing this file.  `Tables.apply` is the only caller of what writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from overlay.addr import IpAddress, Mac
from overlay.fdb import Fdb, Origin

# Ours
VOUCHED_SECONDS = 30.0  # a MAC silent for longer answers for itself: RFC 4861 section 10, REACHABLE_TIME


@dataclass(frozen=True, slots=True)
class NeighborEntry:
    """`address` is `mac`'s.

    Attributes:
        seen_at: When that was last said, absolute monotonic seconds.
        is_router: What the owner's neighbor advertisements say; False for IPv4.
    """

    address: IpAddress
    mac: Mac
    origin: Origin
    seen_at: float
    is_router: bool = False


class NeighborTable:
    """IP → entry."""

    def __init__(self) -> None:
        self._entries: dict[IpAddress, NeighborEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, address: IpAddress) -> NeighborEntry | None:
        """The entry, or None."""
        return self._entries.get(address)

    def entries(self) -> tuple[NeighborEntry, ...]:
        """All of them."""
        return tuple(self._entries.values())

    def suppress(self, target: IpAddress, *, is_probe: bool, fdb: Fdb, now: float) -> NeighborEntry | None:
        """The entry to answer with on the owner's behalf, or None: the question must be flooded."""
        entry = self._entries.get(target)
        if entry is None or entry.origin is not Origin.LEARNED:
            return entry
        owner = fdb.lookup(entry.mac)
        if is_probe or owner is None:
            return None
        is_silent = owner.origin is Origin.LEARNED and now - owner.seen_at > VOUCHED_SECONDS
        return None if is_silent else entry

    def aged(self, *, now: float, ageing: float) -> tuple[IpAddress, ...]:
        """The learned addresses not confirmed for `ageing` seconds."""
        return tuple(
            entry.address
            for entry in self._entries.values()
            if entry.origin is Origin.LEARNED and now - entry.seen_at >= ageing
        )

    def replace(self, entry: NeighborEntry) -> bool:
        """Binds the address; whether that changed an answer."""
        previous = self._entries.get(entry.address)
        self._entries[entry.address] = entry
        return previous is None or replace(previous, seen_at=entry.seen_at) != entry

    def remove(self, address: IpAddress) -> bool:
        """Unbinds the address; whether it was bound."""
        return self._entries.pop(address, None) is not None
