"""Merge: the segments of a flow that arrive together are written to the TAP as the one frame they were.

A write to a TAP runs the host's whole receive path: as many walks through bridge, routing and TCP as there
are writes.  What split took apart at the sender is put together again here, from slices, without a copy:

    received  [ Ethernet  IP  TCP ][ payload 0 ]   [ … TCP'][ payload 1 ]   [ … TCP"][ rest ]
    written   [ virtio_net_hdr ][ Ethernet  IP  TCP ][ payload 0 ][ payload 1 ][ rest ]    one `writev`

What may be merged is what the kernel's own GRO would merge, since somebody behind the TAP may have to cut it
again and must get the same segments back:

    all     same MAC pair and tags; IPv4 without options or fragments, IPv6 without extension headers; equal
            TOS or traffic class, TTL, DF, flow label; lengths exact; every checksum verified; each payload as
            long as the first, a shorter one ends the run; at most 64 segments and 65535 octets of packet
    IPv4    identifications one up each time, or, with DF set, all the same (with it they say nothing, RFC
            6864 section 4.1).  A host that cuts the latter again counts them up.
    TCP     equal ports, acknowledgment, window, urgent pointer, options; ACK alone, or with PSH, which ends
            the run; sequence numbers that follow each other; payload, in both
    UDP     equal ports; a checksum at all; not to a port where encapsulated frames arrive

One thing the kernel's GRO never sees: a segment whose checksum is *unfinished* (`tunnel.offload`), from a
kernel VXLAN peer on this host.  Repair asks the host to finish those one by one and believe them; merged with
their like they say exactly that, far cheaper.  With finished ones they would lend a trust nobody has checked.

Flows may be interleaved, and each is merged for itself.  A run stands where its first segment stood; what
cannot be merged ends the run of its flow, and what has no flow we can name ends all of them.  So nothing
overtakes within a flow.  Nothing is held back here; what had better wait says `count_open_untrusted`.

Heads up: read `tunnel.split`, RFC 9293 section 3.1 and RFC 768 before changing this file.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from overlay.verdict import DropReason
from tunnel.interfaces import Buffer
from tunnel.offload import (
    ETHERNET_LENGTH,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    IPV4,
    IPV6,
    NEEDS_CSUM,
    SEGMENTS_MAX,
    TAG_TPIDS,
    TAGS_MAX,
    TCP,
    TCP_CHECKSUM,
    TCP_LENGTH,
    UDP,
    UDP_CHECKSUM,
    UDP_LENGTH,
    VnetHeader,
    repair_untrusted,
)
from tunnel.split import FRAGMENT, PSH
from tunnel.sums import WORD_MAX, word_sums

# From the specification
ACK = 0x10  # RFC 9293 section 3.1
DF = 0x40  # in the first octet of IPv4's fragment field (RFC 791 section 3.1)
PACKET_MAX = 65535  # octets of IP (RFC 791 section 3.1)

# Ours
# QUIRK(linux): a UDP super-frame on its way into a vxlan or geneve device of the host is cut there frame by
# frame, so slowly that a tunnel inside a tunnel fell to 165 Mb/s.  RFC 7348, Linux's older default, RFC 8926.
TUNNEL_PORTS = frozenset({4789, 8472, 6081})
ACKNOWLEDGMENT_LENGTH = 66  # octets: Ethernet, IPv4 and TCP with timestamps, and nothing in it
OPEN_RUNS_MAX = 64  # flows merged at once; one more ends the oldest run
# A run judges as many segments at once as it has this many times over.  One wrong checksum throws away what
# was summed behind it: who sends them on purpose makes us work a few times over, not dozens of times.
BLOCK_GROWTH = 4

# The eight octets of `_Shape.fields`, less the last two: an identification is their first sixteen bits.
_NETWORK_MASK = (1 << 48) - 1
_ID_UP = 1 << 32

_Word = struct.Struct("!H")
_Ipv4 = struct.Struct("!BxH2xHxB")  # version and IHL, total length, fragment, protocol
_Ipv6 = struct.Struct("!B3xHB")  # version, payload length, next header
_Udp = struct.Struct("!2xHHH")  # destination port, length, checksum
_CONNECTION_AND_FLAGS = {4: struct.Struct("!12s9xB"), 6: struct.Struct("!36s9xB")}  # by IP version


class Write(NamedTuple):
    """One write to the TAP: `[header, *buffers]`.

    `buffers` are BORROWED, the frames given or slices of them: valid as long as those are.  The kernel may
    refuse it with EINVAL, which is about the contents: `frames` of them are lost then.
    """

    header: bytes
    buffers: tuple[Buffer, ...]
    frames: int


class Lost(NamedTuple):
    """A frame that is not written, and why."""

    reason: DropReason
    frame: memoryview


def merge_untrusted(
    frames: Sequence[memoryview], *, overlay_mtu: int, udp: bool, mss: int | None = None
) -> list[Write | Lost]:
    """What to write to the TAP for these frames, in order.

    Args:
        frames: Inner frames to be delivered, as they arrived, from VTEPs of ours and otherwise from anybody.
        overlay_mtu: Of the device they are for.
        udp: Whether its kernel takes UDP super-frames (Linux 6.2: TUN_F_USO4 and 6).
        mss: As for `repair_untrusted`, through which goes whatever is not merged.
    """
    places: list[_Run | memoryview] = []
    open_runs: dict[bytes, _Run] = {}
    at = 0
    while at < len(frames):
        frame = frames[at]
        at += 1
        # HOT PATH: the last frame starts no run, and an acknowledgment is not worth the look.
        is_alone = not open_runs and (at == len(frames) or len(frame) <= ACKNOWLEDGMENT_LENGTH)
        segment = None if is_alone else _dissect(frame, overlay_mtu, udp=udp)
        if segment is None:
            open_runs.clear()
            places.append(frame)
            continue
        run = open_runs.get(segment.flow)
        if run is None or not run.join(segment):
            open_runs.pop(segment.flow, None)
            if segment.shape is None or segment.is_pushed:
                places.append(frame)
                continue
            if len(open_runs) == OPEN_RUNS_MAX:
                del open_runs[next(iter(open_runs))]
            run = open_runs[segment.flow] = _Run(frame, segment.shape)
            places.append(run)
        at = run.extend(frames, at)
        if run.is_over:
            del open_runs[segment.flow]
    return [
        place.finish() if isinstance(place, _Run) and place.frames > 1 else _plain(place, overlay_mtu, mss)
        for place in places
    ]


def _plain(place: _Run | memoryview, overlay_mtu: int, mss: int | None) -> Write | Lost:
    frame = place.frame if isinstance(place, _Run) else place
    header = repair_untrusted(frame, overlay_mtu=overlay_mtu, mss=mss)
    return Lost(header, frame) if isinstance(header, DropReason) else Write(header, (frame,), 1)


def count_open_untrusted(frames: Sequence[memoryview], *, overlay_mtu: int) -> int:
    """How many of the last of these frames make a run that the next to arrive may continue.

    TCP segments of one length and connection, those behind its last PSH; 0 if others' frames lie among them,
    a shorter one ends them, or they fill a write.  A guess, from few fields: `merge_untrusted` looks closely.
    """
    segment = _dissect(frames[-1], overlay_mtu, udp=False) if frames else None
    if segment is None or segment.shape is None:
        return 0
    shape, length, count = segment.shape, len(segment.frame), 0
    connection_at = shape.l4_at - (8 if shape.version == 4 else 32)
    unpack = _CONNECTION_AND_FLAGS[shape.version].unpack_from
    for frame in reversed(frames):
        if not shape.l4_at + TCP_LENGTH <= len(frame) <= length:
            return 0
        connection, flags = unpack(frame, connection_at)
        if connection != segment.flow:
            return 0
        if len(frame) < length or flags & PSH:
            break
        count += 1
    return count if count < shape.room(length - shape.payload_at) else 0


# ── Where things are ────────────────────────────────────────────────────────────────────────────────────


class _Shape(NamedTuple):
    """Where things are in a header; the same object for all headers of that shape.

    `fields` takes a header apart into four strings, equal in all segments of a run, and between them three
    numbers, which are not:

        eight octets, identification first and header checksum last; IPv6 has neither, and gives its first six
            with the EtherType before them: the payload length comes last
        TCP's sequence number; UDP's ports, which have to be equal
        the transport checksum
    """

    version: int
    protocol: int
    network_at: int
    l4_at: int
    payload_at: int
    fields: struct.Struct

    @property
    def length_at(self) -> int:
        """Of the IP header's length field."""
        return self.network_at + (2 if self.version == 4 else 4)

    def room(self, size: int) -> int:
        """How many segments with a payload of `size` octets fit in one frame."""
        return max(1, min(SEGMENTS_MAX, (PACKET_MAX - self.payload_at + self.network_at) // size))

    @property
    def checksum_at(self) -> int:
        return self.l4_at + (TCP_CHECKSUM if self.protocol == TCP else UDP_CHECKSUM)


@lru_cache(maxsize=256)
def _shape(version: int, protocol: int, network_at: int, l4_length: int) -> _Shape:
    l4_at = network_at + (20 if version == 4 else 40)
    before, addresses = (network_at + 4, 8) if version == 4 else (network_at - 2, 34)
    ports, after = (4, f"8sH{l4_length - 18}s") if protocol == TCP else (0, "2sH0s")
    fields = struct.Struct(f"!{before}sQ{addresses + ports}sI{after}")
    return _Shape(version, protocol, network_at, l4_at, l4_at + l4_length, fields)


class _Segment(NamedTuple):
    """A TCP or UDP frame whose lengths are exact.

    `flow` is addresses and ports.  `shape` is None where it is not to be merged.
    """

    frame: memoryview
    flow: bytes
    shape: _Shape | None
    is_pushed: bool


def _dissect(frame: memoryview, overlay_mtu: int, *, udp: bool) -> _Segment | None:
    """The frame as a segment, None where its flow cannot be told."""
    version, protocol, network_at, l4_at = _locate(frame)
    length = len(frame)
    is_pushed = False
    if protocol == TCP and length >= l4_at + TCP_LENGTH:
        offset, flags = frame[l4_at + 12], frame[l4_at + 13]
        l4_length = (offset >> 4) * 4
        is_pushed = bool(flags & PSH)
        may_merge = flags & ~PSH == ACK and l4_length >= TCP_LENGTH and not offset & 0x0F
    elif protocol == UDP:
        l4_length = UDP_LENGTH
        port, udp_length, checksum = _Udp.unpack_from(frame, l4_at)
        may_merge = udp and port not in TUNNEL_PORTS and udp_length == length - l4_at and checksum != 0
    else:
        return None
    flow = bytes(frame[l4_at - (8 if version == 4 else 32) : l4_at + 4])
    if not may_merge or l4_at + l4_length >= length or length > overlay_mtu + network_at:
        return _Segment(frame, flow, None, is_pushed)
    return _Segment(frame, flow, _shape(version, protocol, network_at, l4_length), is_pushed)


def _locate(frame: memoryview) -> tuple[int, int, int, int]:
    """IP version, protocol, where the IP header and the transport's begin; the latter is in the frame.

    Zeros where it is neither IPv4 without options nor IPv6 without extension headers, or its length is not
    exactly the frame's, or it is a fragment.
    """
    length = len(frame)
    for at in range(ETHERNET_LENGTH, ETHERNET_LENGTH + 4 * TAGS_MAX, 4):
        if length < at + 20 + UDP_LENGTH:
            break
        (ethertype,) = _Word.unpack_from(frame, at - 2)
        if ethertype == IPV4:
            version_ihl, total, fragment, protocol = _Ipv4.unpack_from(frame, at)
            if version_ihl == 0x45 and not fragment & FRAGMENT and at + total == length:
                return 4, protocol, at, at + 20
        elif ethertype == IPV6 and length >= at + 40 + UDP_LENGTH:
            version, payload_length, protocol = _Ipv6.unpack_from(frame, at)
            if version >> 4 == 6 and at + 40 + payload_length == length:
                return 6, protocol, at, at + 40
        if ethertype not in TAG_TPIDS:
            break
    return 0, 0, 0, 0


# ── Checksums ───────────────────────────────────────────────────────────────────────────────────────────


class _Checksum(Enum):
    """What a transport checksum says."""

    RIGHT = "verified"
    UNFINISHED = "the folded pseudo-header sum"
    WRONG = "neither, or IPv4's own is wrong"


def _verify(frame: memoryview, shape: _Shape) -> _Checksum:
    """Judges the checksums of a frame by itself."""
    if shape.version == 4 and int.from_bytes(frame[shape.network_at : shape.l4_at], "big") % WORD_MAX:
        return _Checksum.WRONG
    pseudo = _pseudo_header_sum(frame, shape, len(frame) - shape.l4_at)
    (field,) = _Word.unpack_from(frame, shape.checksum_at)
    if field == pseudo:
        return _Checksum.UNFINISHED
    total = pseudo + word_sums([frame[shape.l4_at :]])[0]
    return _Checksum.WRONG if total % WORD_MAX else _Checksum.RIGHT


def _pseudo_header_sum(frame: Buffer, shape: _Shape, l4_length: int) -> int:
    """Folded; never 0, for its protocol is not."""
    addresses_at = shape.network_at + (12 if shape.version == 4 else 8)
    addresses_end = addresses_at + (8 if shape.version == 4 else 32)
    addresses = int.from_bytes(frame[addresses_at:addresses_end], "big")
    return (addresses + shape.protocol + l4_length) % WORD_MAX or WORD_MAX


# ── Runs ────────────────────────────────────────────────────────────────────────────────────────────────


class _Run:
    """The first segment of what may become a run, and the payloads of all that followed.

    Attributes:
        frame: The first segment.
        is_over: Nothing can follow.
    """

    __slots__ = (
        "_checksum",
        "_expected",
        "_first",
        "_id_step",
        "_is_pushed",
        "_next_network",
        "_next_sequence",
        "_payloads",
        "_room",
        "_same",
        "_shape",
        "_size",
        "_stride",
        "frame",
        "is_over",
    )

    def __init__(self, frame: memoryview, shape: _Shape) -> None:
        self.frame, self._shape = frame, shape
        a, network, b, sequence, c, checksum, d = shape.fields.unpack_from(frame)
        self._same = (a, b, c, d)
        self._first = network, sequence, checksum
        self._size = len(frame) - shape.payload_at
        self._payloads = [frame[shape.payload_at :]]
        self._room = shape.room(self._size)
        self._stride = self._size if shape.protocol == TCP else 0
        self._next_sequence = sequence + self._stride & 0xFFFFFFFF
        self._id_step, self._next_network = 0, network >> 16
        self._checksum: _Checksum | None = None  # judged when a second segment turns up: most stay alone
        self._expected = 0  # what payload, sequence number and checksum have to add up to
        self._is_pushed = False
        self.is_over = self._room < 2

    @property
    def frames(self) -> int:
        return len(self._payloads)

    def join(self, segment: _Segment) -> bool:
        """Takes the segment if it is the next one, the last one of a run included."""
        frame, shape = segment.frame, self._shape
        octets = len(frame) - shape.payload_at
        if segment.shape is not shape or octets > self._size:
            return False
        # The last one differs in its lengths and in PSH.  Dressed as the others it must look like them.
        header = bytearray(frame[: shape.payload_at])
        for at in (shape.length_at, shape.l4_at + (12 if shape.protocol == TCP else 4)):
            header[at : at + 2] = self.frame[at : at + 2]
        a, network, b, sequence, c, _, d = shape.fields.unpack(header)
        self._learn_id_step(network)
        if (a, b, c, d) != self._same or sequence != self._next_sequence:
            return False
        if network >> 16 != self._next_network:
            return False
        if self._judged() is _Checksum.WRONG or _verify(frame, shape) is not self._checksum:
            return False
        self._append([frame[shape.payload_at :]])
        self._is_pushed = segment.is_pushed
        self.is_over |= segment.is_pushed or octets < self._size
        return True

    def extend(self, frames: Sequence[memoryview], at: int) -> int:
        """Takes what follows at `at` and is as long as the first; answers the index of what does not."""
        while not self.is_over:
            block = min(BLOCK_GROWTH * len(self._payloads), self._room - len(self._payloads))
            count = self._extend(frames[at : at + block])
            at += count
            if count < block:
                break
        return at

    def _extend(self, frames: Sequence[memoryview]) -> int:
        """The same for a few frames; answers how many."""
        length, payload_at = len(self.frame), self._shape.payload_at
        if not frames or len(frames[0]) != length:
            return 0
        unpack, same, stride = self._shape.fields.unpack_from, self._same, self._stride
        self._learn_id_step(unpack(frames[0])[1])
        network_sum, step = self._first[0] % WORD_MAX, self._id_step
        next_network, next_sequence = self._next_network, self._next_sequence
        payloads, checksums = [], []
        # HOT PATH: once per segment merged.  Where all other words are equal and the first header's sum is
        # right, the next one's is if those that differ add up to the same: 2**16 is 1 modulo 65535.
        for frame in frames:
            if len(frame) != length:
                break
            a, network, b, sequence, c, checksum, d = unpack(frame)
            if (
                sequence != next_sequence
                or network >> 16 != next_network
                or network % WORD_MAX != network_sum
                or (a, b, c, d) != same
            ):
                break
            payloads.append(frame[payload_at:])
            checksums.append(checksum)
            next_network = next_network + step & _NETWORK_MASK
            next_sequence = sequence + stride & 0xFFFFFFFF
        count = self._count_sound(payloads, checksums) if payloads else 0
        self._append(payloads[:count])
        return count

    def _count_sound(self, payloads: list[memoryview], checksums: list[int]) -> int:
        """How many of these have a checksum of the run's kind, each in the place it would take."""
        judged = self._judged()
        if judged is _Checksum.WRONG:
            return 0
        if judged is _Checksum.UNFINISHED:  # equal lengths, so equal pseudo-headers
            wrong = (at for at, field in enumerate(checksums) if field != self._first[2])
            return next(wrong, len(checksums))
        sequence, stride, expected = self._next_sequence, self._stride, self._expected
        for count, (total, field) in enumerate(zip(word_sums(payloads), checksums, strict=True)):
            if (total + sequence + field) % WORD_MAX != expected:
                return count
            sequence = sequence + stride & 0xFFFFFFFF
        return len(payloads)

    def _judged(self) -> _Checksum:
        if self._checksum is None:
            shape, frame = self._shape, self.frame
            self._checksum = _verify(frame, shape)
            self.is_over |= self._checksum is _Checksum.WRONG
            pseudo = _pseudo_header_sum(frame, shape, len(frame) - shape.l4_at)
            header = int.from_bytes(frame[shape.l4_at : shape.payload_at], "big")
            self._expected = (self._first[1] + self._first[2] - pseudo - header) % WORD_MAX
        return self._checksum

    def _learn_id_step(self, second: int) -> None:
        """Whether identifications go up or stay, which the second segment says (RFC 6864 section 4.1)."""
        if len(self._payloads) > 1 or self._shape.version == 6:
            return
        first = self._first[0]
        has_df = self.frame[self._shape.network_at + 6] & DF
        self._id_step = 0 if has_df and first >> 48 == second >> 48 else _ID_UP
        self._next_network = (first >> 16) + self._id_step & _NETWORK_MASK

    def _append(self, payloads: list[memoryview]) -> None:
        self._payloads += payloads
        self._next_sequence = self._next_sequence + len(payloads) * self._stride & 0xFFFFFFFF
        self._next_network = self._next_network + len(payloads) * self._id_step & _NETWORK_MASK
        self.is_over |= len(self._payloads) == self._room

    def finish(self) -> Write:
        """The one frame the segments were."""
        _, protocol, network_at, l4_at, payload_at, _ = shape = self._shape
        header = bytearray(self.frame[:payload_at])
        l4_length = payload_at - l4_at + self._size * (self.frames - 1) + len(self._payloads[-1])
        if shape.version == 4:
            _Word.pack_into(header, shape.length_at, l4_at - network_at + l4_length)
            _Word.pack_into(header, network_at + 10, 0)
            total = int.from_bytes(header[network_at:l4_at], "big")
            _Word.pack_into(header, network_at + 10, -total % WORD_MAX)
        else:
            _Word.pack_into(header, shape.length_at, l4_length)
        if protocol == UDP:
            _Word.pack_into(header, l4_at + 4, l4_length)
        elif self._is_pushed:
            header[l4_at + 13] |= PSH
        _Word.pack_into(header, shape.checksum_at, _pseudo_header_sum(header, shape, l4_length))
        return Write(_vnet_header(shape, self._size), (bytes(header), *self._payloads), self.frames)


@lru_cache(maxsize=1024)
def _vnet_header(shape: _Shape, size: int) -> bytes:
    tcp = GSO_TCPV4 if shape.version == 4 else GSO_TCPV6
    return VnetHeader(
        flags=NEEDS_CSUM,
        gso_type=tcp if shape.protocol == TCP else GSO_UDP_L4,
        header_length=shape.payload_at,
        gso_size=size,
        checksum_start=shape.l4_at,
        checksum_offset=shape.checksum_at - shape.l4_at,
    ).build()
