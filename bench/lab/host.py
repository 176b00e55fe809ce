"""A tiny host behind a simulated device: it resolves, answers, pings, and counts what it gets.

    SimulatedHost ──▶ queue ──read_into──▶ engine          what a kernel does behind a TAP,
    SimulatedHost ◀──────────── write ──── engine          as far as a test needs it

ARP and neighbor discovery with three attempts, ICMP echo both ways, UDP, and path MTUs learnt from
ICMP errors.  No TCP, no fragments, no routes: every address is on the segment.  Every checksum is
verified by the parsers, so an engine that spoils one byte is found out as a ping that is not answered.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from bench.lab.topology import Address, Interface
from bench.lab.virtual import VirtualReactor
from bench.lab.wire import scatter
from overlay.addr import BROADCAST, ZERO_MAC, Mac
from overlay.checksum import checksum, transport_checksum
from overlay.errors import TruncatedError, WireError
from overlay.frame import (
    ARP_REPLY,
    ARP_REQUEST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ICMP_ECHO_REPLY,
    ICMP_ECHO_REQUEST,
    ICMP_FRAGMENTATION_NEEDED,
    ICMP_UNREACHABLE,
    ICMPV6_ECHO_REPLY,
    ICMPV6_ECHO_REQUEST,
    ICMPV6_TOO_BIG,
    IPV4_LENGTH,
    NEIGHBOR_HOP_LIMIT,
    PROTOCOL_ICMP,
    PROTOCOL_ICMPV6,
    PROTOCOL_UDP,
    Arp,
    Icmp,
    Ipv4,
    Ipv6,
    NeighborAdvertisement,
    NeighborSolicitation,
    build_icmp,
    build_icmpv6,
    parse_arp_untrusted,
    parse_ethernet_untrusted,
    parse_icmp_untrusted,
    parse_icmpv6_untrusted,
    parse_ipv4_untrusted,
    parse_ipv6_untrusted,
    parse_neighbor_untrusted,
    parse_udp_untrusted,
)
from overlay.frame.neighbor import NEIGHBOR_ADVERTISEMENT, NEIGHBOR_SOLICITATION, SOLICITED_NODE_PREFIX
from tunnel.interfaces import Buffer

# From the specification
NEEDS_CSUM = 1  # virtio 1.2 section 5.1.6: VIRTIO_NET_HDR_F_NEEDS_CSUM
ICMP_HEADER = 8
UDP_HEADER = 8

# Ours
HOP_LIMIT = 64
ATTEMPTS = 3  # as Linux asks (mcast_solicit, ucast_solicit), a second apart
ATTEMPT_S = 1.0
DEVICE_QUEUE_FRAMES = 1000  # a TAP's txqueuelen

_VnetHeader = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
NO_OFFLOAD = bytes(_VnetHeader.size)


class SimulatedDevice:
    """What stands in for a TAP: `tunnel.interfaces.FrameDevice` on one side, a host's link on the other.

    Attributes:
        is_up: Whether the host has it up; down, reads and writes fail with EIO as a TAP's do.
        has_carrier: What the engine last said; the host sends nothing without.
    """

    def __init__(self, reactor: VirtualReactor, name: str, mac: Mac, *, mtu: int) -> None:
        self.name = name
        self.mac = mac
        self.mtu = mtu
        self.is_up = True
        self.has_carrier = False
        self.receiver: Callable[[bytes], object] = len  # until a host takes its place
        self.reactor = reactor
        self._queue: deque[bytes] = deque()
        self._overruns = 0
        self._is_closed = False
        self._descriptor = reactor.open_descriptor(lambda: bool(self._queue))

    # The engine's side.

    def fileno(self) -> int:
        return self._descriptor

    @property
    def queues(self) -> tuple[int, ...]:
        return (self._descriptor,)

    def read_into(self, buffers: Sequence[Buffer]) -> int:
        self._require_open()
        if not self._queue:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return scatter(self._queue.popleft(), buffers)

    def write(self, buffers: Sequence[Buffer]) -> int:
        self._require_open()
        octets = b"".join(bytes(buffer) for buffer in buffers)
        header, frame = octets[: _VnetHeader.size], octets[_VnetHeader.size :]
        if len(frame) < 14:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        # Not in this turn: a host is another process, and no frame of its may appear while one is written.
        self.reactor.call_soon(self.receiver, finish_checksum(header, frame))
        return len(octets)

    takes_udp_super_frames = True

    def set_carrier(self, *, up: bool) -> None:
        self.has_carrier = up

    def overruns(self) -> int:
        return self._overruns

    def close(self) -> None:
        self._is_closed = True
        self.reactor.close_descriptor(self._descriptor)

    # The host's side.

    def transmit(self, frame: bytes, header: bytes = NO_OFFLOAD) -> bool:
        """Queues a frame for the engine; False if it is lost: no carrier, down, or the queue is full."""
        if self._is_closed or not (self.is_up and self.has_carrier):
            return False
        if len(self._queue) >= DEVICE_QUEUE_FRAMES:
            self._overruns += 1
            return False
        self._queue.append(header + frame)
        return True

    def _require_open(self) -> None:
        if self._is_closed:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))
        if not self.is_up:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def finish_checksum(header: bytes, frame: bytes) -> bytes:
    """The frame with the checksum its virtio header says is missing, as the kernel completes it.

    Raises:
        OSError: EINVAL, the header points outside the frame.
    """
    flags, _, _, _, start, offset = _VnetHeader.unpack(header)
    if not flags & NEEDS_CSUM:
        return frame
    at = start + offset
    if at + 2 > len(frame):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return frame[:at] + checksum(frame[start:]).to_bytes(2, "big") + frame[at + 2 :]


@dataclass(slots=True)
class Echo:
    """One echo request and, once it is there, the time of its answer."""

    destination: Address
    sent_at: float
    body: bytes
    answered_at: float | None = None

    @property
    def rtt_s(self) -> float | None:
        return None if self.answered_at is None else self.answered_at - self.sent_at


@dataclass(slots=True)
class _Resolution:
    """Packets that wait for the MAC of one neighbor."""

    packets: list[tuple[int, bytes]] = field(default_factory=list)
    attempts: int = 0


class SimulatedHost:
    """The stack behind one device.

    Attributes:
        neighbors: What it has resolved; it never ages.
        datagrams: UDP payloads received, by port.
        received: Frames by what they were, `malformed` and `not for us` among them.
        path_mtus: Smaller than the device's where an ICMP error said so.
    """

    def __init__(
        self, reactor: VirtualReactor, device: SimulatedDevice, addresses: Iterable[Interface]
    ) -> None:
        self.device = device
        self.mac = device.mac
        self.addresses: tuple[Address, ...] = tuple(address.ip for address in addresses)
        self.neighbors: dict[Address, Mac] = {}
        self.datagrams: dict[int, list[bytes]] = {}
        self.received: Counter[str] = Counter()
        self.path_mtus: dict[Address, int] = {}
        self._reactor = reactor
        self._resolutions: dict[Address, _Resolution] = {}
        self._echoes: dict[int, Echo] = {}
        device.receiver = self.receive

    # What a test asks of it.

    def ping(self, destination: Address, *, size: int = 56) -> Echo:
        """Sends an echo request; the answer, if it comes, is written into what is returned."""
        body = bytes(number & 0xFF for number in range(size))
        echo = Echo(destination, self._reactor.time(), body)
        token = len(self._echoes)
        self._echoes[token] = echo
        if isinstance(destination, IPv4Address):
            self._send(destination, PROTOCOL_ICMP, build_icmp(ICMP_ECHO_REQUEST, 0, token, body))
        else:
            self._send_icmpv6(destination, Icmp(ICMPV6_ECHO_REQUEST, 0, token), body)
        return echo

    def send_udp(self, destination: Address, port: int, payload: bytes, *, source_port: int = 40000) -> None:
        """Sends one datagram.

        Raises:
            OSError: EMSGSIZE, longer than the path carries.
        """
        length = UDP_HEADER + len(payload)
        unsummed = struct.pack("!HHHH", source_port, port, length, 0) + payload
        source = self._source_for(destination)
        # RFC 768: a computed sum of zero is sent as all ones, for zero means that there is none.
        sum_ = transport_checksum(source, destination, PROTOCOL_UDP, unsummed) or 0xFFFF
        self._send(destination, PROTOCOL_UDP, unsummed[:6] + sum_.to_bytes(2, "big") + payload)

    def announce(self) -> None:
        """Tells the segment where its addresses are, as after a move: gratuitous ARP (RFC 5227 section 3)."""
        for address in self.addresses:
            if isinstance(address, IPv4Address):
                arp = Arp(ARP_REQUEST, self.mac, address, ZERO_MAC, address)
                self._transmit(BROADCAST, ETHERTYPE_ARP, arp.build())

    # Sending.

    def _send(self, destination: Address, protocol: int, payload: bytes) -> None:
        ethertype, packet = self._packet(destination, protocol, payload, HOP_LIMIT)
        if len(packet) > self.path_mtus.get(destination, self.device.mtu):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        mac = self.neighbors.get(destination)
        if mac is not None:
            self._transmit(mac, ethertype, packet)
            return
        is_new = destination not in self._resolutions
        resolution = self._resolutions.setdefault(destination, _Resolution())
        resolution.packets.append((ethertype, packet))
        if is_new:
            self._ask_for(destination)

    def _send_icmpv6(self, destination: IPv6Address, icmp: Icmp, body: bytes) -> None:
        source = self._source_for(destination)
        assert isinstance(source, IPv6Address)  # noqa: S101  (of the destination's family)
        message = build_icmpv6(icmp, body, source=source, destination=destination)
        self._send(destination, PROTOCOL_ICMPV6, message)

    def _packet(
        self, destination: Address, protocol: int, payload: bytes, hop_limit: int
    ) -> tuple[int, bytes]:
        source = self._source_for(destination)
        if isinstance(source, IPv4Address) and isinstance(destination, IPv4Address):
            header4 = Ipv4(
                source=source,
                destination=destination,
                protocol=protocol,
                ttl=hop_limit,
                tos=0,
                identification=0,
                dont_fragment=True,
                more_fragments=False,
                fragment_offset=0,
                header_length=IPV4_LENGTH,
                total_length=IPV4_LENGTH + len(payload),
            )
            return ETHERTYPE_IPV4, header4.build() + payload
        assert isinstance(source, IPv6Address)  # noqa: S101  (of the destination's family)
        assert isinstance(destination, IPv6Address)  # noqa: S101
        header6 = Ipv6(
            source=source,
            destination=destination,
            traffic_class=0,
            flow_label=0,
            hop_limit=hop_limit,
            payload_length=len(payload),
            upper_protocol=protocol,
        )
        return ETHERTYPE_IPV6, header6.build() + payload

    def _source_for(self, destination: Address) -> Address:
        for address in self.addresses:
            if address.version == destination.version:
                return address
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    def _transmit(self, destination: Mac, ethertype: int, packet: bytes) -> None:
        self.device.transmit(destination + self.mac + ethertype.to_bytes(2, "big") + packet)

    # Resolving.

    def _ask_for(self, address: Address) -> None:
        resolution = self._resolutions.get(address)
        if resolution is None:  # answered meanwhile
            return
        if resolution.attempts == ATTEMPTS:
            del self._resolutions[address]
            return
        resolution.attempts += 1
        source = self._source_for(address)
        if isinstance(address, IPv4Address):
            assert isinstance(source, IPv4Address)  # noqa: S101  (of the address's family)
            arp = Arp(ARP_REQUEST, self.mac, source, ZERO_MAC, address)
            self._transmit(BROADCAST, ETHERTYPE_ARP, arp.build())
        else:
            assert isinstance(source, IPv6Address)  # noqa: S101
            # RFC 4291 section 2.7.1 and RFC 2464 section 7: the solicited-node group, and its MAC.
            group = IPv6Address(SOLICITED_NODE_PREFIX + address.packed[-3:])
            message = NeighborSolicitation(address, self.mac).build(source=source, destination=group)
            ethertype, packet = self._packet(group, PROTOCOL_ICMPV6, message, NEIGHBOR_HOP_LIMIT)
            self._transmit(Mac(b"\x33\x33" + group.packed[-4:]), ethertype, packet)
        self._reactor.call_later(ATTEMPT_S, self._ask_for, address)

    def _learn(self, address: Address, mac: Mac) -> None:
        self.neighbors[address] = mac
        resolution = self._resolutions.pop(address, None)
        for ethertype, packet in resolution.packets if resolution else ():
            self._transmit(mac, ethertype, packet)

    # Receiving.

    def receive(self, frame: bytes) -> None:
        """Takes a frame the engine wrote."""
        try:
            self.received[self._receive_untrusted(frame)] += 1
        except WireError:
            self.received["malformed"] += 1

    def _receive_untrusted(self, frame: bytes) -> str:
        ethernet = parse_ethernet_untrusted(frame)
        if ethernet.destination != self.mac and not ethernet.destination[0] & 1:
            return "not for us"
        payload = frame[ethernet.payload_at :]
        if ethernet.ethertype == ETHERTYPE_ARP:
            return self._receive_arp_untrusted(payload)
        if ethernet.ethertype == ETHERTYPE_IPV4:
            return self._receive_ipv4_untrusted(payload)
        if ethernet.ethertype == ETHERTYPE_IPV6:
            return self._receive_ipv6_untrusted(payload)
        return "other"

    def _receive_arp_untrusted(self, packet: bytes) -> str:
        arp = parse_arp_untrusted(packet)
        is_ours = arp.target_ip in self.addresses
        # RFC 826, "Packet reception": who is known is updated; who asks for us is remembered.
        if arp.sender_ip in self.neighbors or arp.sender_ip in self._resolutions or is_ours:
            self._learn(arp.sender_ip, arp.sender_mac)
        if arp.operation == ARP_REQUEST and is_ours:
            reply = Arp(ARP_REPLY, self.mac, arp.target_ip, arp.sender_mac, arp.sender_ip)
            self._transmit(arp.sender_mac, ETHERTYPE_ARP, reply.build())
        return "arp"

    def _receive_ipv4_untrusted(self, packet: bytes) -> str:
        header = parse_ipv4_untrusted(packet)
        if header.destination not in self.addresses:
            return "not for us"
        payload = packet[header.header_length : header.total_length]
        if header.protocol == PROTOCOL_UDP:
            return self._receive_udp_untrusted(header.source, header.destination, payload)
        if header.protocol != PROTOCOL_ICMP:
            return "other"
        icmp = parse_icmp_untrusted(payload)
        body = payload[ICMP_HEADER:]
        if icmp.kind == ICMP_ECHO_REQUEST:
            with contextlib.suppress(OSError):  # longer than the way back carries: never answered
                self._send(header.source, PROTOCOL_ICMP, build_icmp(ICMP_ECHO_REPLY, 0, icmp.rest, body))
        elif icmp.kind == ICMP_ECHO_REPLY:
            self._answered(header.source, icmp.rest, body)
        elif (icmp.kind, icmp.code) == (ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED):
            self.path_mtus[IPv4Address(_quoted(body, 16, 20))] = icmp.rest & 0xFFFF  # RFC 1191 section 4
            return "too big"
        return "icmp"

    def _receive_ipv6_untrusted(self, packet: bytes) -> str:
        header = parse_ipv6_untrusted(packet)
        if header.destination not in self.addresses and not header.destination.is_multicast:
            return "not for us"
        payload = packet[header.upper_at : header.total_length]
        if header.upper_protocol == PROTOCOL_UDP:
            return self._receive_udp_untrusted(header.source, header.destination, payload)
        if header.upper_protocol != PROTOCOL_ICMPV6:
            return "other"
        icmp = parse_icmpv6_untrusted(payload, header.source, header.destination)
        body = payload[ICMP_HEADER:]
        if icmp.kind in (NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT):
            return self._receive_discovery_untrusted(header, payload)
        if icmp.kind == ICMPV6_ECHO_REQUEST:
            with contextlib.suppress(OSError):
                self._send_icmpv6(header.source, Icmp(ICMPV6_ECHO_REPLY, 0, icmp.rest), body)
        elif icmp.kind == ICMPV6_ECHO_REPLY:
            self._answered(header.source, icmp.rest, body)
        elif icmp.kind == ICMPV6_TOO_BIG:
            self.path_mtus[IPv6Address(_quoted(body, 24, 40))] = icmp.rest  # RFC 4443 section 3.2
            return "too big"
        return "icmpv6"

    def _receive_discovery_untrusted(self, header: Ipv6, message: bytes) -> str:
        discovery = parse_neighbor_untrusted(message, header.source, header.destination, header.hop_limit)
        if isinstance(discovery, NeighborAdvertisement):
            if discovery.target_mac is not None:
                self._learn(discovery.target, discovery.target_mac)
        elif discovery.target in self.addresses and discovery.source_mac is not None:
            self._learn(header.source, discovery.source_mac)
            answer = NeighborAdvertisement(
                discovery.target, self.mac, router=False, solicited=True, override=True
            ).build(source=discovery.target, destination=header.source)
            ethertype, packet = self._packet(header.source, PROTOCOL_ICMPV6, answer, NEIGHBOR_HOP_LIMIT)
            self._transmit(discovery.source_mac, ethertype, packet)
        return "discovery"

    def _receive_udp_untrusted(self, source: Address, destination: Address, payload: bytes) -> str:
        udp = parse_udp_untrusted(payload)
        if payload[6:8] != b"\0\0" and transport_checksum(source, destination, PROTOCOL_UDP, payload):
            return "malformed"
        self.datagrams.setdefault(udp.destination_port, []).append(payload[UDP_HEADER:])
        return "udp"

    def _answered(self, source: Address, token: int, body: bytes) -> None:
        echo = self._echoes.get(token)
        if echo is not None and echo.answered_at is None and (echo.destination, echo.body) == (source, body):
            echo.answered_at = self._reactor.time()


def _quoted(body: bytes, start: int, end: int) -> bytes:
    """Those octets of the packet an ICMP error quotes."""
    if len(body) < end:
        raise TruncatedError("packet quoted by an ICMP error", expected=end, found=len(body))
    return body[start:end]
