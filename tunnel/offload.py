"""Super-frames and unfinished checksums: what to write before a frame, so that the host mends it.

A frame read from or written to our TAP wears the ten octets that drivers and hypervisors agreed on:

     0        1        2                 4                 6                 8                 10
    +--------+--------+-----------------+-----------------+-----------------+-----------------+------
    | flags  |gso_type|     hdr_len     |    gso_size     |   csum_start    |   csum_offset   | frame
    +--------+--------+-----------------+-----------------+-----------------+-----------------+------
                         headers' octets  of one segment    where the sum     where it goes,
                                                            begins            from csum_start

All of them native-endian, all offsets from the frame's first octet.  Ten zeros mean: as it stands.

**Repair.**  A kernel VXLAN peer on the far side of a veth hands us frames its network card was to
finish, and there was no card: the TCP or UDP checksum holds only the pseudo-header's sum, and what
arrives may be sixty-four kilobytes that were to be cut.  Written plain, the host drops every one of
them.  Nothing in the datagram tells; the checksum field does.  Where it *equals* the folded
pseudo-header sum, the frame is unfinished, and the header asks the host to finish it.  A finished one
looks the same once in 65536 times, harmlessly: the host then computes the checksum it already has.

A super-frame needs its segment size as well.  For UDP, whose segment borders are messages, only the
socket knows it (`UDP_GRO`).  For TCP any size is right that fits the way behind the device: too large
is a black hole behind a smaller link, too small is merely safe, so a guess is kept small.

Heads up: read VIRTIO 1.2 section 5.1.6 and RFC 9293 section 3.7.1 before changing this file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from overlay.errors import TruncatedError
from overlay.verdict import DropReason
from tunnel.interfaces import Buffer

# From the specification (VIRTIO 1.2 section 5.1.6, linux/virtio_net.h)
VNET_HEADER_LENGTH = 10  # octets; longer forms append to it
PLAIN = bytes(VNET_HEADER_LENGTH)  # nothing to finish, nothing to cut
NEEDS_CSUM = 1  # flags: the checksum field holds the pseudo-header's sum, finish it
DATA_VALID = 2  # flags.  QUIRK(linux): ignored on a TAP write, the host verifies all the same
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5  # Linux 6.2 and later, on a TAP
GSO_ECN = 0x80  # beside a TCP type: the segment carries CWR
ETHERNET_LENGTH = 14
FRAME_LENGTH_MIN = 60  # octets to which senders pad (IEEE 802.3-2018 section 4.4.2, less the check sequence)
TCP, UDP = 6, 17
TCP_LENGTH, UDP_LENGTH = 20, 8
TCP_CHECKSUM, UDP_CHECKSUM = 16, 6  # where in their headers
SYN, CWR = 0x02, 0x80
IPV4, IPV6 = 0x0800, 0x86DD
TAG_TPIDS = frozenset({0x8100, 0x88A8})
IPV6_OPTIONS = frozenset({0, 60})  # hop-by-hop, destination: the two that leave the pseudo-header alone

# Ours
SEGMENTS_MAX = 64  # UDP_MAX_SEGMENTS before Linux 6.9, and a bound on what one datagram can make us write
GUESS_MTU = 1280  # every IPv6 link carries it (RFC 8200 section 5), and in practice every IPv4 one
TAGS_MAX = 8
IPV6_OPTIONS_MAX = 3  # hop-by-hop and twice destination (RFC 8200 section 4.1)

_Vnet = struct.Struct("=BBHHHH")
_EtherType = struct.Struct("!H")
_Ipv4 = struct.Struct("!BxH2xHxB2xII")
_Tcp = struct.Struct("!12xBB2xH")  # data offset, flags, checksum
_Udp = struct.Struct("!4xHH")  # length, checksum
# A frame that is Ethernet, IPv4 without options, TCP or UDP: EtherType, version and IHL, total length,
# fragment, protocol, source, destination, UDP's length and checksum, TCP's data offset, flags, checksum.
_Common = struct.Struct("!12xHBxH2xHxB2xII4xHH4xBB2xH")
COMMON_LENGTH = ETHERNET_LENGTH + 20 + TCP_LENGTH  # octets of a frame that has all of these
# The same for IPv6: payload length, next header, the addresses as four words, UDP's and TCP's checksum.
_Common6 = struct.Struct("!18xHBx4Q6xH8xH")
_COMMON6_LENGTH = ETHERNET_LENGTH + 40 + TCP_LENGTH
_COMMON_L4_AT = ETHERNET_LENGTH + 20
_FRAGMENT = 0x3FFF  # more fragments, or an offset (RFC 791 section 3.1)


@dataclass(frozen=True, slots=True)
class VnetHeader:
    """A `virtio_net_hdr`.  The lengths and offsets are octets from the frame's first."""

    flags: int = 0
    gso_type: int = GSO_NONE
    header_length: int = 0
    gso_size: int = 0
    checksum_start: int = 0
    checksum_offset: int = 0

    def build(self) -> bytes:
        """The ten octets."""
        return _Vnet.pack(
            self.flags,
            self.gso_type,
            self.header_length,
            self.gso_size,
            self.checksum_start,
            self.checksum_offset,
        )


def parse_vnet_header_untrusted(octets: Buffer) -> VnetHeader:
    """The header before a frame.

    Raises:
        TruncatedError: Fewer than ten octets.
    """
    if len(octets) < VNET_HEADER_LENGTH:
        raise TruncatedError("virtio_net_hdr", expected=VNET_HEADER_LENGTH, found=len(octets))
    return VnetHeader(*_Vnet.unpack_from(octets))


@lru_cache(maxsize=1024)
def _finish(l4_at: int, checksum_offset: int) -> bytes:
    """The header that asks for a checksum and nothing more.

    The header length is the least the kernel would raise it to.  It only says what the kernel must keep
    in one piece, and a frame below a page it keeps in one piece anyway.
    """
    return VnetHeader(
        flags=NEEDS_CSUM,
        header_length=l4_at + checksum_offset + 2,
        checksum_start=l4_at,
        checksum_offset=checksum_offset,
    ).build()


@lru_cache(maxsize=4096)
def _cut_tcp(
    shape: tuple[int, int, int, int], cwr: int, payload: int, limits: tuple[int, int | None, int | None]
) -> bytes:
    """The header that asks for a TCP checksum and, for more payload than a segment holds, for segments.

    HOT PATH: a bulk transfer asks again and again for the same.

    Args:
        shape: IP version, where IP and TCP begin, octets of TCP header.
        cwr: The TCP flag; not 0: it is set.
        limits: As `repair_untrusted` has them: overlay MTU, segment size, MSS.
    """
    version, network_at, l4_at, tcp_length = shape
    overlay_mtu, segment_size, mss = limits
    if segment_size is None:
        segment_size = min(overlay_mtu, GUESS_MTU) - (l4_at - network_at + tcp_length)
        if mss is not None:  # RFC 9293 section 3.7.1: an MSS does not count TCP's options, a segment does
            segment_size = min(segment_size, mss - (tcp_length - TCP_LENGTH))
    # A stranger's SYN may ask for segments of one octet, and one datagram would become 65 000 frames.
    segment_size = max(segment_size, -(-payload // SEGMENTS_MAX))
    header_length = l4_at + tcp_length
    if header_length + payload <= overlay_mtu + network_at or payload <= segment_size:
        return _finish(l4_at, TCP_CHECKSUM)
    gso_type = GSO_TCPV4 if version == 4 else GSO_TCPV6
    return VnetHeader(
        flags=NEEDS_CSUM,
        gso_type=gso_type | GSO_ECN if cwr else gso_type,
        header_length=header_length,
        gso_size=segment_size,
        checksum_start=l4_at,
        checksum_offset=TCP_CHECKSUM,
    ).build()


_FINISH_COMMON_TCP = _finish(_COMMON_L4_AT, TCP_CHECKSUM)
_FINISH_COMMON_UDP = _finish(_COMMON_L4_AT, UDP_CHECKSUM)


def repair_untrusted(
    frame: Buffer, *, overlay_mtu: int, segment_size: int | None = None, mss: int | None = None
) -> bytes | DropReason:
    """The ten octets to write before a received frame, or why it is not written.

    Args:
        frame: An inner frame, from a VTEP of ours and otherwise from anybody.
        overlay_mtu: Of the device it is for.
        segment_size: The `UDP_GRO` value of the datagram it filled; None without one.
        mss: The smallest segment its flow's receiver is known to need (`syn_mss_untrusted` of the other
            direction, or a packet-too-big seen); None: unknown.
    """
    # HOT PATH: once per frame received, so one unpack and no object.  The pseudo-header's sum is taken in
    # words of any size, for 2**32 and 2**64 are 1 modulo 65535: where it differs from the field, the frame is
    # finished and nothing else about it matters.
    length = len(frame)
    if length < COMMON_LENGTH:
        return _repair(frame, overlay_mtu, segment_size, mss)
    ethertype, version, total, fragment, protocol, src, dst, udp_length, udp, offset, flags, tcp = (
        _Common.unpack_from(frame)
    )
    is_oversized = length > overlay_mtu + ETHERNET_LENGTH
    if ethertype != IPV4 or version != 0x45:
        if ethertype == IPV6 and not is_oversized and _is_finished_ipv6(frame, length):
            return PLAIN
        return _repair(frame, overlay_mtu, segment_size, mss)
    if is_oversized:
        if protocol != TCP or fragment & _FRAGMENT or total + ETHERNET_LENGTH != length:
            return _repair(frame, overlay_mtu, segment_size, mss)
        tcp_length = (offset >> 4) * 4
        if not TCP_LENGTH <= tcp_length <= total - 20:
            return DropReason.INNER_MALFORMED
        if not tcp or (src + dst + TCP + total - 20 - tcp) % 0xFFFF:
            return PLAIN
        shape = (4, ETHERNET_LENGTH, _COMMON_L4_AT, tcp_length)
        return _cut_tcp(shape, flags & CWR, total - 20 - tcp_length, (overlay_mtu, segment_size, mss))
    field = tcp if protocol == TCP else udp
    if (src + dst + protocol + total - 20 - field) % 0xFFFF:
        return PLAIN
    if segment_size is not None or fragment & _FRAGMENT or total + ETHERNET_LENGTH != length or not field:
        return _repair(frame, overlay_mtu, segment_size, mss)
    if protocol == TCP:
        return _FINISH_COMMON_TCP if 20 <= (offset >> 4) * 4 <= total - 20 else PLAIN
    return _FINISH_COMMON_UDP if protocol == UDP and udp_length == total - 20 else PLAIN


def _is_finished_ipv6(frame: Buffer, length: int) -> bool:
    """Whether the checksum field of a frame without extension headers is no pseudo-header sum."""
    if length < _COMMON6_LENGTH:
        return False
    payload_length, protocol, a, b, c, d, udp, tcp = _Common6.unpack_from(frame)
    if protocol == TCP:
        return bool((a + b + c + d + TCP + payload_length - tcp) % 0xFFFF)
    return protocol == UDP and bool((a + b + c + d + UDP + payload_length - udp) % 0xFFFF)


def is_super_frame_untrusted(frame: Buffer) -> bool:
    """Whether what came with a `UDP_GRO` value is one super-frame, and no run of datagrams.

    A kernel VXLAN node on the same host hands its inner UDP bursts over whole, with a value; so does the
    kernel a run it has joined.  The inner length tells them apart: a super-frame's IP packet ends where what
    was read does, the first of a run's does not.  Who writes that length may lie: the caller looks whether a
    further datagram begins where the second of a run would.
    """
    at, length = ETHERNET_LENGTH, len(frame)
    for _ in range(TAGS_MAX):
        if length < at or int.from_bytes(frame[at - 2 : at]) not in TAG_TPIDS:
            break
        at += 4
    if length < at + 6:
        return False
    ethertype = int.from_bytes(frame[at - 2 : at])
    if ethertype == IPV4:
        return at + int.from_bytes(frame[at + 2 : at + 4]) == length
    return ethertype == IPV6 and at + 40 + int.from_bytes(frame[at + 4 : at + 6]) == length


def syn_mss_untrusted(frame: Buffer) -> int | None:
    """The MSS a SYN announces, None for any other frame.

    It is the largest segment the SYN's *sender* accepts: it bounds the flow's other direction.
    """
    # HOT PATH: asked of every frame of a new flow; nearly all of them are no SYN and say so in one octet.
    if len(frame) < COMMON_LENGTH:
        return None
    is_common = frame[12] == 0x08 and frame[13] == 0 and frame[14] == 0x45  # IPv4 without options
    if is_common and (frame[23] != TCP or not frame[47] & SYN):
        return None
    packet = _dissect(frame)
    if packet is None or packet.protocol != TCP or packet.l4_at + TCP_LENGTH > packet.end:
        return None
    offset, flags, _ = _Tcp.unpack_from(frame, packet.l4_at)
    options_end = packet.l4_at + (offset >> 4) * 4
    if not flags & SYN or options_end > packet.end:
        return None
    return _mss_option(bytes(frame[packet.l4_at + TCP_LENGTH : options_end]))


class _Packet(NamedTuple):
    """Where things are in an inner frame.

    `protocol` is 0 in an IPv4 fragment, and an extension header's number where the walk ended at one.
    `addresses` is a number that is the sum of the source and destination words modulo 65535.
    """

    version: int
    protocol: int
    network_at: int
    l4_at: int
    end: int
    addresses: int

    @property
    def l4_length(self) -> int:
        return self.end - self.l4_at

    def is_unfinished(self, field: int) -> bool:
        """Whether the checksum field holds the folded pseudo-header sum.

        That sum is never zero (its protocol is not), so it folds to 0xffff and not to 0: a UDP field of 0
        says "no checksum" (RFC 768).
        """
        return field == ((self.addresses + self.protocol + self.l4_length) % 0xFFFF or 0xFFFF)


_NO_PACKET = _Packet(version=0, protocol=0, network_at=0, l4_at=0, end=0, addresses=0)


def _repair(frame: Buffer, overlay_mtu: int, segment_size: int | None, mss: int | None) -> bytes | DropReason:
    """The same as `repair_untrusted` for any frame: tags, options, IPv6, super-frames."""
    length = len(frame)
    packet = _dissect(frame)
    if packet is _NO_PACKET:
        return PLAIN
    if packet is None or not _fills(packet, length):
        # Not ours to judge while it is a frame like any other; its receiver will.  A super-frame is ours:
        # nobody sends one, unless its inner length says so.
        is_oversized = length > overlay_mtu + (ETHERNET_LENGTH if packet is None else packet.network_at)
        return DropReason.INNER_MALFORMED if is_oversized else PLAIN
    if packet.protocol == TCP:
        return _repair_tcp(frame, packet, overlay_mtu, segment_size, mss)
    if packet.protocol == UDP:
        return _repair_udp(frame, packet, overlay_mtu, segment_size)
    return PLAIN


def _repair_tcp(
    frame: Buffer, packet: _Packet, overlay_mtu: int, segment_size: int | None, mss: int | None
) -> bytes | DropReason:
    is_oversized = packet.end > overlay_mtu + packet.network_at
    malformed = DropReason.INNER_MALFORMED if is_oversized else PLAIN
    if packet.l4_length < TCP_LENGTH:
        return malformed
    offset, flags, field = _Tcp.unpack_from(frame, packet.l4_at)
    tcp_length = (offset >> 4) * 4
    if not TCP_LENGTH <= tcp_length <= packet.l4_length:
        return malformed
    if not packet.is_unfinished(field):
        return PLAIN
    shape = (packet.version, packet.network_at, packet.l4_at, tcp_length)
    payload = packet.l4_length - tcp_length
    return _cut_tcp(shape, flags & CWR, payload, (overlay_mtu, segment_size, mss))


def _repair_udp(
    frame: Buffer, packet: _Packet, overlay_mtu: int, segment_size: int | None
) -> bytes | DropReason:
    is_oversized = packet.end > overlay_mtu + packet.network_at
    malformed = DropReason.INNER_MALFORMED if is_oversized else PLAIN
    if packet.l4_length < UDP_LENGTH:
        return malformed
    udp_length, field = _Udp.unpack_from(frame, packet.l4_at)
    if udp_length != packet.l4_length:
        return malformed
    if not packet.is_unfinished(field):
        return PLAIN
    payload = packet.l4_length - UDP_LENGTH
    # Its segments are messages: without their size they cannot be told apart, however long the frame is,
    # and with it they must be, however short.
    if segment_size is None or not 0 < segment_size < payload:
        return _finish(packet.l4_at, UDP_CHECKSUM)
    if payload > segment_size * SEGMENTS_MAX:
        return DropReason.INNER_MALFORMED
    return VnetHeader(
        flags=NEEDS_CSUM,
        gso_type=GSO_UDP_L4,
        header_length=packet.l4_at + UDP_LENGTH,
        gso_size=segment_size,
        checksum_start=packet.l4_at,
        checksum_offset=UDP_CHECKSUM,
    ).build()


def _fills(packet: _Packet, length: int) -> bool:
    """Whether the inner packet reaches the frame's end, or the padding of a short frame begins there."""
    tags = packet.network_at - ETHERNET_LENGTH
    return packet.end == length or packet.end < length <= FRAME_LENGTH_MIN + tags


def _dissect(frame: Buffer) -> _Packet | None:
    """Where things are; `_NO_PACKET` where that is not IP, None where it contradicts itself."""
    length = len(frame)
    type_at = 12
    for _ in range(TAGS_MAX + 1):
        if length < type_at + 2:
            return None
        (ethertype,) = _EtherType.unpack_from(frame, type_at)
        if ethertype not in TAG_TPIDS:
            break
        type_at += 4
    else:
        return _NO_PACKET
    if ethertype == IPV4:
        return _dissect_ipv4(frame, type_at + 2, length)
    if ethertype == IPV6:
        return _dissect_ipv6(frame, type_at + 2, length)
    return _NO_PACKET


def _dissect_ipv4(frame: Buffer, at: int, length: int) -> _Packet | None:
    if length < at + 20:
        return None
    version_ihl, total, fragment, protocol, source, destination = _Ipv4.unpack_from(frame, at)
    header_length = (version_ihl & 0x0F) * 4
    if version_ihl >> 4 != 4 or not 20 <= header_length <= total <= length - at:
        return None
    return _Packet(
        version=4,
        protocol=0 if fragment & _FRAGMENT else protocol,
        network_at=at,
        l4_at=at + header_length,
        end=at + total,
        addresses=source + destination,
    )


def _dissect_ipv6(frame: Buffer, at: int, length: int) -> _Packet | None:
    if length < at + 40 or frame[at] >> 4 != 6:
        return None
    end = at + 40 + int.from_bytes(frame[at + 4 : at + 6], "big")
    if end > length:
        return None
    protocol, l4_at = frame[at + 6], at + 40
    for _ in range(IPV6_OPTIONS_MAX):
        if protocol not in IPV6_OPTIONS:
            break
        if l4_at + 8 > end:
            return None
        protocol, l4_at = frame[l4_at], l4_at + (frame[l4_at + 1] + 1) * 8
        if l4_at > end:
            return None
    return _Packet(
        version=6,
        # A fragment header (44) ends the walk, and so does a routing header (43), behind which another
        # destination counts (RFC 8200 section 8.1): neither is TCP or UDP.
        protocol=protocol,
        network_at=at,
        l4_at=l4_at,
        end=end,
        addresses=int.from_bytes(frame[at + 8 : at + 40], "big"),
    )


def _mss_option(options: bytes) -> int | None:
    at = 0
    while at < len(options) and options[at] != 0:  # RFC 9293 section 3.1: 0 ends the list, 1 is padding
        size = 1 if options[at] == 1 else options[at + 1] if at + 1 < len(options) else 0
        if size == 0 or at + size > len(options):
            return None
        if options[at] == 2 and size == 4:
            return int.from_bytes(options[at + 2 : at + 4], "big")
        at += size
    return None
