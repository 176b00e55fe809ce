"""What the Python engine keeps of a network, of a VTEP, and of a port: state, no decisions.

    Batch             datagrams that leave in one send
    NetworkCarriage   device, egress flows, its VTEPs by id and by sender's host, the flood list resolved
    VtepCarriage      where and through which sockets to send; ingress flows; what went and came
    PortCarriage      one receiving socket and the networks that share it, by VNI

Verdicts name VTEPs by id.  When a VTEP's port, route or path changes, its `VtepCarriage` is edited and no
flow is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import NamedTuple

from overlay.addr import NetworkId, Vtep, VtepId
from overlay.bucket import TokenBucket
from tunnel.counters import drop_counts
from tunnel.flows import EGRESS_FLOWS_MAX, INGRESS_FLOWS_MAX, Dependents, FlowTable
from tunnel.interfaces import (
    Attachment,
    Buffer,
    FrameDevice,
    Sender,
    SockAddr,
    Strictness,
    Underlay,
    UnderlayPort,
)
from tunnel.ladder import Feature
from tunnel.meter import COPIES_BURST, COPIES_PER_SECOND
from tunnel.mtu import Encap, overhead
from tunnel.offload import ETHERNET_LENGTH, VNET_HEADER_LENGTH
from tunnel.split import SEGMENTS_MAX, Run
from tunnel.super_packet import OuterHeader
from tunnel.vxlan import HEADER_LENGTH, build_header

# From the specification
TAG_LENGTH = 4  # octets of an 802.1Q tag
DATAGRAM_MAX = 65535  # octets a receive buffer must hold, or the end of a super-datagram is lost
SEND_MAX = 65535 - 20 - 8  # octets of UDP payload in one IPv4 send; IPv6 would carry 20 more

# Ours
FRAMES_PER_TURN = 2 * SEGMENTS_MAX  # of a device: full batches, and none left over to go alone
READS_PER_TURN = 64  # of a port; of single datagrams no more than a new flow may have waiting
READS_JOINED = 8  # reads whose segments may stand in one write; each has 64 KB of its own for that
TURN_SECONDS = 0.001  # a drain ends after that many or that long, whichever is first
QUIET_SECONDS = 0.0002  # since the last drain ended: so long a pause is no burst
SEGMENT_LIMITS_MAX = 4096  # MAC pairs whose smallest MSS is remembered


class Batch:
    """Datagrams for one VTEP and source port that leave in one send.

    All have `segment_size` octets but the last, which may be shorter and then is the last.  A flow may change
    its ECN field from frame to frame (of TCP, only data carries one: RFC 3168 section 6.1.4), so there is no
    batch for each: they would overtake each other.

    Attributes:
        ecn: The ECN field of all their outer headers, set with the first.
        buffers: What the send gathers; `stride` of them make a datagram.
    """

    __slots__ = ("buffers", "count", "ecn", "index", "is_closed", "octets", "segment_size", "stride")

    def __init__(self, index: int, ecn: int = 0) -> None:
        self.index = index
        self.ecn = ecn
        self.clear()

    def clear(self) -> None:
        """Empties it.  What it held is the caller's again."""
        self.buffers: list[Buffer] = []
        self.count = self.octets = self.segment_size = 0
        self.stride = 1
        self.is_closed = False

    def takes(self, octets: int, ecn: int) -> bool:
        """Whether a datagram of that size and ECN field may join those that are there."""
        return (
            not self.is_closed
            and ecn == self.ecn
            and octets <= self.segment_size
            and self.count < SEGMENTS_MAX
            and self.octets + octets <= SEND_MAX
        )

    def add(self, datagram: Buffer, octets: int) -> None:
        """One more, which `takes` has agreed to."""
        if not self.count:
            self.segment_size = octets
        elif octets < self.segment_size:
            self.is_closed = True
        self.buffers.append(datagram)
        self.count += 1
        self.octets += octets

    def extend(self, datagrams: list[memoryview]) -> None:
        """More of its `segment_size`, for which there is room."""
        self.buffers += datagrams
        self.count += len(datagrams)
        self.octets += len(datagrams) * self.segment_size

    def load(self, run: Run) -> None:
        """Holds the run a super-frame was split into, and nothing else."""
        self.buffers, self.segment_size, self.count = run.buffers, run.segment_size, run.segments
        self.octets = sum(map(len, run.buffers))
        self.stride = len(run.buffers) // run.segments

    def datagrams(self) -> Iterator[list[Buffer]]:
        """The buffers of each datagram."""
        for at in range(0, len(self.buffers), self.stride):
            yield self.buffers[at : at + self.stride]

    def frames(self, lead: bytes) -> Iterator[memoryview]:
        """A copy of each frame, for whoever must see it whole; `lead` is its network's."""
        for buffers in self.datagrams():
            yield memoryview(b"".join((lead, *buffers)))[HEADER_LENGTH:]

    def singles(self) -> Iterator[Batch]:
        """The same datagrams, each in a batch of its own."""
        for buffers in self.datagrams():
            single = Batch(self.index, self.ecn)
            single.buffers = buffers
            single.stride = len(buffers)
            single.count = 1
            single.octets = single.segment_size = sum(map(len, buffers))
            yield single


class Slot(NamedTuple):
    """Where one frame is read to: `virtio_net_hdr`, then the frame behind its VXLAN header."""

    header: bytearray
    datagram: memoryview
    buffers: tuple[bytearray, memoryview]


class VtepCarriage:
    """How one VTEP of one network is reached, and what came from it."""

    __slots__ = (
        "batches",
        "door",
        "drops",
        "encap",
        "frame_max",
        "id",
        "ingress",
        "mask",
        "outer",
        "received_frames",
        "received_octets",
        "senders",
        "sent_frames",
        "sent_octets",
        "sockaddr",
        "source_ports",
        "underlay",
        "wants_door",
    )

    def __init__(
        self,
        vtep: Vtep,
        underlay: Underlay | None,
        dependents: Dependents,
        *,
        encap: Encap = Encap.VXLAN,
    ) -> None:
        self.id: VtepId = vtep.address
        self.encap = encap
        self.batches: dict[int, Batch] = {}
        self.ingress = FlowTable(INGRESS_FLOWS_MAX, dependents)
        self.drops = drop_counts()
        self.sent_frames = self.sent_octets = 0
        self.received_frames = self.received_octets = 0
        self.wants_door = encap is Encap.VXLAN  # of all that is carried, the kernel cuts VXLAN alone
        self.route(vtep, underlay)

    def route(self, vtep: Vtep, underlay: Underlay | None) -> None:
        """Sets where and through which underlay it is reached; None: no underlay of its family here."""
        self.underlay = underlay
        self.senders: tuple[Sender, ...] = tuple(underlay.senders) if underlay is not None else ()
        self.mask = max(len(self.senders) - 1, 0)
        self.sockaddr: SockAddr = (str(vtep.address), vtep.port)
        if underlay is not None:
            # Its scope's device may be gone just now: sends fail, and are counted, until it is back.
            with suppress(OSError):
                self.sockaddr = underlay.sockaddr(vtep.address, vtep.port)
        self.limit_path(underlay.mtu if underlay is not None else DATAGRAM_MAX)
        self._use_door(vtep.port)

    def _use_door(self, port: int) -> None:
        """Has the super door the underlay has for it now, if any."""
        is_vxlan = self.encap is Encap.VXLAN
        doors = self.underlay.super_doors if self.underlay is not None and is_vxlan else None
        self.door = doors.door(self.id) if doors is not None else None
        self.outer: OuterHeader | None = None
        self.source_ports: tuple[int, ...] = ()
        if self.door is not None and self.underlay is not None:
            self.outer = OuterHeader(self.door.hop, self.underlay.address, self.id, port)
            self.source_ports = tuple(sender.port for sender in self.senders)

    def want_door(self) -> None:
        """There are super-frames for it.  Asks once."""
        self.wants_door = False
        if self.underlay is not None and self.underlay.super_doors is not None:
            self.underlay.super_doors.want(self.id)

    def shut_door(self, why: str, *, now: float) -> None:
        """Has its super door no more, which has failed, or a socket towards it has."""
        if self.door is not None and self.underlay is not None and self.underlay.super_doors is not None:
            self.underlay.super_doors.shut(self.id, why, now=now)
            self.door = self.underlay.super_doors.door(self.id)

    def batch(self, entropy: int) -> Batch:
        """The batch of a source port, empty or not."""
        index = entropy & self.mask
        batch = self.batches.get(index)
        if batch is None:
            batch = self.batches[index] = Batch(index)
        return batch

    @property
    def segments(self) -> bool:
        """Whether several datagrams may leave in one send."""
        return self.underlay is not None and self.underlay.ladder.is_on(Feature.UDP_GSO)

    def recheck_path(self) -> None:
        """Asks the kernel how wide the path is now."""
        if self.underlay is None:
            return
        try:
            self.limit_path(min(self.underlay.mtu, self.underlay.path_mtu(self.sockaddr)))
        except OSError:  # no path at all just now: the next send says so by itself
            self.limit_path(self.underlay.mtu)

    def limit_path(self, path_mtu: int) -> None:
        """Sets the longest frame (Ethernet header included) that fits an IP packet of `path_mtu` octets."""
        self.frame_max = path_mtu - overhead(self.encap, self.id.version) + ETHERNET_LENGTH

    @property
    def path_is_limited(self) -> bool:
        """Whether the path was found narrower than the underlay device."""
        return self.underlay is not None and self.frame_max < (
            self.underlay.mtu - overhead(self.encap, self.id.version) + ETHERNET_LENGTH
        )


class NetworkCarriage:
    """One network as it is carried.

    Attributes:
        slots: Where frames are read to, one drain's worth; the VXLAN header stands in each for good.
        lead: What stands in a slot and not on the wire, the VXLAN header's place included; of VXLAN nothing.
        prefix: What stands on the wire before a frame.
        hidden: How many of a frame's first octets are not sent.
        wire_id: By which a datagram tells which of a port's networks it is for.
        merges_udp: Whether the device takes UDP segments joined into one frame.
        segment_limits: Ingress flow key → smallest MSS the receiver behind our device announced.
    """

    def __init__(self, attachment: Attachment, dependents: Dependents, *, now: float) -> None:
        self.id: NetworkId = attachment.network
        self.attachment = attachment
        self.decider = attachment.decider
        self.is_strict = attachment.strictness is Strictness.LINUX
        self.suppresses = attachment.suppresses
        self._set_format(attachment)
        self.egress = FlowTable(EGRESS_FLOWS_MAX, dependents)
        self.vteps: dict[VtepId, VtepCarriage] = {}
        self.by_host: dict[str, VtepCarriage] = {}
        self.flood: tuple[VtepCarriage, ...] = ()
        self.copies = TokenBucket.full(COPIES_PER_SECOND, COPIES_BURST, now=now)
        self.segment_limits: dict[bytes, int] = {}
        self.slots = _slots(self.header, self.lead)
        self.drained_at = now
        self.use_device(attachment.device, attachment.overlay_mtu)

    def _set_format(self, attachment: Attachment) -> None:
        """VXLAN's: its header, then the frame as it is."""
        if attachment.vni is None:
            raise ValueError(f"expected a VNI for network {attachment.network}, found none")
        self.header = self.prefix = build_header(attachment.vni)
        self.lead = b""
        self.hidden = 0
        self.wire_id = int(attachment.vni)

    def payload_max(self, vtep: VtepCarriage) -> int:
        """Octets of datagram that reach this VTEP."""
        return HEADER_LENGTH + vtep.frame_max

    def packet_max(self, vtep: VtepCarriage) -> int:
        """Octets of packet that reach this VTEP."""
        return vtep.frame_max - ETHERNET_LENGTH

    def source_of(self, frame: bytes) -> bytes:
        """Who sent it, for a fair share of what is metered."""
        return frame[6:12]

    def _new_vtep(self, vtep: Vtep, underlay: Underlay | None, dependents: Dependents) -> VtepCarriage:
        return VtepCarriage(vtep, underlay, dependents)

    def use_device(self, device: FrameDevice, overlay_mtu: int) -> None:
        """Goes on with this device, which is open."""
        self.device = device
        self.merges_udp = device.takes_udp_super_frames
        self.overlay_mtu = overlay_mtu
        self.overruns_seen = device.overruns()

    def program_vtep(self, vtep: Vtep, underlay: Underlay | None, dependents: Dependents) -> None:
        """Has this VTEP; a known one is edited in place."""
        carriage = self.vteps.get(vtep.address)
        if carriage is None:
            carriage = self.vteps[vtep.address] = self._new_vtep(vtep, underlay, dependents)
        else:
            self.by_host.pop(carriage.sockaddr[0], None)
            carriage.route(vtep, underlay)
        self.by_host[carriage.sockaddr[0]] = carriage

    def withdraw_vtep(self, vtep: VtepId) -> None:
        """Has it no more."""
        carriage = self.vteps.pop(vtep, None)
        if carriage is not None:
            self.by_host.pop(carriage.sockaddr[0], None)
            carriage.ingress.clear()

    def program_flood(self, vteps: tuple[VtepId, ...]) -> None:
        """Floods to these."""
        self.flood = tuple(self.vteps[vtep] for vtep in vteps)

    def note_segment_limit(self, ingress_key: bytes, mss: int) -> None:
        """A receiver behind our device takes no TCP segment above `mss` octets from that MAC pair."""
        known = self.segment_limits.get(ingress_key)
        if known is None and len(self.segment_limits) >= SEGMENT_LIMITS_MAX:
            del self.segment_limits[next(iter(self.segment_limits))]
        if known is None or mss < known:
            self.segment_limits[ingress_key] = mss


def _slots(vxlan_header: bytes, lead: bytes) -> tuple[Slot, ...]:
    """Slots for a turn, each for the longest frame a device gives.

    Their memory is the kernel's until it is written to: short frames take a page or two of each.
    """
    octets = HEADER_LENGTH + DATAGRAM_MAX + ETHERNET_LENGTH + TAG_LENGTH
    memory = memoryview(mmap(-1, FRAMES_PER_TURN * octets, flags=MAP_PRIVATE | MAP_ANONYMOUS))
    return tuple(_slot(memory[at : at + octets], vxlan_header, lead) for at in range(0, len(memory), octets))


def _slot(datagram: memoryview, vxlan_header: bytes, lead: bytes) -> Slot:
    datagram[:HEADER_LENGTH] = vxlan_header
    datagram[: len(lead)] = lead
    header = bytearray(VNET_HEADER_LENGTH)
    return Slot(header, datagram, (header, datagram[max(HEADER_LENGTH, len(lead)) :]))


class ReadSlot:
    """Where one read of a port goes.

    What it holds is BORROWED by whom it is given to: valid until the slot is read to again.

    Attributes:
        datagram: What the read has brought; before it `lead`, for good.
        view: The same.
        buffers: What to read to.
        octets: How many octets the read has brought.
    """

    __slots__ = ("buffers", "datagram", "octets", "view")

    def __init__(self, lead: bytes) -> None:
        self.datagram = bytearray(len(lead) + DATAGRAM_MAX)
        self.datagram[: len(lead)] = lead
        self.view = memoryview(self.datagram)
        self.buffers = (self.view[len(lead) :],)
        self.octets = 0


class PortCarriage:
    """One receiving socket, the networks that share it, and what the kernel lost there.

    Attributes:
        slots: Where datagrams are read to; others than the first only while segments wait for more.
        drained_at: When the last drain ended.
    """

    def __init__(self, socket: UnderlayPort, *, lead: bytes = b"", reads: int = READS_JOINED) -> None:
        self.socket = socket
        self.networks: dict[int, NetworkCarriage] = {}
        self.slots = tuple(ReadSlot(lead) for _ in range(reads))
        self.drained_at = 0.0
        self.overruns_seen = socket.overruns()
