"""Counters that rise by somebody's mistake, each told for a minute after it last rose.

What a mistake does it does again; a node that only came before its configuration is well by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from control.operator.views import HealthView
from overlay.addr import NetworkId
from overlay.verdict import DropReason

# Ours
MISTAKE_SECONDS = 60.0

_FIXES: dict[DropReason, str] = {
    DropReason.UNKNOWN_VTEP: "add the sender to `peers`, or find out who it is: weft watch",
    DropReason.UNKNOWN_VNI: "a peer uses a VNI no network here has: compare `vni` on both sides",
    DropReason.SPOOFED_SOURCE: "a MAC pinned to one place is used at another: weft fdb, weft watch",
    DropReason.OWN_MAC: "our own MAC comes from the tunnel: a bridge loop, or a cloned machine",
    DropReason.MTU_EXCEEDED: "frames are longer than the path carries: lower `mtu` on both sides",
}


@dataclass(frozen=True, slots=True)
class FullFdb:
    """An FDB that had no room, `refused` times since the start."""

    network: NetworkId
    fdb_max: int
    refused: int


class Mistakes:
    """What rose, and when it was last seen to."""

    def __init__(self) -> None:
        self._dropped: dict[DropReason, tuple[int, float]] = {}
        self._full: dict[NetworkId, tuple[FullFdb, float]] = {}

    def note(self, drops: Iterable[Mapping[DropReason, int]], fdbs: Iterable[FullFdb], *, now: float) -> None:
        """Takes the counters as they are: drops network by network, and every FDB with its refusals."""
        totals = dict.fromkeys(_FIXES, 0)
        for counts in drops:
            for reason in totals:
                totals[reason] += counts.get(reason, 0)
        for reason, total in totals.items():
            if total > self._dropped.get(reason, (0, now))[0]:
                self._dropped[reason] = (total, now)
        for fdb in fdbs:
            known, _ = self._full.get(fdb.network, (None, now))
            if fdb.refused > (known.refused if known is not None else 0):
                self._full[fdb.network] = (fdb, now)

    def ailments(self, *, now: float) -> Iterator[HealthView]:
        """Those of late, with what mends them."""
        for reason, (total, last_at) in self._dropped.items():
            if now - last_at < MISTAKE_SECONDS:
                yield HealthView(f"{total} frames dropped: {reason.value.split(' [')[0]}", _FIXES[reason])
        for fdb, last_at in self._full.values():
            if now - last_at < MISTAKE_SECONDS:
                yield _of_full(fdb)


def _of_full(fdb: FullFdb) -> HealthView:
    full = f"network {fdb.network}: the FDB is full (fdb_max = {fdb.fdb_max})"
    return HealthView(
        f"{full}: {fdb.refused} times a MAC was not learned",
        f"raise fdb_max under [[network]] {fdb.network}, or find out who has so many: weft fdb",
    )
