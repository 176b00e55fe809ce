"""An IPv4 packet, cut where its payload begins.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |   4   |  IHL  |      TOS      |         Total length          |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |        Identification         |0|D|M|    Fragment offset      |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |      TTL      |   Protocol    |       Header checksum         |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                            Source                             |
    |                          Destination                          |
    |                      Options, IHL − 5 words                   |

Heads up: read RFC 791 section 3.1 before changing this file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from overlay.checksum import Octets, checksum
from overlay.errors import MalformedError, TruncatedError

# From the specification
IPV4_LENGTH = 20  # octets, without options
IPV4_MIN_MTU = 68  # octets: what every link carries unfragmented (RFC 791 section 3.2)
PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
DONT_FRAGMENT = 0x4000
MORE_FRAGMENTS = 0x2000
FRAGMENT_OFFSET = 0x1FFF  # in units of eight octets

_Ipv4 = struct.Struct("!BBHHHBBH4s4s")


@dataclass(frozen=True, slots=True)
class Ipv4:
    """The header of a packet.  `fragment_offset` and the lengths are octets."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    ttl: int
    tos: int
    identification: int
    dont_fragment: bool
    more_fragments: bool
    fragment_offset: int
    header_length: int
    total_length: int

    @property
    def is_fragment(self) -> bool:
        """Whether the packet is part of a larger one."""
        return self.more_fragments or self.fragment_offset > 0

    def build(self) -> bytes:
        """The header with its checksum.

        Raises:
            ValueError: The header has options: their octets are not kept here.
        """
        if self.header_length != IPV4_LENGTH:
            raise ValueError(f"expected an IPv4 header of {IPV4_LENGTH} octets, found {self.header_length}")
        flags = (DONT_FRAGMENT if self.dont_fragment else 0) | (MORE_FRAGMENTS if self.more_fragments else 0)
        header = _Ipv4.pack(
            0x45,
            self.tos,
            self.total_length,
            self.identification,
            flags | self.fragment_offset // 8,
            self.ttl,
            self.protocol,
            0,
            self.source.packed,
            self.destination.packed,
        )
        return header[:10] + checksum(header).to_bytes(2, "big") + header[12:]


def parse_ipv4_untrusted(packet: Octets, *, verify: bool = True) -> Ipv4:
    """The header of the packet; what follows its total length is Ethernet padding.

    Args:
        verify: Whether a wrong header checksum is an error.

    Raises:
        TruncatedError: The octets end before the header or the packet does.
        MalformedError: Not version 4, lengths that contradict each other, a wrong checksum.
    """
    if len(packet) < IPV4_LENGTH:
        raise TruncatedError("IPv4 header", expected=IPV4_LENGTH, found=len(packet))
    version_ihl, tos, total, identification, fragment, ttl, protocol, _, source, destination = (
        _Ipv4.unpack_from(packet)
    )
    header_length = (version_ihl & 0x0F) * 4
    if version_ihl >> 4 != 4 or header_length < IPV4_LENGTH:
        raise MalformedError(
            f"IPv4 header: expected version 4 and at least 5 words, found {version_ihl:#04x}"
        )
    if total < header_length:
        raise MalformedError(f"IPv4 total length: expected at least {header_length} octets, found {total}")
    if total > len(packet):
        raise TruncatedError("IPv4 packet", expected=total, found=len(packet))
    if verify and checksum(packet[:header_length]) != 0:
        raise MalformedError("IPv4 header checksum: expected a sum of 0xffff, found another")
    return Ipv4(
        source=IPv4Address(source),
        destination=IPv4Address(destination),
        protocol=protocol,
        ttl=ttl,
        tos=tos,
        identification=identification,
        dont_fragment=bool(fragment & DONT_FRAGMENT),
        more_fragments=bool(fragment & MORE_FRAGMENTS),
        fragment_offset=(fragment & FRAGMENT_OFFSET) * 8,
        header_length=header_length,
        total_length=total,
    )
