"""Frames made by somebody else's hands: scapy builds them, a naive sum checks them, captures hold them.

Scapy is told every number that it would otherwise guess: VXLAN flags and both UDP ports.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap
from scapy.utils6 import in6_getnsma

from overlay.addr import Mac, parse_mac

MAC_A = parse_mac("02:00:00:00:00:0a")
MAC_B = parse_mac("02:00:00:00:00:0b")
IP4_A, IP4_B = "10.9.0.1", "10.9.0.2"
IP6_A, IP6_B = "fd00::1", "fd00::2"
CAPTURES = Path(__file__).parent.parent / "data" / "captures"


def ether(*layers: Packet, tags: Sequence[int] = (), source: Mac = MAC_A, destination: Mac = MAC_B) -> bytes:
    """A frame around the layers.  Of several tags (VLAN ids) the outermost is an S-tag."""
    frame: Any = Ether(src=source.hex(":"), dst=destination.hex(":"))
    for depth, vlan in enumerate(tags):
        frame /= Dot1AD(vlan=vlan) if depth < len(tags) - 1 else Dot1Q(vlan=vlan)
    for layer in layers:
        frame /= layer
    return bytes(frame)


def tcp4(payload: bytes = b"", *, tags: Sequence[int] = (), ip: Any = None, **fields: Any) -> bytes:
    """An IPv4 TCP frame; `fields` are scapy's (flags="S", options=[("MSS", 1300)], …)."""
    segment = TCP(**{"sport": 40000, "dport": 80, "flags": "A", **fields})
    return ether(ip or IP(src=IP4_A, dst=IP4_B), segment, Raw(payload), tags=tags)


def udp4(payload: bytes = b"", *, tags: Sequence[int] = (), ip: Any = None, **fields: Any) -> bytes:
    """An IPv4 UDP frame."""
    datagram = UDP(**{"sport": 40000, "dport": 53, **fields})
    return ether(ip or IP(src=IP4_A, dst=IP4_B), datagram, Raw(payload), tags=tags)


def tcp6(payload: bytes = b"", *, tags: Sequence[int] = (), ip: Any = None, **fields: Any) -> bytes:
    """An IPv6 TCP frame; `ip` may bring extension headers with it."""
    segment = TCP(**{"sport": 40000, "dport": 80, "flags": "A", **fields})
    return ether(ip or IPv6(src=IP6_A, dst=IP6_B), segment, Raw(payload), tags=tags)


def udp6(payload: bytes = b"", *, tags: Sequence[int] = (), ip: Any = None, **fields: Any) -> bytes:
    """An IPv6 UDP frame."""
    datagram = UDP(**{"sport": 40000, "dport": 53, **fields})
    return ether(ip or IPv6(src=IP6_A, dst=IP6_B), datagram, Raw(payload), tags=tags)


def echo4(payload: bytes = b"", *, tags: Sequence[int] = (), **fields: Any) -> bytes:
    """An ICMP echo request; `fields` are the IPv4 header's."""
    ip = IP(**{"src": IP4_A, "dst": IP4_B, **fields})
    return ether(ip, ICMP(type="echo-request", id=7, seq=9), Raw(payload), tags=tags)


def arp_request(*, tags: Sequence[int] = (), asked_for: str = IP4_B, asker: str = IP4_A) -> bytes:
    """Who has `asked_for`?"""
    question = ARP(op="who-has", hwsrc=MAC_A.hex(":"), psrc=asker, pdst=asked_for)
    return ether(question, tags=tags, destination=Mac(b"\xff" * 6))


def neighbor_solicitation(
    *, tags: Sequence[int] = (), asked_for: str = IP6_B, asker: str = IP6_A, with_mac: bool = True
) -> bytes:
    """Who has `asked_for`, in IPv6; `asker="::"`, with_mac=False is a probe for a duplicate."""
    group = in6_getnsma(IPv6Address(asked_for).packed)
    layers = [IPv6(src=asker, dst=str(IPv6Address(group)), hlim=255), ICMPv6ND_NS(tgt=asked_for)]
    if with_mac:
        layers.append(ICMPv6NDOptSrcLLAddr(lladdr=MAC_A.hex(":")))
    return ether(*layers, tags=tags, destination=Mac(b"\x33\x33" + group[12:]))


def neighbor_advertisement(*, solicited: bool = True, override: bool = True, router: bool = False) -> bytes:
    """`IP6_B` is at `MAC_B`, told to A."""
    told = ICMPv6ND_NA(tgt=IP6_B, S=solicited, O=override, R=router)
    option = ICMPv6NDOptDstLLAddr(lladdr=MAC_B.hex(":"))
    ip = IPv6(src=IP6_B, dst=IP6_A, hlim=255)
    return ether(ip, told, option, source=MAC_B, destination=MAC_A)


def vxlan(frame: bytes, vni: int, *, flags: int = 8, **fields: Any) -> bytes:
    """The UDP payload: a VXLAN header and the frame."""
    return bytes(VXLAN(vni=vni, flags=flags, **fields) / Raw(frame))


def vxlan_packet(
    frame: bytes, vni: int, *, source: str, destination: str, source_port: int = 50000, port: int = 4789
) -> bytes:
    """The IPv4 packet around it, as it crosses an underlay."""
    outer = IP(src=source, dst=destination) / UDP(sport=source_port, dport=port)
    return bytes(outer / Raw(vxlan(frame, vni)))


def naive_sum(octets: bytes) -> int:
    """RFC 1071 section 1 word by word, sharing nothing with what it checks."""
    total = 0
    for at in range(0, len(octets), 2):
        low = octets[at + 1] if at + 1 < len(octets) else 0
        total += octets[at] * 256 + low
        total = (total & 0xFFFF) + (total >> 16)
    return total


def unfinished(frame: bytes, *, l4_at: int, protocol: int, addresses: bytes) -> bytes:
    """The frame as a sender leaves it to its card: the folded pseudo-header sum for a checksum."""
    l4_length = len(frame) - l4_at
    total = naive_sum(addresses + l4_length.to_bytes(4, "big") + protocol.to_bytes(4, "big"))
    field_at = l4_at + (16 if protocol == 6 else 6)
    return frame[:field_at] + total.to_bytes(2, "big") + frame[field_at + 2 :]


def captured_datagrams(name: str) -> list[bytes]:
    """The UDP payloads of a capture, as they crossed the wire."""
    return [_udp_payload(bytes(packet)) for packet in rdpcap(str(CAPTURES / name))]


def _udp_payload(frame: bytes) -> bytes:
    """By offsets: Ethernet, IPv4 with its own header length, UDP with its own length."""
    udp_at = 14 + (frame[14] & 0x0F) * 4
    length = int.from_bytes(frame[udp_at + 4 : udp_at + 6], "big")
    return frame[udp_at + 8 : udp_at + length]
