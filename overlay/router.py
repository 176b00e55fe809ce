"""L3: where does this packet go?  The one place where that is decided for a routed network without frames.

Two questions, asked by an engine for each flow it does not remember, and answered with a verdict and the
flow's key.  The router changes nothing and, unlike a bridge, learns nothing: its routes are the operator's
or control's.

    egress     destination's subnet → behind a VTEP: encapsulate → ours, or none: no route
    ingress    source's subnet pinned elsewhere? → destination's behind the tunnel? (split horizon) → deliver

A flow is a subnet: whatever goes to one of its addresses goes one way.  What comes from a VTEP is remembered
by the subnets of both ends, for both are looked at.  Looking up the subnet is the engine's part of the key,
as cutting out two MAC addresses is for a bridge (`overlay.route`); so is what every packet needs done anew:
a sound header, a time to live counted down.  Where that fails the router words the error.

Flannel's own proxy believes any source; here a subnet is its VTEP's, as a pinned MAC address is.

Heads up: read RFC 1812 sections 4.3 and 5.2 before changing this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address

from overlay.addr import NetworkId, VtepId
from overlay.errors import WireError
from overlay.frame import Ipv4, parse_ipv4_untrusted
from overlay.icmp import build_fragmentation_needed, build_time_exceeded, build_unreachable
from overlay.route import Route
from overlay.tables import NetworkTables, Tables, route_key
from overlay.verdict import Decision, Deliver, Drop, DropReason, Encapsulate, TableKey, Verdict


@dataclass(frozen=True, slots=True)
class RouterPolicy:
    """What the operator said of the network.  `address` is our own on it: whom ICMP errors come from."""

    network: NetworkId
    address: IPv4Address


class Router:
    """The decisions of one routed network.

    Attributes:
        key_of: The subnet of an address, which flows are remembered by.
    """

    def __init__(self, policy: RouterPolicy, tables: Tables) -> None:
        self.policy = policy
        self._tables: NetworkTables = tables[policy.network]
        self.key_of: Callable[[int], bytes] = self._tables.routes.key_of

    def egress(self, packet: bytes, *, now: float) -> Decision:
        """What becomes of a packet the device gave us."""
        ip = _read(packet)
        if ip is None:
            return Decision(Drop(DropReason.INNER_MALFORMED), key=None)
        key, route = self._match(ip.destination)
        verdict: Verdict = Drop(DropReason.NO_ROUTE)
        if route is not None and route.vtep is not None:
            verdict = Encapsulate(route.vtep)
        return Decision(verdict, key, rests_on=self._rests_on(route))

    def ingress(self, packet: bytes, vtep: VtepId, *, now: float) -> Decision:
        """What becomes of a packet that VTEP sent us.  The caller has checked that it is one of ours."""
        ip = _read(packet)
        if ip is None:
            return Decision(Drop(DropReason.INNER_MALFORMED), key=None)
        source_key, source = self._match(ip.source)
        destination_key, destination = self._match(ip.destination)
        verdict: Verdict = Deliver()
        if source is not None and source.vtep != vtep:
            verdict = Drop(DropReason.SPOOFED_SOURCE)
        elif destination is not None and destination.vtep is not None:
            verdict = Drop(DropReason.SPLIT_HORIZON)
        return Decision(verdict, source_key + destination_key, rests_on=self._rests_on(source, destination))

    def too_big(self, packet: bytes, mtu: int) -> bytes | None:
        """The ICMP error for a packet longer than `mtu` octets, or None: it gets none."""
        return build_fragmentation_needed(packet, mtu=mtu, source_ip=self.policy.address)

    def unreachable(self, packet: bytes) -> bytes | None:
        """The ICMP error for a packet that is in no subnet, or None: it gets none."""
        return build_unreachable(packet, source_ip=self.policy.address)

    def expired(self, packet: bytes) -> bytes | None:
        """The ICMP error for a packet whose time to live is over, or None: it gets none."""
        return build_time_exceeded(packet, source_ip=self.policy.address)

    def _match(self, address: IPv4Address) -> tuple[bytes, Route | None]:
        key = self.key_of(int(address))
        return key, self._tables.routes.route(key)

    def _rests_on(self, *routes: Route | None) -> tuple[TableKey, ...]:
        """No place for "none": a route that appears there changes the key the next packet is looked up by."""
        return tuple(route_key(self.policy.network, route.subnet) for route in routes if route is not None)


def _read(packet: bytes) -> Ipv4 | None:
    try:
        return parse_ipv4_untrusted(packet)
    except WireError:
        return None
