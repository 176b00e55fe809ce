"""Octets seen as frames: one module per header, all of them re-exported here.

    ethernet → arp
             → ipv4 → icmp, transport
             → ipv6 → icmp → neighbor
                    → transport

Each `parse_…_untrusted` reads the front of what it is given and answers a frozen value or raises a
`WireError`; the caller slices on at `payload_at`, `header_length` or `upper_at`.  Each `build` writes
what its parser reads.  These values are for decisions and for people: building one costs a few
hundred nanoseconds, so the path of a frame whose verdict is remembered builds none.
"""

from __future__ import annotations

from overlay.frame.arp import ARP_LENGTH, ARP_REPLY, ARP_REQUEST, Arp, parse_arp_untrusted
from overlay.frame.ethernet import (
    ETHERNET_LENGTH,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    TAG_LENGTH,
    TAG_TPIDS,
    Ethernet,
    parse_ethernet_untrusted,
)
from overlay.frame.icmp import (
    ICMP_ECHO_REPLY,
    ICMP_ECHO_REQUEST,
    ICMP_ERRORS,
    ICMP_FRAGMENTATION_NEEDED,
    ICMP_NET_UNREACHABLE,
    ICMP_TIME_EXCEEDED,
    ICMP_UNREACHABLE,
    ICMPV6_ECHO_REPLY,
    ICMPV6_ECHO_REQUEST,
    ICMPV6_INFORMATIONAL,
    ICMPV6_REDIRECT,
    ICMPV6_TOO_BIG,
    Icmp,
    build_icmp,
    build_icmpv6,
    parse_icmp_untrusted,
    parse_icmpv6_untrusted,
)
from overlay.frame.ipv4 import (
    IPV4_LENGTH,
    IPV4_MIN_MTU,
    PROTOCOL_ICMP,
    PROTOCOL_TCP,
    PROTOCOL_UDP,
    Ipv4,
    parse_ipv4_untrusted,
)
from overlay.frame.ipv6 import IPV6_LENGTH, IPV6_MIN_MTU, PROTOCOL_ICMPV6, Ipv6, parse_ipv6_untrusted
from overlay.frame.neighbor import (
    ALL_NODES,
    NEIGHBOR_ADVERTISEMENT,
    NEIGHBOR_HOP_LIMIT,
    NEIGHBOR_SOLICITATION,
    NeighborAdvertisement,
    NeighborSolicitation,
    parse_neighbor_untrusted,
)
from overlay.frame.transport import (
    TCP_ACK,
    TCP_FIN,
    TCP_LENGTH,
    TCP_PSH,
    TCP_RST,
    TCP_SYN,
    UDP_LENGTH,
    Tcp,
    Udp,
    parse_tcp_untrusted,
    parse_udp_untrusted,
)

__all__ = [
    "ALL_NODES",
    "ARP_LENGTH",
    "ARP_REPLY",
    "ARP_REQUEST",
    "ETHERNET_LENGTH",
    "ETHERTYPE_ARP",
    "ETHERTYPE_IPV4",
    "ETHERTYPE_IPV6",
    "ICMPV6_ECHO_REPLY",
    "ICMPV6_ECHO_REQUEST",
    "ICMPV6_INFORMATIONAL",
    "ICMPV6_REDIRECT",
    "ICMPV6_TOO_BIG",
    "ICMP_ECHO_REPLY",
    "ICMP_ECHO_REQUEST",
    "ICMP_ERRORS",
    "ICMP_FRAGMENTATION_NEEDED",
    "ICMP_NET_UNREACHABLE",
    "ICMP_TIME_EXCEEDED",
    "ICMP_UNREACHABLE",
    "IPV4_LENGTH",
    "IPV4_MIN_MTU",
    "IPV6_LENGTH",
    "IPV6_MIN_MTU",
    "NEIGHBOR_ADVERTISEMENT",
    "NEIGHBOR_HOP_LIMIT",
    "NEIGHBOR_SOLICITATION",
    "PROTOCOL_ICMP",
    "PROTOCOL_ICMPV6",
    "PROTOCOL_TCP",
    "PROTOCOL_UDP",
    "TAG_LENGTH",
    "TAG_TPIDS",
    "TCP_ACK",
    "TCP_FIN",
    "TCP_LENGTH",
    "TCP_PSH",
    "TCP_RST",
    "TCP_SYN",
    "UDP_LENGTH",
    "Arp",
    "Ethernet",
    "Icmp",
    "Ipv4",
    "Ipv6",
    "NeighborAdvertisement",
    "NeighborSolicitation",
    "Tcp",
    "Udp",
    "build_icmp",
    "build_icmpv6",
    "parse_arp_untrusted",
    "parse_ethernet_untrusted",
    "parse_icmp_untrusted",
    "parse_icmpv6_untrusted",
    "parse_ipv4_untrusted",
    "parse_ipv6_untrusted",
    "parse_neighbor_untrusted",
    "parse_tcp_untrusted",
    "parse_udp_untrusted",
]
