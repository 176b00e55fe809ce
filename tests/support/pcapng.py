"""Datagrams as a pcapng of raw IPv4 packets, for a packet analyser."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

LINKTYPE_RAW = 101


def write_pcapng(path: Path, datagrams: Iterable[tuple[float, str, int, str, int, bytes]]) -> None:
    """Write (seconds, source host and port, destination host and port, payload) rows, IPv4 ones."""
    blocks = [_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    blocks.append(_block(1, struct.pack("<HHI", LINKTYPE_RAW, 0, 0)))
    for at, source, source_port, to, to_port, payload in datagrams:
        udp = struct.pack("!HHHH", source_port, to_port, 8 + len(payload), 0) + payload
        addresses = ip_address(source).packed + ip_address(to).packed
        packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses + udp
        micros = int(at * 1e6)
        head = struct.pack("<IIIII", 0, micros >> 32, micros & 0xFFFFFFFF, len(packet), len(packet))
        blocks.append(_block(6, head + packet))
    path.write_bytes(b"".join(blocks))


def _block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = 12 + len(body)
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)
