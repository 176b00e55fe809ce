"""The flow hash: which of the outer source ports a frame's flow leaves from.

All frames of a flow take one port and stay in order; different flows take different ports, so that
ECMP routes, NIC queues and the peer's sockets share the work.  RFC 7348 section 5 asks for this, and
leaves the hash open.

    IPv4, IPv6      addresses, protocol, and the ports of TCP, UDP, SCTP, DCCP or UDP-Lite
    a fragment      addresses and protocol: only the first one has ports, and all must go one way
    anything else   MAC addresses and EtherType

The hash is CRC-32 (IEEE 802.3), because every language has it and it is the same tomorrow: Python's
own `hash` is salted anew in each process.  It is no defence: who chooses ports chooses a socket.

Heads up: the offsets are those drawn in overlay/frame/.
"""

from __future__ import annotations

from zlib import crc32

from tunnel.interfaces import Buffer

# From the specification
TAG_TPIDS = (b"\x81\x00", b"\x88\xa8")  # IEEE 802.1Q-2018 table 9-1
IPV4 = b"\x08\x00"
IPV6 = b"\x86\xdd"
WITH_PORTS = frozenset({6, 17, 33, 132, 136})  # TCP, UDP, DCCP, SCTP, UDP-Lite: ports come first in all
IPV6_FRAGMENT = 44  # RFC 8200 section 4.5
# RFC 8200 section 4.1, RFC 4302: hop-by-hop, routing, authentication, destination options.
IPV6_EXTENSIONS = frozenset({0, 43, 51, 60})
AUTHENTICATION = 51  # its length counts fours, not eights

# Ours
TAGS_MAX = 8
EXTENSIONS_MAX = 8


def flow_hash_untrusted(frame: Buffer) -> int:
    """32 bits, the same for every frame of a flow.  Any octets have one, malformed ones too."""
    # HOT PATH: once per frame sent.  In IPv4 without options the addresses and the ports are twelve
    # neighbouring octets, and one CRC over them is all there is to do.
    if len(frame) >= 38 and frame[12:14] == IPV4 and frame[14] == 0x45:
        protocol = frame[23]
        if protocol in WITH_PORTS and not (frame[20] & 0x3F or frame[21]):
            return crc32(frame[26:38], protocol)
        return crc32(frame[26:34], protocol)
    return _any_flow_hash(frame)


def _any_flow_hash(frame: Buffer) -> int:
    at = 12
    for _ in range(TAGS_MAX):
        if frame[at : at + 2] not in TAG_TPIDS:
            break
        at += 4
    ethertype = frame[at : at + 2]
    at += 2
    if ethertype == IPV4 and len(frame) >= at + 20:
        return _ipv4_hash(frame, at)
    if ethertype == IPV6 and len(frame) >= at + 40:
        return _ipv6_hash(frame, at)
    return crc32(ethertype, crc32(frame[:12]))


def _ipv4_hash(frame: Buffer, at: int) -> int:
    protocol = frame[at + 9]
    addresses = crc32(frame[at + 12 : at + 20], protocol)
    is_fragment = frame[at + 6] & 0x3F or frame[at + 7]  # RFC 791 section 3.1: MF, or an offset
    if protocol not in WITH_PORTS or is_fragment:
        return addresses
    transport_at = at + (frame[at] & 0x0F) * 4
    return crc32(frame[transport_at : transport_at + 4], addresses)


def _ipv6_hash(frame: Buffer, at: int) -> int:
    protocol, transport_at = frame[at + 6], at + 40
    for _ in range(EXTENSIONS_MAX):
        if protocol not in IPV6_EXTENSIONS or len(frame) < transport_at + 8:
            break
        unit, unwritten = (4, 2) if protocol == AUTHENTICATION else (8, 1)
        protocol, transport_at = (
            frame[transport_at],
            transport_at + (frame[transport_at + 1] + unwritten) * unit,
        )
    if protocol == IPV6_FRAGMENT and len(frame) >= transport_at + 8:
        # Every fragment names the same protocol here (RFC 8200 section 4.5), even one with no ports in it.
        return crc32(frame[at + 8 : at + 40], frame[transport_at])
    addresses = crc32(frame[at + 8 : at + 40], protocol)
    return crc32(frame[transport_at : transport_at + 4], addresses) if protocol in WITH_PORTS else addresses
