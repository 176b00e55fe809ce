"""Super-packets against our own split, octet for octet: what the kernel cuts is what the lower door sends.

    written ──▶ inject TAP ─tc─▶ wa0, a veth that can neither segment nor checksum ──▶ wb0, captured

The kernel does in software on the way what a card would do.  The outer headers of what arrives are built
anew by scapy, the inner ones and the payload by `split_untrusted`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from support.namespace import Namespace, needs_namespaces
from support.super_frames import Burst

from overlay.addr import IpAddress, Mac, Vni
from tunnel.injector import InjectTap
from tunnel.interfaces import Hop
from tunnel.split import locate_untrusted, split_untrusted
from tunnel.super_packet import OuterHeader
from tunnel.vxlan import build_header

pytestmark = [pytest.mark.root, pytest.mark.timeout(30), needs_namespaces]

OURS, THEIRS = Mac(b"\x02\x5e\0\0\0\x01"), Mac(b"\x02\x5e\0\0\0\x02")
ADDRESSES: dict[int, tuple[IpAddress, IpAddress]] = {
    4: (ip_address("192.0.2.1"), ip_address("192.0.2.2")),
    6: (ip_address("2001:db8::1"), ip_address("2001:db8::2")),
}
VXLAN = build_header(Vni(42))
CANNOT = (
    "tx",
    "tso",
    "gso",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-udp-segmentation",
)
CAPTURE_OCTETS = 16 << 20
SO_RCVBUFFORCE = 33

TCP_TIMES, UDP_BURST = Burst(tcp_options=1), Burst(protocol=17)
BURSTS = {
    "tcp4": Burst(octets=44 * 1398, size=1398, tcp_options=1, flags="PA"),
    "tcp6": Burst(6, octets=44 * 1378, size=1378, tcp_options=1, flags="PA"),
    "udp4": Burst(4, 17, octets=44 * 1398, size=1398),
    "udp6": Burst(6, 17, octets=44 * 1378, size=1378),
    "a short tail": replace(TCP_TIMES, octets=2001),
    "a short udp tail": replace(UDP_BURST, octets=2001),
    "odd segments": replace(TCP_TIMES, octets=5000, size=999),
    "odd udp segments": replace(UDP_BURST, octets=5000, size=999),
    "small segments": replace(TCP_TIMES, octets=600, size=100),
    "fin and psh": replace(TCP_TIMES, flags="FPA"),
    "cwr": replace(TCP_TIMES, flags="CA"),
    "selective acknowledgments": replace(TCP_TIMES, tcp_options=2),
    "ipv4 options": replace(TCP_TIMES, ip_options=2),
    "ipv6 extensions": Burst(6, ip_options=2, tcp_options=1),
    "ecn and dscp": replace(TCP_TIMES, tos=0xBA),
    "an identification that wraps": replace(TCP_TIMES, identification=0xFFFF),
}


@dataclass(frozen=True)
class Cable:
    """An inject TAP to wa0, and who listens at wa0's other end."""

    tap: InjectTap
    wire: socket.socket

    def arrivals(self) -> list[bytes]:
        """All that has come from our MAC; a write to the TAP returns when its segments are there."""
        frames: list[bytes] = []
        while True:
            try:
                frame = self.wire.recv(70000)
            except BlockingIOError:
                return frames
            if frame[6:12] == OURS:
                frames.append(frame)


@pytest.fixture(scope="module")
def cable() -> Iterator[Cable]:
    near, far = Namespace(), Namespace()
    near.add_veth("wa0", far, "wb0", mtu=1550)
    with near:
        near.run(*(f"ethtool -K wa0 {feature} off" for feature in CANNOT))
        tap = InjectTap("wa0", socket.if_nametoindex("wa0"))
    with far:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
        wire.bind(("wb0", 3))
        wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, CAPTURE_OCTETS)
    yield Cable(tap, wire)
    tap.close()
    wire.close()
    near.close()
    far.close()


def segments_of(burst: Burst) -> list[bytes]:
    """The segments our lower door would send."""
    runs = split_untrusted(burst.header, memoryview(bytearray(burst.whole)), prefix=b"", payload_max=65507)
    assert isinstance(runs, list)
    buffers = [bytes(buffer) for run in runs for buffer in run.buffers]
    return [head + payload for head, payload in zip(buffers[::2], buffers[1::2], strict=True)]


def as_datagram(segment: bytes, version: int, number: int, *, ecn: int, has_checksum: bool) -> bytes:
    """The segment as the wire shall have it, in a datagram of scapy's making."""
    source, destination = map(str, ADDRESSES[version])
    ip: Any
    if version == 4:
        # The kernel numbers what it cuts from where we began, zero (with DF it says nothing: RFC 6864).
        ip = IP(src=source, dst=destination, tos=ecn, flags="DF", id=number, ttl=64)
    else:
        ip = IPv6(src=source, dst=destination, tc=ecn, hlim=64)
    header = UDP(sport=51234, dport=4789)
    if not has_checksum:
        header.chksum = 0
    return bytes(Ether(src=OURS.hex(":"), dst=THEIRS.hex(":")) / ip / header / Raw(VXLAN + segment))


def inject(
    cable: Cable, burst: Burst, version: int, *, ecn: int = 0, has_checksum: bool = True
) -> list[bytes]:
    """Writes it as a super-packet; what arrives."""
    outer = OuterHeader(Hop(OURS, THEIRS, has_checksum), *ADDRESSES[version], 4789)
    place = locate_untrusted(burst.header, memoryview(burst.whole))
    assert place is not None
    datagram = VXLAN + burst.whole
    assert outer.takes(place, len(datagram))
    before = outer.fill(burst.header[1], place, len(datagram), source_port=51234, ecn=ecn)
    cable.tap.write((before, datagram))
    return cable.arrivals()


@pytest.mark.parametrize("version", ADDRESSES)
@pytest.mark.parametrize("name", BURSTS)
def test_the_kernel_cuts_a_super_packet_into_what_the_lower_door_sends(
    cable: Cable, name: str, version: int
) -> None:
    burst = BURSTS[name]
    expected = [
        as_datagram(segment, version, number, ecn=2, has_checksum=True)
        for number, segment in enumerate(segments_of(burst))
    ]
    assert inject(cable, burst, version, ecn=2) == expected
    assert cable.tap.new_losses() == 0


@pytest.mark.parametrize("name", ["tcp4", "tcp6", "udp4", "udp6"])
def test_without_an_outer_checksum_no_segment_has_one_and_every_inner_one_is_right(
    cable: Cable, name: str
) -> None:
    burst = BURSTS[name]
    expected = [
        as_datagram(segment, 4, number, ecn=0, has_checksum=False)
        for number, segment in enumerate(segments_of(burst))
    ]
    assert inject(cable, burst, 4, has_checksum=False) == expected


@pytest.mark.parametrize("version", ADDRESSES)
def test_the_longest_that_is_taken_arrives_whole(cable: Cable, version: int) -> None:
    longest = 65535 - {4: 20, 6: 40}[version] - 8 - len(VXLAN)
    burst = Burst(octets=longest - 54, size=1398)
    assert len(burst.whole) == longest
    arrived = inject(cable, burst, version)
    outer = 14 + {4: 20, 6: 40}[version] + 8 + len(VXLAN)
    assert [frame[outer:] for frame in arrived] == segments_of(burst)
