"""Split: a super-frame the host left to its network card becomes the segments that card would have made.

What is read from our TAP may be 64 kilobytes of one TCP burst or of one program's datagrams, its cuts named
by the `virtio_net_hdr` before it.  Its payload is cut where it lies and never copied; what is made anew is
a header for each segment, and the socket gathers both:

    read      [ Ethernet  IP  TCP ][ ─────────────────── payload ─────────────────── ]
    sent      [ VXLAN  Ethernet  IP  TCP ][ payload 0 ]
              [ VXLAN  Ethernet  IP' TCP'][ payload 1 ]    one `sendmsg` with UDP_SEGMENT
              [ VXLAN  Ethernet  IP" TCP"][ rest ]

From one segment to the next these change, and nothing else:

    IPv4   identification + 1; total length and so the checksum
    IPv6   payload length
    TCP    sequence number + the octets before; FIN and PSH on the last only, CWR on the first only; checksum
    UDP    length; checksum

Everything that stays is summed once.  The pseudo-header is summed by the host already: it stands in the
checksum field of what we read, with the super-frame's length in it, and the kernel's own segmentation
starts from there as well.

Who wrote the virtio header is our own kernel; who chose the octets behind it is any program on this host.
So the frame must agree with the header in every length, or it is dropped, and `hdr_len` is not believed at
all: on a forwarded frame it says how the kernel had the frame in memory.

Heads up: read VIRTIO 1.2 section 5.1.6.2, RFC 9293 section 3.1 and RFC 1071 before changing this file.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from overlay.verdict import DropReason
from tunnel.interfaces import Buffer
from tunnel.offload import (
    CWR,
    ETHERNET_LENGTH,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    IPV4,
    IPV6,
    NEEDS_CSUM,
    TAG_TPIDS,
    TAGS_MAX,
    TCP,
    TCP_CHECKSUM,
    TCP_LENGTH,
    UDP,
    UDP_CHECKSUM,
    UDP_LENGTH,
    VNET_HEADER_LENGTH,
)
from tunnel.sums import FEW_OCTETS, WORD_MAX, word_sums

# From the specification
FIN, PSH = 0x01, 0x08  # RFC 9293 section 3.1
FRAGMENT = 0x3FFF  # IPv4: more fragments, or an offset (RFC 791 section 3.1)
IPV6_EXTENSIONS = frozenset({0, 43, 60})  # hop-by-hop, routing, destination: those a super-frame may have

# QUIRK(linux): UDP_MAX_SEGMENTS is 64 (128 since 6.9), and many kernels count their own 8-octet UDP header
# among the octets of those: 64 full segments are refused.
SEGMENTS_MAX = 63
# What one UDP datagram carries over IPv4: 65535 less 20 and 8.  IPv6 leaves its own header out of the count
# and would carry 20 more, in which no further segment has ever fit.
RUN_OCTETS_MAX = 65507

# Ours
# A stranger's SYN can talk our host into segments of eight octets.  Above this many one frame would hold the
# event loop for milliseconds, and an MSS below 64 is nobody's honest need.
SUPER_SEGMENTS_MAX = 1024
EXTENSIONS_MAX = 8

# What each kind of super-frame is made of: IP version (0: either), protocol, where its checksum goes.
_KINDS = {
    GSO_TCPV4: (4, TCP, TCP_CHECKSUM),
    GSO_TCPV4 | GSO_ECN: (4, TCP, TCP_CHECKSUM),
    GSO_TCPV6: (6, TCP, TCP_CHECKSUM),
    GSO_TCPV6 | GSO_ECN: (6, TCP, TCP_CHECKSUM),
    GSO_UDP_L4: (0, UDP, UDP_CHECKSUM),
}
_Vnet = struct.Struct("=BBHHHH")
_Word = struct.Struct("!H")
_Ipv4 = struct.Struct("!BxH2xHxB")  # version and IHL, total length, fragment, protocol
# The same of an untagged frame with a TCP header behind 20 octets of IPv4: EtherType first, data offset last.
_Common = struct.Struct("!12xHBxH2xHxB22xB")
_COMMON_L4_AT = ETHERNET_LENGTH + 20


_Front = tuple[bytes, int]
"""What is sent before a frame, and how many of its own first octets are not."""


class Run(NamedTuple):
    """What one `sendmsg` takes: segments of `segment_size` octets each, the last of which may be shorter.

    `buffers` are BORROWED, slices of the frame that was split among them: valid until the next read.
    """

    buffers: list[Buffer]
    segment_size: int
    segments: int


def split_untrusted(
    header: Buffer, frame: memoryview, *, prefix: bytes, payload_max: int, hidden: int = 0
) -> list[Run] | DropReason:
    """The runs to send for a super-frame read from the TAP, in order, or why it is not sent.

    Args:
        header: The `virtio_net_hdr` read before it.
        frame: What the runs' slices are of; not written to.
        prefix: Put before every segment: the VXLAN header.
        payload_max: Octets of datagram the path to the VTEP carries, prefix included.
        hidden: Octets at the frame's front that are not sent (`tunnel.flannel_udp`).
    """
    if len(header) < VNET_HEADER_LENGTH:
        return DropReason.INNER_MALFORMED
    place = locate_untrusted(header, frame)
    if place is None:
        return DropReason.INNER_MALFORMED
    segment_size = len(prefix) + min(len(frame), place.payload_at + place.size) - hidden
    if segment_size > payload_max:
        return DropReason.MTU_EXCEEDED
    split = _split_tcp if place.protocol == TCP else _split_udp
    return _runs(split(frame, place, place.size, (prefix, hidden)), segment_size)


def finish_untrusted(header: Buffer, frame: memoryview) -> bool:
    """HOT PATH: finishes the checksum of a frame that stays whole; False where it has no place there."""
    if len(header) < VNET_HEADER_LENGTH:
        return False
    flags, _, _, _, start, checksum_at = _Vnet.unpack_from(header)
    if not flags & NEEDS_CSUM:
        return True
    field_at, octets = start + checksum_at, len(frame) - start
    if start + octets < field_at + 2:
        return False
    if octets <= FEW_OCTETS and not octets & 1:
        total = int.from_bytes(frame[start:], "big")
    else:
        (total,) = word_sums([frame[start:]])
    # Never 0, which in UDP says "no checksum" (RFC 768) and elsewhere means the same as 0xffff.
    _Word.pack_into(frame, field_at, WORD_MAX - total % WORD_MAX)
    return True


# ── Where things are ────────────────────────────────────────────────────────────────────────────────────


class Place(NamedTuple):
    """Where the headers of a super-frame begin, in octets from the frame's first, and what they are.

    Attributes:
        protocol: TCP or UDP.
        size: Octets of payload in each segment but the last.
    """

    version: int
    protocol: int
    network_at: int
    l4_at: int
    payload_at: int
    size: int

    @property
    def checksum_at(self) -> int:
        """Where the checksum stands in the TCP or UDP header."""
        return TCP_CHECKSUM if self.protocol == TCP else UDP_CHECKSUM


def locate_untrusted(header: Buffer, frame: memoryview) -> Place | None:
    """Where things are in a super-frame; None where it and its virtio header disagree."""
    flags, gso_type, _, size, l4_at, checksum_at = _Vnet.unpack_from(header)
    version, protocol, expected_at = _KINDS.get(gso_type, (0, 0, 0))
    if not flags & NEEDS_CSUM or not size or not protocol or checksum_at != expected_at:
        return None
    place = _locate_common(frame, size) if l4_at == _COMMON_L4_AT and version == 4 else None
    if place is None:
        place = _locate(frame, version, protocol, l4_at, size)
    if place is None or len(frame) - place.payload_at > size * SUPER_SEGMENTS_MAX:
        return None
    return place


def _locate_common(frame: memoryview, size: int) -> Place | None:
    """HOT PATH: as `_locate` in nearly every super-frame there is: TCP in IPv4, no tag, no IP options."""
    length = len(frame)
    if length < _COMMON_L4_AT + TCP_LENGTH:
        return None
    ethertype, version_ihl, total, fragment, protocol, offset = _Common.unpack_from(frame)
    payload_at = _COMMON_L4_AT + (offset >> 4) * 4
    if (
        ethertype == IPV4
        and version_ihl == 0x45
        and total + ETHERNET_LENGTH == length
        and not fragment & FRAGMENT
        and protocol == TCP
        and _COMMON_L4_AT + TCP_LENGTH <= payload_at <= length
    ):
        return Place(4, TCP, ETHERNET_LENGTH, _COMMON_L4_AT, payload_at, size)
    return None


def _locate(frame: memoryview, version: int, protocol: int, l4_at: int, size: int) -> Place | None:
    length = len(frame)
    l4_length = TCP_LENGTH if protocol == TCP else UDP_LENGTH
    if l4_at + l4_length > length:
        return None
    ethertype, network_at = _ethertype(frame, l4_at)
    if ethertype == IPV4 and version != 6:
        version, is_sound = 4, _is_ipv4(frame, network_at, protocol, l4_at)
    elif ethertype == IPV6 and version != 4:
        version, is_sound = 6, _is_ipv6(frame, network_at, protocol, l4_at)
    else:
        return None
    if protocol == TCP:
        l4_length = (frame[l4_at + 12] >> 4) * 4
        is_sound = is_sound and TCP_LENGTH <= l4_length <= length - l4_at
    else:
        is_sound = is_sound and _Word.unpack_from(frame, l4_at + 4)[0] == length - l4_at
    return Place(version, protocol, network_at, l4_at, l4_at + l4_length, size) if is_sound else None


def _ethertype(frame: memoryview, end: int) -> tuple[int, int]:
    """The EtherType behind the VLAN tags, and where its packet begins, which is before `end`; else (0, 0)."""
    for type_at in range(12, min(12 + 4 * TAGS_MAX, end - 2) + 1, 4):
        (ethertype,) = _Word.unpack_from(frame, type_at)
        if ethertype not in TAG_TPIDS:
            return ethertype, type_at + 2
    return 0, 0


def _is_ipv4(frame: memoryview, at: int, protocol: int, l4_at: int) -> bool:
    """Whether the IPv4 header ends where the virtio header says, and the packet where the frame does."""
    if not 20 <= l4_at - at <= 60:
        return False
    version_ihl, total, fragment, found = _Ipv4.unpack_from(frame, at)
    return (
        version_ihl == 0x40 | (l4_at - at) // 4
        and (l4_at - at) % 4 == 0
        and at + total == len(frame)
        and not fragment & FRAGMENT
        and found == protocol
    )


def _is_ipv6(frame: memoryview, at: int, protocol: int, l4_at: int) -> bool:
    """The same for IPv6 and its extension headers, among which a fragment header is not."""
    if l4_at - at < 40 or frame[at] >> 4 != 6:
        return False
    if at + 40 + _Word.unpack_from(frame, at + 4)[0] != len(frame):
        return False
    found, end = frame[at + 6], at + 40
    for _ in range(EXTENSIONS_MAX):
        if end >= l4_at or found not in IPV6_EXTENSIONS:
            break
        found, end = frame[end], end + (frame[end + 1] + 1) * 8
    return end == l4_at and found == protocol


# ── Cutting ─────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=256)
def _tcp_header(head: int, options: int) -> struct.Struct:
    """What is before the sequence number; it; acknowledgment to window; checksum; urgent pointer, options."""
    return struct.Struct(f"!{head}sI8sH{2 + options}s")


@lru_cache(maxsize=256)
def _udp_header(head: int) -> struct.Struct:
    return struct.Struct(f"!{head}sHH")


def _split_tcp(frame: memoryview, place: Place, size: int, front: _Front) -> list[Buffer]:
    """Header, payload, header, payload: two buffers a segment."""
    l4_at, payload_at = place.l4_at, place.payload_at
    flags = frame[l4_at + 13]
    (sequence,) = struct.unpack_from("!I", frame, l4_at + 4)
    options = bytes(frame[l4_at + 18 : payload_at])
    before_flags, window = bytes(frame[l4_at + 8 : l4_at + 13]), bytes(frame[l4_at + 14 : l4_at + 16])
    build = _tcp_header(len(front[0]) - front[1] + l4_at + 4, len(options) - 2).pack
    # Sequence number and flags differ from segment to segment; the rest of the header with the seed in its
    # checksum field, the super-frame's length taken off it, does not.
    base = (
        int.from_bytes(frame[l4_at:payload_at], "big") - (len(frame) - l4_at) - sequence - flags
    ) % WORD_MAX

    last = max(len(frame) - payload_at - 1, 0) // size
    middle = flags & ~(FIN | PSH)
    # CWR is for the first new segment only (RFC 3168 section 6.1.2).
    parts = [(range(1), middle), (range(1, last), middle & ~CWR), (range(last, last + 1), flags & ~CWR)]
    if not last:
        parts = [(range(1), flags)]
    buffers: list[Buffer] = []
    add = buffers.append
    for indices, part_flags in parts:
        pieces = _cut(frame, payload_at, size, indices)
        octets = len(pieces[0]) if pieces else 0
        heads = _heads(frame, place, front, indices, payload_at + octets)
        fixed = before_flags + bytes((part_flags,)) + window
        part_base = base + part_flags + payload_at - l4_at + octets
        number = sequence + indices.start * size & 0xFFFFFFFF
        for head, payload, total in zip(heads, pieces, word_sums(pieces), strict=True):
            add(build(head, number, fixed, -(part_base + number + total) % WORD_MAX, options))
            add(payload)
            number = number + size & 0xFFFFFFFF
    return buffers


def _split_udp(frame: memoryview, place: Place, size: int, front: _Front) -> list[Buffer]:
    """The same for UDP."""
    l4_at, payload_at = place.l4_at, place.payload_at
    build = _udp_header(len(front[0]) - front[1] + l4_at + 4).pack
    # The length stands in the header and in the pseudo-header, whose seed is in the checksum field.
    base = (int.from_bytes(frame[l4_at:payload_at], "big") - 2 * (len(frame) - l4_at)) % WORD_MAX
    last = max(len(frame) - payload_at - 1, 0) // size
    buffers: list[Buffer] = []
    add = buffers.append
    for indices in (range(last), range(last, last + 1)):
        pieces = _cut(frame, payload_at, size, indices)
        udp_length = UDP_LENGTH + (len(pieces[0]) if pieces else 0)
        part_base = base + 2 * udp_length
        heads = _heads(frame, place, front, indices, l4_at + udp_length)
        for head, payload, total in zip(heads, pieces, word_sums(pieces), strict=True):
            # Never 0: that says "no checksum" (RFC 768).
            add(build(head, udp_length, -(part_base + total) % WORD_MAX or WORD_MAX))
            add(payload)
    return buffers


def _cut(frame: memoryview, payload_at: int, size: int, indices: range) -> list[memoryview]:
    """The payloads of these segments; the last of all may be shorter."""
    start, stop = payload_at + indices.start * size, payload_at + indices.stop * size
    return [frame[at : at + size] for at in range(start, stop, size)]


def _heads(frame: memoryview, place: Place, front: _Front, indices: range, length: int) -> list[bytes]:
    """What stands before TCP's sequence number or UDP's length, for each segment: prefix to ports.

    Args:
        indices: Which segments of the super-frame.
        length: Octets of each of them as a frame.
    """
    version, at, l4_at = place.version, place.network_at, place.l4_at
    prefix, hidden = front
    ports_end = l4_at + 4
    if version == 6:
        payload_length = _Word.pack(length - at - 40)
        head = b"".join((prefix, frame[hidden : at + 4], payload_length, frame[at + 6 : ports_end]))
        return [head] * len(indices)
    total, (was_total, identification) = _Word.pack(length - at), struct.unpack_from("!HH", frame, at + 2)
    before, after = b"".join((prefix, frame[hidden : at + 2], total)), bytes(frame[at + 12 : ports_end])
    between, (was_checksum,) = bytes(frame[at + 6 : at + 10]), _Word.unpack_from(frame, at + 10)
    build = struct.Struct(f"!{len(before)}sH4sH{len(after)}s").pack
    header = int.from_bytes(frame[at:l4_at], "big")
    base = (header - was_total - identification - was_checksum + length - at) % WORD_MAX
    numbers = range(identification + indices.start, identification + indices.stop)
    return [
        build(before, number & 0xFFFF, between, -(base + (number & 0xFFFF)) % WORD_MAX, after)
        for number in numbers
    ]


def _runs(buffers: list[Buffer], segment_size: int) -> list[Run]:
    """The segments in as few runs as the socket takes."""
    count = len(buffers) // 2
    per_run = max(1, min(SEGMENTS_MAX, RUN_OCTETS_MAX // segment_size))
    if count <= per_run:
        return [Run(buffers, segment_size, count)]
    return [
        Run(buffers[2 * at : 2 * (at + per_run)], segment_size, min(per_run, count - at))
        for at in range(0, count, per_run)
    ]
