"""Neighbor discovery, ARP and ND alike: who asks for whom, and what the asker says of itself.

ARP (RFC 826) and ND (RFC 4861) ask the same question in two languages.  Suppression and snooping need
only what both have, so a bridge reads either as one `Discovery` and never looks at the language again.

Only untagged frames are read.  Each VLAN has addresses of its own, and the neighbor table knows of no VLANs:
what one said would be the answer to another's question.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from overlay.addr import IpAddress, Mac, is_station
from overlay.checksum import Octets
from overlay.frame import (
    ARP_REQUEST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV6,
    IPV6_LENGTH,
    Arp,
    Ethernet,
    NeighborAdvertisement,
    NeighborSolicitation,
    parse_arp_untrusted,
    parse_ipv6_untrusted,
    parse_neighbor_untrusted,
)
from overlay.frame.ethernet import ETHERNET_LENGTH
from overlay.icmp import build_arp_reply, build_neighbor_advertisement
from overlay.neigh import NeighborEntry

# From the specification
ICMPV6 = 58  # RFC 4443 section 2.1
NEIGHBOR_TYPES = (135, 136)  # RFC 4861 sections 4.3 and 4.4

_ARP, _IPV6 = ETHERTYPE_ARP.to_bytes(2, "big"), ETHERTYPE_IPV6.to_bytes(2, "big")
_NEXT_HEADER_AT = ETHERNET_LENGTH + 6
_ND_AT = ETHERNET_LENGTH + IPV6_LENGTH


@dataclass(frozen=True, slots=True)
class Discovery:
    """One ARP or ND message.

    Attributes:
        asks_for: The address in question, or None: nobody is asked, this only tells.
        is_probe: Whether the asker tests an address it does not have yet (RFC 5227, RFC 4862).
        tells: The sender's own binding, or None where it has none to tell.  A solicitation tells none:
            only an advertisement says whether its sender is a router, and an answer on a router's behalf
            that denies it would cost the asker its default route (RFC 4861 section 7.2.5).
        is_router: What an advertisement says of its sender.
        message: The message itself, for the answer.
        asker: A solicitation's source address, for the answer.
    """

    asks_for: IpAddress | None
    is_probe: bool
    tells: tuple[IpAddress, Mac] | None
    message: Arp | NeighborSolicitation | NeighborAdvertisement
    is_router: bool = False
    asker: IPv6Address | None = None


def read_discovery_untrusted(ethernet: Ethernet, frame: bytes) -> Discovery | None:
    """The frame as neighbor discovery, or None where it is something else, or tagged.

    Raises:
        WireError: It announces itself as ARP or ND and is not well formed.
    """
    if ethernet.tagging:
        return None
    if ethernet.ethertype == ETHERTYPE_ARP:
        return _from_arp(parse_arp_untrusted(frame[ethernet.payload_at :]))
    if ethernet.ethertype == ETHERTYPE_IPV6:
        return _read_nd_untrusted(frame[ethernet.payload_at :])
    return None


def may_be_discovery_untrusted(frame: Octets) -> bool:
    """Whether a frame is worth reading as neighbor discovery: what an engine must ask about each time.

    ND behind extension headers is left out: nobody sends it, and what is not recognised here is carried as
    anything else is.
    """
    # HOT PATH: once for each frame to a group.
    ethertype = frame[12:14]
    if ethertype == _IPV6:
        return len(frame) > _ND_AT and frame[_NEXT_HEADER_AT] == ICMPV6 and frame[_ND_AT] in NEIGHBOR_TYPES
    return ethertype == _ARP


def answer(discovery: Discovery, ethernet: Ethernet, owner: NeighborEntry) -> bytes:
    """The frame with which the owner would answer."""
    if isinstance(discovery.message, Arp):
        return build_arp_reply(ethernet, discovery.message, owner.mac)
    if isinstance(discovery.message, NeighborSolicitation) and discovery.asker is not None:
        return build_neighbor_advertisement(
            ethernet, discovery.message, discovery.asker, owner.mac, router=owner.is_router
        )
    raise ValueError("expected a question, found a neighbor advertisement")


def _from_arp(arp: Arp) -> Discovery:
    is_probe = int(arp.sender_ip) == 0  # RFC 5227 section 2.1.1
    announces = arp.sender_ip == arp.target_ip  # RFC 5227 section 2.3: tells, asks nobody
    asks = arp.operation == ARP_REQUEST and not announces
    return Discovery(
        asks_for=arp.target_ip if asks else None,
        is_probe=is_probe,
        tells=_binding(arp.sender_ip, arp.sender_mac),
        message=arp,
    )


def _read_nd_untrusted(packet: bytes) -> Discovery | None:
    ip = parse_ipv6_untrusted(packet)
    if ip.upper_protocol != ICMPV6 or ip.fragment_offset or ip.more_fragments:
        return None  # RFC 6980: a fragmented ND message is no ND message
    message = packet[ip.upper_at : 40 + ip.payload_length]
    if not message or message[0] not in NEIGHBOR_TYPES:
        return None
    neighbor = parse_neighbor_untrusted(message, ip.source, ip.destination, ip.hop_limit)
    if isinstance(neighbor, NeighborAdvertisement):
        tells = _binding(neighbor.target, neighbor.target_mac) if neighbor.target_mac else None
        return Discovery(None, is_probe=False, tells=tells, message=neighbor, is_router=neighbor.router)
    is_probe = ip.source.is_unspecified  # RFC 4861 section 4.3: duplicate address detection
    return Discovery(neighbor.target, is_probe, tells=None, message=neighbor, asker=ip.source)


def _binding(address: IpAddress, mac: Mac) -> tuple[IpAddress, Mac] | None:
    """The pair, where it can be a host's: no unspecified or multicast address, no group or zero MAC."""
    if address.is_unspecified or address.is_multicast or not is_station(mac):
        return None
    return address, mac
