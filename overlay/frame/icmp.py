"""An ICMP or ICMPv6 message, cut behind the eight octets all of them share.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |     Type      |     Code      |           Checksum            |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |     Rest: identifier and sequence, next-hop MTU, MTU, flags   |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

Heads up: read RFC 792 and RFC 4443 section 2 before changing this file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address

from overlay.checksum import Octets, checksum, transport_checksum
from overlay.errors import MalformedError, TruncatedError
from overlay.frame.ipv6 import PROTOCOL_ICMPV6

# From the specification
ICMP_LENGTH = 8  # octets
ICMP_ECHO_REPLY = 0
ICMP_UNREACHABLE = 3
ICMP_NET_UNREACHABLE = 0  # the code of an unreachable
ICMP_FRAGMENTATION_NEEDED = 4  # the code of an unreachable
ICMP_ECHO_REQUEST = 8
ICMP_TIME_EXCEEDED = 11  # its code is 0: in transit
ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})  # RFC 1122 section 3.2.2
ICMPV6_TOO_BIG = 2
ICMPV6_ECHO_REQUEST = 128
ICMPV6_ECHO_REPLY = 129
ICMPV6_INFORMATIONAL = 128  # RFC 4443 section 2.1: types below it are errors
ICMPV6_REDIRECT = 137

_Icmp = struct.Struct("!BBHI")


@dataclass(frozen=True, slots=True)
class Icmp:
    """What kind of message it is.  `rest` is the second word, whose meaning the kind decides."""

    kind: int
    code: int
    rest: int


def parse_icmp_untrusted(message: Octets, *, verify: bool = True) -> Icmp:
    """The head of an ICMP message over IPv4.

    Args:
        message: The IPv4 payload, Ethernet padding cut off.
        verify: Whether a wrong checksum is an error; a quoted or fragmented message has one.

    Raises:
        TruncatedError: Fewer than eight octets.
        MalformedError: A wrong checksum.
    """
    icmp = _parse_head(message)
    if verify and checksum(message) != 0:
        raise MalformedError("ICMP checksum: expected a sum of 0xffff, found another")
    return icmp


def parse_icmpv6_untrusted(message: Octets, source: IPv6Address, destination: IPv6Address) -> Icmp:
    """The head of an ICMPv6 message; its checksum covers the addresses (RFC 4443 section 2.3).

    Raises:
        TruncatedError: Fewer than eight octets.
        MalformedError: A wrong checksum.
    """
    icmp = _parse_head(message)
    if transport_checksum(source, destination, PROTOCOL_ICMPV6, message) != 0:
        raise MalformedError("ICMPv6 checksum: expected a sum of 0xffff, found another")
    return icmp


def build_icmp(kind: int, code: int, rest: int, body: bytes) -> bytes:
    """An ICMP message over IPv4 with its checksum."""
    sum_ = checksum(_Icmp.pack(kind, code, 0, rest) + body)
    return _Icmp.pack(kind, code, sum_, rest) + body


def build_icmpv6(icmp: Icmp, body: bytes, *, source: IPv6Address, destination: IPv6Address) -> bytes:
    """An ICMPv6 message with its checksum."""
    unsummed = _Icmp.pack(icmp.kind, icmp.code, 0, icmp.rest) + body
    sum_ = transport_checksum(source, destination, PROTOCOL_ICMPV6, unsummed)
    return _Icmp.pack(icmp.kind, icmp.code, sum_, icmp.rest) + body


def _parse_head(message: Octets) -> Icmp:
    if len(message) < ICMP_LENGTH:
        raise TruncatedError("ICMP message", expected=ICMP_LENGTH, found=len(message))
    kind, code, _, rest = _Icmp.unpack_from(message)
    return Icmp(kind, code, rest)
