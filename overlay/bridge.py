"""What becomes of an Ethernet frame on a bridged network: `egress` and `ingress`, the whole of the rules.

A `Bridge` reads the tables of its network and changes nothing: what a frame teaches comes back as the
decision's delta.  Each decision names every table place it looked at, found or not, so that an engine
can remember the verdict for the flow (destination and source MAC) and forget it exactly when one of
those places changes.

    egress    reserved group? → source pinned, or back from behind the tunnel? → neighbor discovery
              answered here? → group: replicate → bound: encapsulate → unknown: replicate
    ingress   reserved group? → our own source? → source pinned? → learn it, or count that there is no room
              → destination behind the tunnel? (split horizon) → deliver

Heads up: read RFC 7348 section 4 and IEEE 802.1Q-2018 section 8.6 before changing this file.
"""

from __future__ import annotations

from dataclasses import dataclass

from overlay.addr import BPDU_GROUP, RESERVED_GROUP_PREFIX, Mac, NetworkId, VtepId, is_group, is_station
from overlay.discovery import Discovery, answer, read_discovery_untrusted
from overlay.errors import WireError
from overlay.fdb import Origin
from overlay.frame import Ethernet, parse_ethernet_untrusted
from overlay.icmp import build_too_big
from overlay.tables import (
    Change,
    FdbRefuse,
    FdbRemove,
    FdbReplace,
    NeighborReplace,
    NetworkTables,
    TableDelta,
    Tables,
    fdb_key,
    flood_key,
)
from overlay.verdict import (
    EVERY_VTEP,
    Decision,
    Deliver,
    Drop,
    DropReason,
    Encapsulate,
    Replicate,
    Reply,
    TableKey,
    Verdict,
)

# From the specification
FLOW_KEY = slice(0, 12)  # destination and source MAC, as they stand in the frame
RESERVED_GROUP_LAST = 0x0F  # IEEE 802.1Q-2018 table 8-1: 01-80-C2-00-00-00 to -0F

# Ours
LIMITED_VERDICT_SECONDS = 10.0  # how long a verdict made under a limit is remembered


@dataclass(frozen=True, slots=True)
class BridgePolicy:
    """What the operator said of the network.

    Attributes:
        own_mac: The device's own address: from the tunnel it can only be a loop or a clone.
        learning: Whether a frame's source teaches the FDB.
        flood: Whether unknown unicast is replicated.
        suppress: Whether neighbor discovery is answered from what is known.
        fdb_max: How many MACs, and how many neighbors, the network may learn.
    """

    network: NetworkId
    own_mac: Mac
    learning: bool = True
    flood: bool = True
    suppress: bool = True
    fdb_max: int = 4096


class Bridge:
    """The decisions of one bridged network."""

    def __init__(self, policy: BridgePolicy, tables: Tables) -> None:
        self.policy = policy
        self._tables: NetworkTables = tables[policy.network]

    def egress(self, frame: bytes, *, now: float) -> Decision:
        """What becomes of a frame the device gave us."""
        try:
            ethernet = parse_ethernet_untrusted(frame)
        except WireError:
            return _malformed(frame)
        key = frame[FLOW_KEY]
        if _is_not_forwarded(ethernet.destination):
            return Decision(Drop(DropReason.LINK_LOCAL), key)

        source_key = fdb_key(self.policy.network, ethernet.source)
        source = self._tables.fdb.lookup(ethernet.source)
        if source is not None and source.origin is not Origin.LEARNED:
            return Decision(Drop(DropReason.SPOOFED_SOURCE), key, rests_on=(source_key,))
        discovery = self._discovery(ethernet, frame)
        changes: list[Change] = []
        if source is not None:  # it has come home: what was learned of it is over
            changes.append(FdbRemove(self.policy.network, ethernet.source))
        delta = _delta(changes)

        if discovery is not None and is_group(ethernet.destination):
            reply = self._suppress(discovery, ethernet, now=now)
            if reply is not None:
                return Decision(Reply(reply), key=None, delta=delta)
        verdict, looked_at = self._towards(ethernet.destination, source=ethernet.source)
        # Of neighbor discovery to a group only this one frame's verdict is known: the next asks for another.
        remembered = None if discovery is not None and is_group(ethernet.destination) else key
        return Decision(verdict, remembered, delta, rests_on=(source_key, *looked_at))

    def ingress(self, frame: bytes, vtep: VtepId, *, now: float) -> Decision:
        """What becomes of a frame that VTEP sent us.  The caller has checked that it is one of ours."""
        try:
            ethernet = parse_ethernet_untrusted(frame)
        except WireError:
            return _malformed(frame)
        key = frame[FLOW_KEY]
        if _is_not_forwarded(ethernet.destination):
            return Decision(Drop(DropReason.LINK_LOCAL), key)
        if ethernet.source == self.policy.own_mac:
            return Decision(Drop(DropReason.OWN_MAC), key)

        source_key = fdb_key(self.policy.network, ethernet.source)
        source = self._tables.fdb.lookup(ethernet.source)
        if source is not None and source.origin is not Origin.LEARNED and source.vtep != vtep:
            return Decision(Drop(DropReason.SPOOFED_SOURCE), key, rests_on=(source_key,))
        discovery = self._discovery(ethernet, frame)
        changes: list[Change] = []
        learning = self.policy.learning
        is_full = learning and source is None and len(self._tables.fdb) >= self.policy.fdb_max
        if is_full:
            changes.append(FdbRefuse(self.policy.network, ethernet.source))
        elif learning:
            changes.append(
                FdbReplace(self.policy.network, ethernet.source, vtep, Origin.LEARNED, seen_at=now)
            )
        changes.extend(self._snoop(discovery, now=now))

        destination_key = fdb_key(self.policy.network, ethernet.destination)
        verdict: Verdict = Deliver()
        is_to_itself = ethernet.destination == ethernet.source  # and so behind the tunnel, as it just told
        if is_to_itself or self._tables.fdb.lookup(ethernet.destination) is not None:
            verdict = Drop(DropReason.SPLIT_HORIZON)
        return Decision(
            verdict,
            key=None if discovery is not None and is_group(ethernet.destination) else key,
            delta=_delta(changes),
            rests_on=(source_key, destination_key),
            expires_at=now + LIMITED_VERDICT_SECONDS if is_full else None,
        )

    def too_big(self, frame: bytes, mtu: int) -> bytes | None:
        """The ICMP error for a frame whose packet is longer than `mtu` octets, or None: it gets none."""
        return build_too_big(frame, mtu=mtu, source_mac=self.policy.own_mac)

    def _towards(self, destination: Mac, *, source: Mac) -> tuple[Verdict, tuple[TableKey, ...]]:
        """Where a frame for that MAC leaves to, and what was looked up to know.

        Where a source was learned behind the tunnel is over with this frame, for itself as well.
        """
        looked_at: tuple[TableKey, ...] = ()
        is_unknown = False
        if not is_group(destination):
            looked_at = (fdb_key(self.policy.network, destination),)
            entry = self._tables.fdb.lookup(destination)
            if entry is not None and destination != source:
                return Encapsulate(entry.vtep), looked_at
            is_unknown = True
        if is_unknown and not self.policy.flood:
            return Drop(DropReason.UNKNOWN_UNICAST), looked_at
        looked_at = (*looked_at, flood_key(self.policy.network))
        if not self._tables.flood:
            return Drop(DropReason.NO_VTEP), looked_at
        return Replicate(EVERY_VTEP), looked_at

    def _discovery(self, ethernet: Ethernet, frame: bytes) -> Discovery | None:
        """The frame as neighbor discovery, if that matters here.

        What only looks like ARP or ND is carried like anything else: a bridge is not its addressee.
        """
        try:
            return read_discovery_untrusted(ethernet, frame) if self.policy.suppress else None
        except WireError:
            return None

    def _suppress(self, discovery: Discovery, ethernet: Ethernet, *, now: float) -> bytes | None:
        """The answer on the owner's behalf (RFC 9161 section 3.2), or None: the question is flooded.

        An owner that probes for itself gets none: it would take it for another's (RFC 4862 section 5.4.3).
        """
        if discovery.asks_for is None:
            return None
        owner = self._tables.neighbors.suppress(
            discovery.asks_for, is_probe=discovery.is_probe, fdb=self._tables.fdb, now=now
        )
        if owner is None or owner.mac == ethernet.source:
            return None
        return answer(discovery, ethernet, owner)

    def _snoop(self, discovery: Discovery | None, *, now: float) -> list[Change]:
        """What a neighbor discovery message from the tunnel teaches, within the network's bounds."""
        if discovery is None or discovery.tells is None or not self.policy.learning:
            return []
        address, mac = discovery.tells
        neighbors = self._tables.neighbors
        if neighbors.lookup(address) is None and len(neighbors) >= self.policy.fdb_max:
            return []
        return [NeighborReplace(self.policy.network, address, mac, Origin.LEARNED, now, discovery.is_router)]


def _malformed(frame: bytes) -> Decision:
    """No Ethernet frame at all.  A source that is no station is in the flow's key, and holds for it."""
    is_for_good = len(frame) >= FLOW_KEY.stop and not is_station(frame[6:12])
    return Decision(Drop(DropReason.INNER_MALFORMED), frame[FLOW_KEY] if is_for_good else None)


def _is_not_forwarded(destination: Mac) -> bool:
    """Whether a bridge keeps it to its link.  BPDUs are carried: nothing else guards against loops."""
    return (
        destination[:5] == RESERVED_GROUP_PREFIX
        and destination[5] <= RESERVED_GROUP_LAST
        and destination != BPDU_GROUP
    )


def _delta(changes: list[Change]) -> TableDelta | None:
    return TableDelta(tuple(changes)) if changes else None
