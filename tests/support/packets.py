"""Bare IPv4 packets, made with scapy, and the little a test asks of one."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_network
from typing import Any

from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Raw

from overlay.checksum import checksum

OURS, B, C = (ip_network(f"10.5.{number}.0/24") for number in (1, 2, 3))
"""Subnets of this node and of two others."""

LOCAL, AT_B, AT_C = (IPv4Address(f"10.5.{number}.7") for number in (1, 2, 3))


def packet(
    source: IPv4Address = LOCAL,
    destination: IPv4Address = AT_B,
    payload: bytes = b"payload",
    *,
    ttl: int = 64,
    **fields: Any,
) -> bytes:
    """A UDP packet."""
    ip = IP(src=str(source), dst=str(destination), ttl=ttl, **fields)
    return bytes(ip / UDP(sport=1000, dport=2000) / Raw(payload))


def icmp_of(octets: bytes) -> tuple[int, int, str, str]:
    """Type, code, source and destination of an ICMP packet whose checksums are right."""
    read = IP(octets)
    assert checksum(octets[:20]) == 0
    assert checksum(octets[20:]) == 0
    return read[ICMP].type, read[ICMP].code, read.src, read.dst


def aged(octets: bytes) -> bytes:
    """The packet after one router, by a full sum instead of an updated one."""
    length = (octets[0] & 0x0F) * 4
    head = bytearray(octets[:length])
    head[8] -= 1
    head[10:12] = bytes(2)
    head[10:12] = checksum(head).to_bytes(2, "big")
    return bytes(head) + octets[length:]
