"""The routes of one network: in which subnet is this address, and behind which VTEP is that?

The longest prefix that holds an address wins (RFC 1812 section 5.2.4.3).  Subnets of nodes do not overlap,
so nearly always all are of one length, and a look-up is one mask and one dictionary for each length there
is, the longest first.

A subnet is also what an engine remembers a verdict under: `key_of` is the first half of its look-up, the
flow table the second.  Because the key is always asked of the routes as they are, a longer prefix that
appears or goes is obeyed by the next packet, whatever is remembered of the shorter one.

`Tables.apply` is the only caller of the methods that write.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from overlay.addr import IpAddress, VtepId
from overlay.fdb import Origin

KEY_LENGTH = 5  # octets of an IPv4 subnet's key
IpNetwork = IPv4Network | IPv6Network

NOWHERE = b"\x00\x00\x00\x00\xff"  # no prefix is that long
"""The key of every address that is in no subnet, as long as an IPv4 subnet's."""

_Levels = tuple[tuple[int, dict[int, bytes]], ...]
"""Bits to shift an address by → what is left of it → the subnet's key; the longest prefix first."""


@dataclass(frozen=True, slots=True)
class Route:
    """`subnet` is behind `vtep`, or, where that is None, behind our own device."""

    subnet: IpNetwork
    vtep: VtepId | None
    origin: Origin


def subnet_key(subnet: IpNetwork) -> bytes:
    """The subnet in 5 octets, or 17: its base, then its prefix length."""
    return subnet.network_address.packed + bytes((subnet.prefixlen,))


class RouteTable:
    """Subnet → route."""

    def __init__(self) -> None:
        self._routes: dict[bytes, Route] = {}
        self._levels: dict[int, _Levels] = {4: (), 6: ()}

    def __len__(self) -> int:
        return len(self._routes)

    def key_of(self, address: int, version: int = 4) -> bytes:
        """The key of the longest subnet that holds the address, NOWHERE where none does."""
        # HOT PATH: once per packet, and twice per packet received.
        for shift, subnets in self._levels[version]:
            key = subnets.get(address >> shift)
            if key is not None:
                return key
        return NOWHERE

    def route(self, key: bytes) -> Route | None:
        """The route of the subnet with this key."""
        return self._routes.get(key)

    def lookup(self, address: IpAddress) -> Route | None:
        """The route for the address."""
        return self._routes.get(self.key_of(int(address), address.version))

    def find(self, subnet: IpNetwork) -> Route | None:
        """The route of exactly this subnet."""
        return self._routes.get(subnet_key(subnet))

    def routes(self) -> Iterator[Route]:
        """Every route, in the order they came."""
        return iter(tuple(self._routes.values()))

    def behind(self, vtep: VtepId) -> tuple[IpNetwork, ...]:
        """The subnets behind a VTEP."""
        return tuple(route.subnet for route in self._routes.values() if route.vtep == vtep)

    def replace(self, route: Route) -> bool:
        """Has this route; whether that changed anything."""
        key = subnet_key(route.subnet)
        if self._routes.get(key) == route:
            return False
        self._routes[key] = route
        self._index(route.subnet.version)
        return True

    def remove(self, subnet: IpNetwork) -> bool:
        """Has it no more; whether it was there."""
        if self._routes.pop(subnet_key(subnet), None) is None:
            return False
        self._index(subnet.version)
        return True

    def _index(self, version: int) -> None:
        """Builds the levels anew: routes change some times an hour and are looked up at every packet."""
        levels: dict[int, dict[int, bytes]] = {}
        for key, route in self._routes.items():
            subnet = route.subnet
            if subnet.version == version:
                shift = subnet.max_prefixlen - subnet.prefixlen
                levels.setdefault(shift, {})[int(subnet.network_address) >> shift] = key
        self._levels[version] = tuple(sorted(levels.items()))
