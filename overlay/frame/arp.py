"""ARP for IPv4 over Ethernet: who has this address?

     0               2               4       5       6               8
    +---------------+---------------+-------+-------+---------------+
    | hardware 1    | protocol 0800 |   6   |   4   |  operation    |
    +---------------+---------------+-------+-------+---------------+
    |  sender MAC (6)  |  sender IPv4 (4)  |  target MAC (6)  |  target IPv4 (4)  |
    +------------------+-------------------+------------------+-------------------+

Heads up: read RFC 826 before changing this file, and RFC 5227 for what a zero sender address means.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from overlay.addr import Mac
from overlay.checksum import Octets
from overlay.errors import TruncatedError, UnsupportedError
from overlay.frame.ethernet import ETHERTYPE_IPV4

# From the specification
ARP_LENGTH = 28  # octets, for Ethernet and IPv4 (RFC 826, "Packet format")
ARP_REQUEST = 1
ARP_REPLY = 2
HARDWARE_ETHERNET = 1

_Arp = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET_AND_IPV4 = (HARDWARE_ETHERNET, ETHERTYPE_IPV4, 6, 4)


@dataclass(frozen=True, slots=True)
class Arp:
    """An ARP packet.  A request's `target_mac` means nothing (RFC 826); a probe's `sender_ip` is zero."""

    operation: int
    sender_mac: Mac
    sender_ip: IPv4Address
    target_mac: Mac
    target_ip: IPv4Address

    def build(self) -> bytes:
        """The packet as on the wire, 28 octets."""
        return _Arp.pack(
            *_ETHERNET_AND_IPV4,
            self.operation,
            self.sender_mac,
            self.sender_ip.packed,
            self.target_mac,
            self.target_ip.packed,
        )


def parse_arp_untrusted(packet: Octets) -> Arp:
    """The ARP packet; what follows its 28 octets is Ethernet padding.

    Raises:
        TruncatedError: Fewer than 28 octets.
        UnsupportedError: Not Ethernet and IPv4.
    """
    if len(packet) < ARP_LENGTH:
        raise TruncatedError("ARP packet", expected=ARP_LENGTH, found=len(packet))
    *kinds, operation, sender_mac, sender_ip, target_mac, target_ip = _Arp.unpack_from(packet)
    if tuple(kinds) != _ETHERNET_AND_IPV4:
        raise UnsupportedError(f"ARP packet: expected Ethernet and IPv4 {_ETHERNET_AND_IPV4}, found {kinds}")
    return Arp(operation, Mac(sender_mac), IPv4Address(sender_ip), Mac(target_mac), IPv4Address(target_ip))
