"""Answers given on somebody's behalf: neighbor replies, "that packet is too big"; and a router's own errors.

A bridge has no address on the segment it carries, and still three frames must come from it:

    build_arp_reply                 the owner of the address is behind the tunnel and known
    build_neighbor_advertisement    the same, in IPv6's language
    build_too_big                   the packet does not fit the path to its VTEP

The last is a router's message (RFC 1191, RFC 8201), and its source ought to be a router's address.
There is none here, so the error speaks as the packet's own destination: the only address of which it
is certain that the sender accepts an error about it, since hosts match the quoted packet and not the
messenger.  Saying nothing instead is a black hole, and the sender's retransmissions fill it.

Each is a whole frame, tagged like the one it answers.  A router has an address of its own, and says as
itself, packet for packet:

    build_unreachable               the destination is in no subnet of the network
    build_time_exceeded             the packet has been too long on its way
    build_fragmentation_needed      it does not fit the path

What it costs to make them is bounded by the caller, who has a bucket for each kind.

Heads up: read RFC 1122 section 3.2.2, RFC 1191 section 4 and RFC 4443 sections 2.4 and 3.2 before
changing this file.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from overlay.addr import IpAddress, Mac, is_group
from overlay.checksum import Octets
from overlay.errors import WireError
from overlay.frame import (
    ALL_NODES,
    ARP_REPLY,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ICMP_ERRORS,
    ICMP_FRAGMENTATION_NEEDED,
    ICMP_NET_UNREACHABLE,
    ICMP_TIME_EXCEEDED,
    ICMP_UNREACHABLE,
    ICMPV6_INFORMATIONAL,
    ICMPV6_REDIRECT,
    ICMPV6_TOO_BIG,
    IPV4_LENGTH,
    IPV4_MIN_MTU,
    IPV6_LENGTH,
    IPV6_MIN_MTU,
    NEIGHBOR_HOP_LIMIT,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    Arp,
    Ethernet,
    Icmp,
    Ipv4,
    Ipv6,
    NeighborAdvertisement,
    NeighborSolicitation,
    build_icmp,
    build_icmpv6,
    parse_ethernet_untrusted,
    parse_ipv4_untrusted,
    parse_ipv6_untrusted,
)

# From the specification
ICMP_PACKET_MAX = 576  # octets of an ICMP error, IP header included (RFC 1812 section 4.3.2.3)
ICMPV6_PACKET_MAX = IPV6_MIN_MTU  # octets, likewise (RFC 4443 section 3.2)
INTERNETWORK_CONTROL = 0xC0  # TOS of an ICMP error (RFC 1812 section 4.3.2.5)
ALL_NODES_MAC = Mac(b"\x33\x33\x00\x00\x00\x01")  # RFC 2464 section 7

BROADCAST = IPv4Address("255.255.255.255")  # RFC 919 section 7

# Ours
ERROR_TTL = 64  # the recommended default of RFC 1700; the sender is on this segment anyway


def build_arp_reply(asked: Ethernet, request: Arp, mac: Mac) -> bytes:
    """The frame with which the owner of `mac` answers the request (RFC 826, "Packet reception")."""
    reply = Arp(ARP_REPLY, mac, request.target_ip, request.sender_mac, request.sender_ip)
    return asked.answer(mac, request.sender_mac) + reply.build()


def build_neighbor_advertisement(
    asked: Ethernet, solicitation: NeighborSolicitation, asker: IPv6Address, mac: Mac, *, router: bool = False
) -> bytes:
    """The frame with which the owner of `mac` answers the solicitation: solicited, and overriding.

    Args:
        asked: The solicitation's frame.
        asker: Its source address.
        router: Whether the owner forwards.  A false False makes the asker forget its default router
            (RFC 4861 section 7.2.5), so do not answer for a router without knowing that it is one.
    """
    # RFC 4861 section 7.2.4: whoever probes has no address yet, and is told in everybody's hearing.
    is_probe = asker.is_unspecified
    destination = ALL_NODES if is_probe else asker
    advertisement = NeighborAdvertisement(
        solicitation.target, mac, router=router, solicited=not is_probe, override=True
    )
    message = advertisement.build(source=solicitation.target, destination=destination)
    packet = _ipv6(solicitation.target, destination, message, hop_limit=NEIGHBOR_HOP_LIMIT)
    return asked.answer(mac, ALL_NODES_MAC if is_probe else solicitation.source_mac) + packet


def build_too_big(
    frame: Octets, *, mtu: int, source_mac: Mac | None = None, source_ip: IpAddress | None = None
) -> bytes | None:
    """The frame that tells the sender to send no packet above `mtu` octets, or None: it must not be told.

    Args:
        frame: The frame that does not fit, from anybody, however malformed.
        mtu: The longest packet (not frame) the path carries.
        source_mac: Who says so; without one the frame's destination does.
        source_ip: Our own address on that segment, of the packet's version; without one the packet's
            destination speaks (see the file's promise).
    """
    try:
        ethernet = parse_ethernet_untrusted(frame)
        packet = frame[ethernet.payload_at :]
        messenger = source_mac or ethernet.destination
        if is_group(messenger):
            return None
        if ethernet.ethertype == ETHERTYPE_IPV4 and not is_group(ethernet.destination):
            error = _fragmentation_needed(packet, mtu, source_ip)
        elif ethernet.ethertype == ETHERTYPE_IPV6:
            error = _packet_too_big(packet, mtu, source_ip)
        else:
            return None
    except WireError:
        return None
    return None if error is None else ethernet.answer(messenger) + error


def build_unreachable(packet: Octets, *, source_ip: IPv4Address) -> bytes | None:
    """Destination unreachable, network unreachable: the packet (RFC 792), or None: it must not be told."""
    return _routers_error(packet, Icmp(ICMP_UNREACHABLE, ICMP_NET_UNREACHABLE, 0), source_ip)


def build_time_exceeded(packet: Octets, *, source_ip: IPv4Address) -> bytes | None:
    """Time exceeded in transit: the packet (RFC 1812 section 5.3.1), or None: it must not be told."""
    return _routers_error(packet, Icmp(ICMP_TIME_EXCEEDED, 0, 0), source_ip)


def build_fragmentation_needed(packet: Octets, *, mtu: int, source_ip: IPv4Address) -> bytes | None:
    """Destination unreachable, fragmentation needed: the packet (RFC 1191), or None: it must not be told."""
    try:
        return _fragmentation_needed(packet, mtu, source_ip)
    except WireError:
        return None


def _routers_error(packet: Octets, icmp: Icmp, source_ip: IPv4Address) -> bytes | None:
    try:
        return _icmp_error(packet, parse_ipv4_untrusted(packet), icmp, source_ip)
    except WireError:
        return None


def _fragmentation_needed(packet: Octets, mtu: int, source_ip: IpAddress | None) -> bytes | None:
    """Destination unreachable, fragmentation needed and DF set: the packet (RFC 1191 section 4)."""
    ip = parse_ipv4_untrusted(packet)
    # Without DF the sender asked for fragments, not for an error; a bridge cannot give it either.
    if not ip.dont_fragment or ip.total_length <= mtu or mtu < IPV4_MIN_MTU:
        return None
    # RFC 1191 section 4: the next hop's MTU stands in the low half of the second word.
    icmp = Icmp(ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED, min(mtu, 0xFFFF))
    return _icmp_error(packet, ip, icmp, source_ip if isinstance(source_ip, IPv4Address) else ip.destination)


def _icmp_error(packet: Octets, ip: Ipv4, icmp: Icmp, source: IPv4Address) -> bytes | None:
    """The packet that says this of a packet, or None: nobody may be told."""
    # RFC 1122 section 3.2.2: never about an error, a later fragment, a group, or to no single host.
    is_to_group = ip.destination.is_multicast or ip.destination == BROADCAST
    if ip.fragment_offset > 0 or is_to_group or not _is_one_host(ip.source):
        return None
    kind = packet[ip.header_length] if ip.total_length > ip.header_length else 0
    if ip.protocol == PROTOCOL_ICMP and kind in ICMP_ERRORS:
        return None
    quote_length = min(ip.total_length, ICMP_PACKET_MAX - IPV4_LENGTH - 8)
    message = build_icmp(icmp.kind, icmp.code, icmp.rest, bytes(packet[:quote_length]))
    header = Ipv4(
        source=source,
        destination=ip.source,
        protocol=PROTOCOL_ICMP,
        ttl=ERROR_TTL,
        tos=INTERNETWORK_CONTROL,
        identification=0,  # RFC 6864 section 4.1: means nothing in an atomic datagram
        dont_fragment=True,
        more_fragments=False,
        fragment_offset=0,
        header_length=IPV4_LENGTH,
        total_length=IPV4_LENGTH + len(message),
    )
    return header.build() + message


def _packet_too_big(packet: Octets, mtu: int, source_ip: IpAddress | None) -> bytes | None:
    """Packet too big: the packet (RFC 4443 section 3.2)."""
    ip = parse_ipv6_untrusted(packet)
    # RFC 8201 section 4: a host ignores an MTU below 1280, so there is nothing to tell it.
    if ip.total_length <= mtu or mtu < IPV6_MIN_MTU:
        return None
    # RFC 4443 section 2.4 (e).  A multicast packet may have this error, but cannot be its source.
    source = source_ip if isinstance(source_ip, IPv6Address) else ip.destination
    if ip.source.is_unspecified or ip.source.is_multicast or source.is_multicast:
        return None
    if ip.upper_protocol == PROTOCOL_ICMPV6 and _may_be_icmpv6_error(packet, ip):
        return None
    quote = bytes(packet[: min(ip.total_length, ICMPV6_PACKET_MAX - IPV6_LENGTH - 8)])
    message = build_icmpv6(Icmp(ICMPV6_TOO_BIG, 0, mtu), quote, source=source, destination=ip.source)
    return _ipv6(source, ip.source, message, hop_limit=ERROR_TTL)


def _is_one_host(address: IPv4Address) -> bool:
    """Whether an error may be sent there.  Class E is reserved, and broadcast with it."""
    return not (address.is_unspecified or address.is_loopback or address.is_multicast or address.is_reserved)


def _may_be_icmpv6_error(packet: Octets, ip: Ipv6) -> bool:
    """Whether the packet is an error or a redirect, or hides in a fragment whether it is one."""
    if ip.fragment_offset > 0 or ip.upper_at >= ip.total_length:
        return True
    kind = packet[ip.upper_at]
    return kind < ICMPV6_INFORMATIONAL or kind == ICMPV6_REDIRECT


def _ipv6(source: IPv6Address, destination: IPv6Address, message: bytes, *, hop_limit: int) -> bytes:
    """An IPv6 packet around an ICMPv6 message."""
    header = Ipv6(
        source=source,
        destination=destination,
        traffic_class=0,
        flow_label=0,
        hop_limit=hop_limit,
        payload_length=len(message),
        upper_protocol=PROTOCOL_ICMPV6,
    )
    return header.build() + message
