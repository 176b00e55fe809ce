"""Flannel's UDP format: an IPv4 packet, and nothing before it.

    VXLAN        [ IP  UDP 4789 ][ VXLAN 8 ][ Ethernet 14 ][ IPv4 packet ]
    Flannel-UDP  [ IP  UDP 8285 ]                          [ IPv4 packet ]

No header, so no VNI, no version and no authentication: the port says which network it is, the sender's
address which VTEP.  Both ports are 8285, for Flannel's proxy sends from the socket it receives on.

Each end is a router and takes one off the time to live, so a crossing costs two.  Flannel's proxy drops
in silence what has none left; its answer to the sender is the router's here.

**A frame all the same.**  Everything that cuts, merges and mends super-frames reads Ethernet frames.  So
inside the engine a packet wears an Ethernet header of zeros with IPv4's EtherType: it is put on where a
packet is read and taken off where it is sent or written.  The ten octets a TUN's packets wear (see
`tunnel.offload`) count from the IP header, and are shifted by as much.

Heads up: read RFC 1624 sections 3 and 4 and RFC 1812 section 5.2.2 before changing this file.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from overlay.verdict import DropReason
from tunnel.offload import ETHERNET_LENGTH, PLAIN
from tunnel.sums import WORD_MAX

# From the specification
IPV4_LENGTH = 20  # octets, without options
TTL_AT = 8
CHECKSUM_AT = 10

# Ours
ETHERNET = bytes(12) + b"\x08\x00"
"""What a packet wears inside the engine: it is IPv4, and of no two stations."""

_Header = struct.Struct("!BxH4xBxH")  # version and IHL, total length, TTL, checksum
_Checksum = struct.Struct("!H")
_Vnet = struct.Struct("=BBHHHH")


def forward_untrusted(frame: memoryview) -> int | DropReason:
    """Takes one off the time to live of a packet, in place; its length as a frame, or why it goes nowhere.

    The header is looked at first, as every router does (RFC 1812 section 5.2.2).  Options are carried as
    they are.  Octets behind the packet's own length are no part of it.

    Args:
        frame: The packet behind `ETHERNET`.
    """
    # HOT PATH: once per packet, whichever way.
    octets = len(frame) - ETHERNET_LENGTH
    if octets < IPV4_LENGTH:
        return DropReason.TRUNCATED
    version, total, ttl, checksum = _Header.unpack_from(frame, ETHERNET_LENGTH)
    length = (version & 0x0F) * 4
    if version >> 4 != 4 or not IPV4_LENGTH <= length <= total:
        return DropReason.INNER_MALFORMED
    if total > octets:
        return DropReason.TRUNCATED  # a proxy whose buffer is its MTU has cut it
    # All words together are 0xffff modulo 65535 (RFC 1071); they are never 0, since the version is not.
    if int.from_bytes(frame[ETHERNET_LENGTH : ETHERNET_LENGTH + length], "big") % WORD_MAX:
        return DropReason.INNER_MALFORMED
    if ttl <= 1:
        return DropReason.TTL_EXPIRED
    # RFC 1624 equation 3, HC' = ~(~HC + ~m + m') with m' = m - 0x0100, is HC + 0x0100 modulo 65535, where of
    # the two faces of zero the right one is 0: the sum of a header is never 0.
    frame[ETHERNET_LENGTH + TTL_AT] = ttl - 1
    _Checksum.pack_into(frame, ETHERNET_LENGTH + CHECKSUM_AT, (checksum + 0x0100) % WORD_MAX)
    return ETHERNET_LENGTH + int(total)


@lru_cache(maxsize=1024)
def with_ethernet(header: bytes) -> bytes:
    """The `virtio_net_hdr` a TUN gave, its offsets counted from the Ethernet header we have put before."""
    return _shifted(header, ETHERNET_LENGTH)


@lru_cache(maxsize=1024)
def without_ethernet(header: bytes) -> bytes:
    """The `virtio_net_hdr` for a frame, its offsets counted as a TUN takes them."""
    return _shifted(header, -ETHERNET_LENGTH)


def _shifted(header: bytes, octets: int) -> bytes:
    if header == PLAIN:
        return header
    flags, gso_type, header_length, gso_size, checksum_start, checksum_offset = _Vnet.unpack(header)
    shifted = max(header_length + octets, 0), max(checksum_start + octets, 0)
    return _Vnet.pack(
        flags, gso_type, min(shifted[0], 0xFFFF), gso_size, min(shifted[1], 0xFFFF), checksum_offset
    )
