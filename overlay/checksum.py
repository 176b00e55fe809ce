"""The Internet checksum: sums, pseudo-headers, and repair after a change.

The checksum of IPv4, ICMP, UDP and TCP is the complement of a ones-complement sum of 16-bit words
(RFC 1071).  Ones-complement addition of 16-bit words is addition modulo 65535, and 65536 is 1 modulo
65535: so the sum of all words *is* the whole buffer, read as one big integer, modulo 65535.  Python
does both steps in C, which makes this twenty times faster than any loop over words.

One corner remains.  Modulo 65535 zero has two faces, 0x0000 and 0xffff.  A sum of words is 0x0000
only when every word is zero: a carry that wraps around always leaves 0xffff.  Every function here
keeps to that, because UDP gives the two faces different meanings (RFC 768: 0 is "no checksum").

Heads up: read RFC 1071 sections 1 and 2, and RFC 1624 sections 3 and 4, before changing this file.
"""

from __future__ import annotations

from overlay.addr import IpAddress

Octets = bytes | bytearray | memoryview
"""What every codec here reads: a buffer of octets that can be sliced, owned by whoever passed it."""

# From the specification
WORD_MAX = 0xFFFF  # RFC 1071 section 1: 16-bit words


def fold(total: int) -> int:
    """A sum of words of any size, carries added back in until 16 bits remain."""
    return total % WORD_MAX or (WORD_MAX if total else 0)


def ones_complement_sum(octets: Octets) -> int:
    """The folded sum of the 16-bit words, an odd last octet padded with zero (RFC 1071 section 1)."""
    total = int.from_bytes(octets, "big")
    return fold(total << 8 if len(octets) & 1 else total)


def checksum(octets: Octets) -> int:
    """The checksum of octets whose own checksum field is zero; 0 over octets whose field is right."""
    return WORD_MAX - ones_complement_sum(octets)


def pseudo_header_sum(source: IpAddress, destination: IpAddress, protocol: int, length: int) -> int:
    """The folded sum of what TCP, UDP and ICMPv6 count besides their own octets.

    RFC 9293 section 3.1 for IPv4 and RFC 8200 section 8.1 for IPv6 draw different pseudo-headers with
    the same sum: two addresses, the protocol, and the transport length in octets.
    """
    return fold(int(source) + int(destination) + protocol + length)


def transport_checksum(source: IpAddress, destination: IpAddress, protocol: int, segment: Octets) -> int:
    """The checksum of a transport segment whose own checksum field is zero; 0 if it is filled and right.

    A UDP sender writes 0xffff where this is 0 (RFC 768).
    """
    pseudo = pseudo_header_sum(source, destination, protocol, len(segment))
    return WORD_MAX - fold(pseudo + ones_complement_sum(segment))


def update(checksum: int, old: int, new: int) -> int:
    """The checksum after one 16-bit word it covers went from `old` to `new`.

    Equation 3 of RFC 1624 section 3.  The older equation 2 (RFC 1141) can answer 0xffff where a full
    sum answers 0x0000, and a receiver comparing the two would drop a good packet (section 4).
    """
    return WORD_MAX - fold((WORD_MAX - checksum) + (WORD_MAX - old) + new)
