"""The forwarding database of one network: behind which VTEP is this MAC?

Local MACs are not in it: whatever is not behind the tunnel is behind the device.  An entry the operator
(STATIC) or the pool (CONTROL) has set is never displaced by what the data plane sees (LEARNED).

Heads up: read RFC 7348 section 4.1 and IEEE 802.1Q-2018 section 8.7 (learning) before changing this file.
`Tables.apply` is the only caller of the methods that write.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from overlay.addr import Mac, VtepId


class Origin(Enum):
    """Who says so.  Only LEARNED entries age, move and give way."""

    STATIC = "static"  # the operator
    CONTROL = "control"  # a record of the node that owns it
    LEARNED = "learned"  # a frame seen


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """`mac` is behind `vtep`.  `seen_at`: when a frame last said so, absolute monotonic seconds."""

    mac: Mac
    vtep: VtepId
    origin: Origin
    seen_at: float


class Fdb:
    """MAC → entry, with the way back from a VTEP to what is behind it.

    Attributes:
        refused: How often a MAC was not learned because there was no room for it.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._entries: dict[Mac, FdbEntry] = {}
        self._behind: dict[VtepId, set[Mac]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, mac: Mac) -> FdbEntry | None:
        """The entry, or None: not behind the tunnel as far as anybody has said."""
        return self._entries.get(mac)

    def entries(self) -> tuple[FdbEntry, ...]:
        """All of them, oldest binding first."""
        return tuple(self._entries.values())

    def behind(self, vtep: VtepId) -> frozenset[Mac]:
        """Every MAC bound to this VTEP."""
        return frozenset(self._behind.get(vtep, ()))

    def aged(self, *, now: float, ageing: float) -> tuple[Mac, ...]:
        """The learned MACs not seen for `ageing` seconds."""
        return tuple(
            entry.mac
            for entry in self._entries.values()
            if entry.origin is Origin.LEARNED and now - entry.seen_at >= ageing
        )

    def replace(self, entry: FdbEntry) -> bool:
        """Binds the MAC; whether that changed what a decision can see (the VTEP or the origin)."""
        previous = self._entries.get(entry.mac)
        if previous is not None and previous.vtep != entry.vtep:
            self._unlink(previous)
        self._entries[entry.mac] = entry
        self._behind.setdefault(entry.vtep, set()).add(entry.mac)
        return previous is None or (previous.vtep, previous.origin) != (entry.vtep, entry.origin)

    def refresh(self, mac: Mac, vtep: VtepId, seen_at: float) -> None:
        """Notes that the MAC was seen, only while it is still bound to this VTEP."""
        entry = self._entries.get(mac)
        if entry is not None and entry.vtep == vtep and entry.seen_at < seen_at:
            self._entries[mac] = FdbEntry(mac, vtep, entry.origin, seen_at)

    def refuse(self) -> None:
        """Counts a MAC there was no room for."""
        self.refused += 1

    def remove(self, mac: Mac) -> bool:
        """Unbinds the MAC; whether it was bound."""
        entry = self._entries.pop(mac, None)
        if entry is None:
            return False
        self._unlink(entry)
        return True

    def _unlink(self, entry: FdbEntry) -> None:
        macs = self._behind[entry.vtep]
        macs.discard(entry.mac)
        if not macs:
            del self._behind[entry.vtep]
