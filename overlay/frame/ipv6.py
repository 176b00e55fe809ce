"""An IPv6 packet, cut where its upper-layer header begins.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |   6   | Traffic class |              Flow label               |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |        Payload length         |  Next header  |   Hop limit   |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                      Source, four words                       |
    |                    Destination, four words                    |
    |       Extension headers, each: next header, length, …         |

Between the fixed header and the upper layer stands a chain of extension headers, of any length a
stranger likes.  The walk along it stays inside the payload length and ends after eight of them.

Heads up: read RFC 8200 sections 3 and 4 before changing this file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from overlay.checksum import Octets
from overlay.errors import MalformedError, TruncatedError, UnsupportedError

# From the specification
IPV6_LENGTH = 40  # octets, without extension headers
IPV6_MIN_MTU = 1280  # octets: what every link carries (RFC 8200 section 5)
HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT = 44
AUTHENTICATION = 51  # RFC 4302 section 2.2: its length counts words of four octets, not eight
DESTINATION_OPTIONS = 60
# Those of RFC 8200 section 4.1, and mobility, HIP and Shim6 (RFC 6275, 7401, 5533).  Behind ESP nothing
# can be read: to us it is an upper layer.
EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS, 135, 139, 140})
PROTOCOL_ICMPV6 = 58

# Ours
EXTENSIONS_MAX = 8  # RFC 8200 section 4.1 lists seven in their order, destination options twice

_Ipv6 = struct.Struct("!IHBB16s16s")
_Extension = struct.Struct("!BBH")  # next header, length, and what a fragment header says
_MORE_FRAGMENTS = 0x0001
_FRAGMENT_OFFSET = 0xFFF8  # in octets as it stands: thirteen bits counting eights


@dataclass(frozen=True, slots=True)
class Ipv6:
    """The header of a packet and the end of its chain.

    Attributes:
        payload_length: Octets after the fixed header, extension headers included.
        upper_protocol: What the chain ends in.  In a later fragment: what its first fragment goes on with.
        upper_at: Where in the packet that begins.
        fragment_offset: Octets.
    """

    source: IPv6Address
    destination: IPv6Address
    traffic_class: int
    flow_label: int
    hop_limit: int
    payload_length: int
    upper_protocol: int
    upper_at: int = IPV6_LENGTH
    fragment_offset: int = 0
    more_fragments: bool = False

    @property
    def is_fragment(self) -> bool:
        """Whether the packet is part of a larger one."""
        return self.more_fragments or self.fragment_offset > 0

    @property
    def total_length(self) -> int:
        """Where in its octets the packet ends; what follows is Ethernet padding."""
        return IPV6_LENGTH + self.payload_length

    def build(self) -> bytes:
        """The fixed header.

        Raises:
            ValueError: The packet has extension headers: their octets are not kept here.
        """
        if self.upper_at != IPV6_LENGTH:
            raise ValueError(
                f"expected no IPv6 extension headers, found {self.upper_at - IPV6_LENGTH} octets"
            )
        return _Ipv6.pack(
            6 << 28 | self.traffic_class << 20 | self.flow_label,
            self.payload_length,
            self.upper_protocol,
            self.hop_limit,
            self.source.packed,
            self.destination.packed,
        )


def parse_ipv6_untrusted(packet: Octets) -> Ipv6:
    """The header of the packet, its extension headers walked.

    Raises:
        TruncatedError: The octets end before the packet, or the payload before its extension headers.
        MalformedError: Not version 6, or more than eight extension headers.
        UnsupportedError: A jumbogram (RFC 2675).
    """
    if len(packet) < IPV6_LENGTH:
        raise TruncatedError("IPv6 header", expected=IPV6_LENGTH, found=len(packet))
    first_word, payload_length, next_header, hop_limit, source, destination = _Ipv6.unpack_from(packet)
    if first_word >> 28 != 6:
        raise MalformedError(f"IPv6 header: expected version 6, found {first_word >> 28}")
    if payload_length == 0 and next_header == HOP_BY_HOP:
        raise UnsupportedError("IPv6 payload length: expected the packet's own, found 0 and a jumbo option")
    if IPV6_LENGTH + payload_length > len(packet):
        raise TruncatedError("IPv6 packet", expected=IPV6_LENGTH + payload_length, found=len(packet))
    upper_protocol, upper_at, fragment = _walk_extensions(packet, next_header, IPV6_LENGTH + payload_length)
    return Ipv6(
        source=IPv6Address(source),
        destination=IPv6Address(destination),
        traffic_class=first_word >> 20 & 0xFF,
        flow_label=first_word & 0xFFFFF,
        hop_limit=hop_limit,
        payload_length=payload_length,
        upper_protocol=upper_protocol,
        upper_at=upper_at,
        fragment_offset=fragment & _FRAGMENT_OFFSET,
        more_fragments=bool(fragment & _MORE_FRAGMENTS),
    )


def _walk_extensions(packet: Octets, protocol: int, end: int) -> tuple[int, int, int]:
    """The upper protocol, where it begins, and the fragment header's offset and flag (0: none)."""
    at = IPV6_LENGTH
    fragment = 0
    for _ in range(EXTENSIONS_MAX + 1):
        # RFC 8200 section 4.5: behind a later fragment's header stands the middle of something.
        if protocol not in EXTENSIONS or fragment & _FRAGMENT_OFFSET:
            return protocol, at, fragment
        if at + 8 > end:
            raise TruncatedError("IPv6 extension header", expected=at + 8, found=end)
        following, size, word = _Extension.unpack_from(packet, at)
        if protocol == FRAGMENT:
            fragment = word
            at += 8
        else:
            at += (size + 2) * 4 if protocol == AUTHENTICATION else (size + 1) * 8
        if at > end:
            raise TruncatedError("IPv6 extension header", expected=at, found=end)
        protocol = following
    raise MalformedError(f"IPv6 extension headers: expected at most {EXTENSIONS_MAX}, found more")
