"""What `weft watch` streams: changes of tables and pool as they happen, and drops while somebody watches.

Nothing is made while nobody watches.  A watcher that reads too slowly loses events, never frames.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Protocol

from control.operator.views import WatchEvent
from overlay.addr import NetworkId, format_mac
from overlay.bucket import TokenBucket
from overlay.tables import (
    FdbRemove,
    FdbReplace,
    TableDelta,
    Tables,
    VtepRemove,
    VtepReplace,
    fdb_key,
    vtep_key,
)
from overlay.verdict import Drop, DropReason, TableKey, Verdict
from tunnel.interfaces import Buffer, Datapath, Point

# From the specification
MAC_PAIR = 12  # octets: IEEE 802.3-2018 section 3.2, destination and source address

# Ours
EVENTS_HELD = 1024  # for each watcher
DROP_EVENTS_PER_SECOND = 50.0  # of one reason in one network: a flood of drops is a counter, not a stream


class Clock(Protocol):
    """Monotonic seconds."""

    def __call__(self) -> float: ...


class Events:
    """The stream, and the `tunnel.interfaces.Observer` of its drops."""

    def __init__(self, datapath: Datapath, tables: Tables, clock: Clock) -> None:
        self._datapath = datapath
        self._clock = clock
        self._queues: set[asyncio.Queue[WatchEvent]] = set()
        self._drops: dict[tuple[NetworkId | None, DropReason], TokenBucket] = {}
        tables.subscribe(self._tables_changed)

    async def subscribe(self) -> AsyncGenerator[WatchEvent, None]:
        """Every event from now on, until the generator is closed."""
        queue: asyncio.Queue[WatchEvent] = asyncio.Queue(EVENTS_HELD)
        if not self._queues:
            self._datapath.watch(self)
        self._queues.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)
            if not self._queues:
                self._datapath.unwatch(self)

    def publish(self, kind: str, network: NetworkId | None, text: str, **detail: str | float) -> None:
        """One event to every watcher that has room for it."""
        event = WatchEvent(time.time(), kind, network, text, detail)
        for queue in self._queues:
            if not queue.full():
                queue.put_nowait(event)

    def tell_peer(self, text: str) -> None:
        """Something about a member of the pool."""
        self.publish("peer", None, text)

    def observe(
        self, point: Point, network: NetworkId | None, frame: Buffer, verdict: Verdict | None
    ) -> None:
        """Sees every frame while somebody watches; only drops are told, and not a flood of them."""
        if point is not Point.DROP or not isinstance(verdict, Drop):
            return
        now = self._clock()
        place = (network, verdict.reason)
        bucket = self._drops.get(place)
        if bucket is None:
            bucket = TokenBucket.full(DROP_EVENTS_PER_SECOND, DROP_EVENTS_PER_SECOND, now=now)
            self._drops[place] = bucket
        if not bucket.take(1, now=now):
            return
        reason = verdict.reason.name
        detail: dict[str, str | int | float] = {"reason": reason, "octets": len(frame)}
        between = ""
        if verdict.reason is not DropReason.TRUNCATED and _has_stations(frame):
            destination, source = format_mac(bytes(frame[0:6])), format_mac(bytes(frame[6:12]))
            detail |= {"dst": destination, "src": source}
            between = f" {source} → {destination}"
        self.publish("drop", network, f"{reason}{between} {len(frame)} octets", **detail)

    def _tables_changed(self, delta: TableDelta, touched: frozenset[TableKey]) -> None:
        if not self._queues:
            return
        for change in delta.changes:
            match change:
                case FdbReplace(network, mac, vtep) if fdb_key(network, mac) in touched:
                    text = f"{format_mac(mac)} is behind {vtep}"
                    self.publish("learn", network, text, mac=format_mac(mac), vtep=str(vtep))
                case FdbRemove(network, mac) if fdb_key(network, mac) in touched:
                    text = f"{format_mac(mac)} is no longer behind the tunnel"
                    self.publish("age", network, text, mac=format_mac(mac))
                case VtepReplace(network, vtep) if vtep_key(network, vtep.address) in touched:
                    self.publish("peer", network, f"VTEP {vtep} joined", vtep=str(vtep.address))
                case VtepRemove(network, vtep) if vtep_key(network, vtep) in touched:
                    self.publish("peer", network, f"VTEP {vtep} left", vtep=str(vtep))
                case _:
                    pass


def _has_stations(frame: Buffer) -> bool:
    """Whether it begins with two MACs: of what was cut short the datagram is shown, a packet wears zeros."""
    return len(frame) >= MAC_PAIR and bytes(frame[:MAC_PAIR]) != bytes(MAC_PAIR)
